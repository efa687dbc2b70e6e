"""Weights in: detectron2's `.pkl` / `.pth` and our `.safetensors`, with every key accounted for."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from console import atomic_path

# Keys detectron2 writes that hold no weights: normalisation constants and anchors, fixed by the architecture, and a counter.
_DERIVED = ("pixel_mean", "pixel_std", "anchor_generator.cell_anchors", "num_batches_tracked")


class _NumpyUnpickler(pickle.Unpickler):
    """Unpickles containers of numpy arrays and nothing else, so that a hostile file cannot run code."""

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which a weights file has no use for")
        return super().find_class(module, name)


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors by name from a weights file; no code in the file is run.

    Args:
        path: `.safetensors`, detectron2's `.pkl` (numpy arrays) or `.pth` (torch tensors).

    Raises:
        ValueError: for another kind of file or a file that holds anything but weights.
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".pkl":
        with open(path, "rb") as file:
            try:
                # Caffe2's and detectron2's pickles were written by Python 2 as well: latin1 keeps array bytes intact.
                content = _NumpyUnpickler(file, encoding="latin1").load()
            except pickle.UnpicklingError as error:
                raise ValueError(f"{path} is not a plain weights pickle: {error}") from error
    elif path.suffix in (".pth", ".pt"):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path} holds more than weights and is not opened: {error}") from error
    else:
        raise ValueError(f"{path}: weights are read from .safetensors, .pkl or .pth, not {path.suffix or 'no suffix'}")
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    state = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            state[key] = value
        elif isinstance(value, np.ndarray) and value.dtype != object:
            state[key] = torch.from_numpy(np.ascontiguousarray(value))
    return state


def load_checkpoint(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a weights file into `module`, converting to the module's dtypes.

    Raises:
        ValueError: listing every missing, unexpected and wrongly shaped key.
    """
    state = {k: v for k, v in read_state(path).items() if not any(part in k for part in _DERIVED)}
    own = {k: v for k, v in module.state_dict().items() if not any(part in k for part in _DERIVED)}
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    shapes = [
        f"{k}: file {tuple(state[k].shape)}, network {tuple(own[k].shape)}"
        for k in sorted(own.keys() & state.keys())
        if state[k].shape != own[k].shape
    ]
    if missing or unexpected or shapes:
        parts = [
            f"{len(keys)} {what}: {', '.join(keys)}"
            for what, keys in (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", shapes))
            if keys
        ]
        raise ValueError(
            f"the weights in {path} do not fit the network; check that `architecture` and `weights` belong together\n"
            + "\n".join(parts)
        )
    for key, value in own.items():
        value.copy_(state[key])


def save_checkpoint(module: nn.Module, path: str | os.PathLike[str], metadata: dict[str, str] | None = None) -> None:
    """Write `module`'s weights as half-precision safetensors (a quarter of a published `.pkl` with momentum)."""
    from safetensors.torch import save_file

    state = {
        k: v.detach().to(torch.float16 if v.is_floating_point() else v.dtype).contiguous()
        for k, v in module.state_dict().items()
        if not any(part in k for part in _DERIVED)
    }
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata=metadata)
