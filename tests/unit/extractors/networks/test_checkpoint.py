"""Weights files: formats, completeness, and that a hostile file is refused."""

import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from extractors.networks import load_checkpoint
from extractors.networks.checkpoint import save_checkpoint


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.register_buffer("pixel_mean", torch.zeros(3))


def small(seed: int) -> Small:
    torch.manual_seed(seed)
    return Small()


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
def test_round_trip(tmp_path, suffix):
    source, target = small(0), small(1)
    path = tmp_path / f"weights{suffix}"
    state = {k: v for k, v in source.state_dict().items()}
    if suffix == ".pkl":
        content = {"model": {k: v.numpy() for k, v in state.items()}, "__author__": "zoo"}
        path.write_bytes(pickle.dumps(content))
    elif suffix == ".pth":
        torch.save({"model": state, "iteration": 3}, path)
    else:
        save_checkpoint(source, path)
    load_checkpoint(target, path)
    tolerance = 2e-3 if suffix == ".safetensors" else 0  # half precision on disk
    torch.testing.assert_close(target.conv.weight, source.conv.weight, rtol=tolerance, atol=tolerance)


def test_every_key_is_accounted_for(tmp_path):
    path = tmp_path / "weights.pkl"
    content = {"conv.weight": np.zeros((4, 3, 3, 3), "f4"), "extra.bias": np.zeros(2, "f4")}
    path.write_bytes(pickle.dumps({"model": content}))
    with pytest.raises(ValueError) as error:
        load_checkpoint(small(0), path)
    message = str(error.value)
    assert "1 missing: conv.bias" in message
    assert "1 unexpected: extra.bias" in message
    assert "conv.weight: file (4, 3, 3, 3), network (4, 3, 1, 1)" in message
    assert str(path) in message


class Hostile:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_a_hostile_file_runs_nothing(tmp_path, suffix):
    marker = tmp_path / "executed"
    path = tmp_path / f"weights{suffix}"
    content = {"model": {"conv.weight": Hostile(str(marker))}}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match="weights"):
        load_checkpoint(small(0), path)
    assert not marker.exists()


def test_other_files_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pkl"):
        load_checkpoint(small(0), tmp_path / "nowhere.pkl")
    path = tmp_path / "weights.txt"
    path.write_text("hello")
    with pytest.raises(ValueError, match=r"\.safetensors, \.pkl or \.pth"):
        load_checkpoint(small(0), path)
