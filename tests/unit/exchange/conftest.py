"""A folder in the layout of SCAN and 3SHNet, small."""

import numpy as np
import pytest

K, D = 6, 16


def write_split(folder, prefix, images, *, repeated=(), seed=0, encoding="raw", ids=True):
    """Files of one split with values that float16 holds exactly; returns the arrays with one row per image."""
    random = np.random.default_rng(seed)
    maps = random.integers(0, 133, (images, 64, 64))
    arrays = {
        "ims": random.standard_normal((images, K, D)).astype(np.float16).astype(np.float32),
        "seg_maps": maps.astype(np.float32),
        "cat_onehots": random.integers(0, 2, (images, 133)).astype(np.float32),
        "segmentations": random.random((images, 133, 7, 7)).astype(np.float16).astype(np.float32),
    }
    if encoding == "standardised":
        arrays["seg_maps"] = ((maps / 133 - 0.3342) / 0.0621).astype(np.float32)
    for name, values in arrays.items():
        np.save(folder / f"{prefix}_{name}.npy", np.repeat(values, 5, 0) if name in repeated else values)
    captions = [f"caption {k} of {prefix} {i}." for i in range(images) for k in range(5)]
    (folder / f"{prefix}_caps.txt").write_text("".join(c + "\n" for c in captions))
    if ids:
        (folder / f"{prefix}_ids.txt").write_text("".join(f"{prefix}{i}\n" for i in range(images)))
    return arrays | {"maps": maps}


@pytest.fixture
def scan(tmp_path):
    """(folder, arrays by prefix): 9 training images, and 4 of dev with all rows five times."""
    folder = tmp_path / "precomp"
    folder.mkdir()
    names = ("ims", "seg_maps", "cat_onehots", "segmentations")
    return folder, {
        "train": write_split(folder, "train", 9),
        "dev": write_split(folder, "dev", 4, repeated=names, seed=1),
    }
