"""The extractors on a GPU: the rows of the CPU, and how far lower precision moves them."""

import numpy as np
import pytest
import torch

from benchmarks.detectors import photographs
from extractors.engines import build_extractor
from extractors.images import make_batch, resize_image

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
FEATURES = {"regions": "features", "grids": "features", "panoptic": "seg_features"}


def rows(feature: str, device: str, precision: str, batch: int = 1) -> list[dict[str, np.ndarray]]:
    settings = {"architecture": f"scenes_{feature}", "weights": f"weights/scenes_{feature}.safetensors"}
    extractor = build_extractor(feature, **settings, precision=precision).to(device)
    result = []
    for image in photographs(("coffee.png", "astronaut.png")).values():
        resized = resize_image(image, extractor.input)
        result += extractor(make_batch([resized] * batch, range(batch), [image.shape[:2]] * batch, extractor.input))
    return result


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("feature", FEATURES)
def test_fp32_gives_the_rows_of_the_cpu(feature):
    for own, expected in zip(rows(feature, "cuda", "fp32"), rows(feature, "cpu", "fp32"), strict=True):
        assert own.keys() == expected.keys()
        assert cosine(own[FEATURES[feature]], expected[FEATURES[feature]]) >= 0.9999
        if feature == "regions":
            np.testing.assert_allclose(own["boxes"], expected["boxes"], atol=0.1)
        if feature == "panoptic":
            assert (own["seg_maps"] == expected["seg_maps"]).mean() >= 0.999


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_lower_precision_keeps_the_direction_of_grid_features(precision):
    for own, expected in zip(rows("grids", "cuda", precision), rows("grids", "cuda", "fp32"), strict=True):
        assert cosine(own["features"], expected["features"]) >= 0.999


@pytest.mark.parametrize("feature", FEATURES)
def test_a_batch_gives_the_rows_of_single_images(feature):
    together, alone = rows(feature, "cuda", "fp32", batch=3), rows(feature, "cuda", "fp32")
    for i, expected in enumerate(alone):
        for own in together[3 * i : 3 * i + 3]:
            assert cosine(own[FEATURES[feature]], expected[FEATURES[feature]]) >= 0.9999


def test_a_repeated_extraction_gives_the_same_bytes():
    first, second = rows("regions", "cuda", "bf16"), rows("regions", "cuda", "bf16")
    for a, b in zip(first, second, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
