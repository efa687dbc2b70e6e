"""The CNNs of VSE-infinity's grid models: their authors' numbers, and their checkpoints read to the last key.

`fixtures/vse_grid.npz` holds what the authors' own `ResnetFeatureExtractor` made of `seed_weights` and `pixels()` (narrow: its
`width_mult` a quarter, one block a stage), and their preprocessing, with OpenCV, of `picture()`. ResNeXt is torchvision's.
"""

import argparse
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.resnet import Bottleneck, ResNet

from benchmarks.parity import seed_weights
from core.console import UserError
from extractors.images import make_batch, resize_image
from extractors.loading import load_network
from extractors.networks import build, load_checkpoint
from extractors.networks.checkpoint import save_checkpoint

FIXTURE = Path(__file__).resolve().parents[3] / "fixtures" / "vse_grid.npz"
NARROW = {"blocks": (1, 1, 1, 1), "stem_channels": 16, "res2_channels": 64, "width_per_group": 16}
NARROW_X = {"blocks": (1, 1, 1, 1), "stem_channels": 16, "res2_channels": 16, "groups": 4, "width_per_group": 4}
TWINS = {
    "conv1": "base.0",
    "bn1": "base.1",
    "layer1": "base.4",
    "layer2": "base.5",
    "layer3": "base.6",
    "layer4": "top.0",
}


def narrow(architecture="vse_grid_detector", **options):
    network = build(architecture, **((NARROW_X if architecture.endswith("wsl") else NARROW) | options))
    seed_weights(network)
    return network


def pixels():
    return torch.from_numpy(np.random.RandomState(7).uniform(-120, 150, (2, 3, 101, 96)).astype(np.float32))


def picture():
    return np.random.RandomState(8).randint(0, 256, (30, 47, 3)).astype(np.uint8)


def torchvision_names(network):
    """The network's weights as torchvision's ResNet calls them."""
    state = {}
    for key, value in network.state_dict().items():
        key = key.removeprefix("backbone.").replace("stem.conv1.norm.", "bn1.").replace("stem.", "")
        key = re.sub(r"^res(\d)", lambda stage: f"layer{int(stage[1]) - 1}", key)
        key = re.sub(r"conv(\d)\.norm\.", r"bn\1.", key)
        state[key.replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")] = value
        if key.endswith("running_var"):
            state[re.sub(r"running_var$", "num_batches_tracked", list(state)[-1])] = torch.tensor(0)
    return state


def published(network, **others):
    """An image encoder's state as VSE-infinity's authors write it: the CNN twice, then the head."""
    cnn = torchvision_names(network)
    state = {f"backbone.resnet.{key}": value for key, value in cnn.items()}
    state |= {"backbone.resnet.fc.weight": torch.zeros(3, 5), "backbone.resnet.fc.bias": torch.zeros(3)}
    for key, value in cnn.items():
        part, _, rest = key.partition(".")
        state[f"backbone.{TWINS[part]}.{rest}"] = value
    return state | {"image_encoder.fc.weight": torch.ones(4, network.grid_size)} | others


def write(path, state, prefix="module.", **options):
    states = [
        {prefix + key: value for key, value in part.items()} for part in (state, {"embed.weight": torch.ones(2, 3)})
    ]
    content = {"epoch": 3, "model": states, "best_rsum": 1.0, "opt": argparse.Namespace(**options), "Eiters": 9}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def test_the_detectors_cnn_is_its_authors():
    with np.load(FIXTURE) as file:
        expected = torch.from_numpy(file["cells"])
    found = narrow().grid(pixels())[:, ::8]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.max().item())
    for mistake in ({"caffe_pool": False}, {"stride_in_1x1": False}):
        other = narrow(**mistake).grid(pixels())[:, ::8]
        assert other.shape != expected.shape or (other - expected).abs().max() > 0.05 * expected.max()


@torch.no_grad()
def test_the_wsl_cnn_is_torchvisions():
    ours = narrow("vse_grid_wsl", stem_channels=64, res2_channels=256)
    theirs = ResNet(Bottleneck, [1, 1, 1, 1], groups=4, width_per_group=4).eval()
    theirs.fc = torch.nn.Identity()
    theirs.load_state_dict(torchvision_names(ours))
    theirs.avgpool = torch.nn.Identity()
    expected = theirs(pixels()).view(2, 2048, 4, 3)
    torch.testing.assert_close(ours.grid(pixels()), expected, rtol=1e-4, atol=1e-4 * expected.max().item())


@pytest.mark.parametrize("kind", ["detector", "wsl"])
def test_images_are_shown_as_its_authors_do(kind):
    spec = build(f"vse_grid_{kind}", **NARROW).meta.input
    assert spec.shape(480, 640) == spec.shape(1, 2000) == (512, 512)
    spec = replace(spec, min_size=24, max_size=24)
    batch = make_batch([resize_image(picture(), spec)], [0], [(30, 47)], spec)
    with np.load(FIXTURE) as file:
        np.testing.assert_allclose(batch.pixels[0].permute(1, 2, 0), file[kind], atol=2e-5)


@pytest.mark.parametrize(
    ("architecture", "options", "side"),
    [
        ("vse_grid_detector", {"backbone_source": "detector", "input_scale_factor": 2.0}, 512),
        ("vse_grid_wsl", {"backbone_source": "wsl", "input_scale_factor": 0.5}, 128),
        ("vse_grid_wsl", {"backbone_source": "imagenet_resnext"}, 256),  # their code's default
        ("vse_grid_detector", {}, 512),  # not written by their program
    ],
)
def test_the_cnn_of_a_checkpoint_arrives_whole(tmp_path, architecture, options, side):
    source, network = narrow(architecture), build(architecture, **(NARROW_X if "wsl" in architecture else NARROW))
    path = write(tmp_path / "model_best.pth", published(source), "" if side == 128 else "module.", **options)
    load_checkpoint(network, path)
    for (key, value), expected in zip(network.state_dict().items(), source.state_dict().values(), strict=True):
        assert torch.equal(value, expected), key
    assert network.meta.input.shape(300, 200) == (side, side)
    save_checkpoint(network, tmp_path / "own.safetensors")
    load_checkpoint(narrow(architecture), tmp_path / "own.safetensors")


def test_what_does_not_fit_is_told(tmp_path):
    def mistake(state, architecture="vse_grid_detector", **options):
        with pytest.raises(ValueError) as error:
            load_checkpoint(narrow(architecture), write(tmp_path / "best.pth", state, **options))
        return str(error.value)

    state = published(narrow())
    assert "holds no CNN" in mistake(
        {"fc.weight": torch.ones(4, 8), "mlp.layers.0.weight": torch.ones(2, 8)}
    ) and "visual: regions" in mistake({})
    assert "of vse_grid_wsl, not vse_grid_detector; write architecture: vse_grid_wsl" in mistake(
        state, backbone_source="wsl"
    )
    assert "of vse_grid_detector, not vse_grid_wsl" in mistake(state, "vse_grid_wsl")
    assert "backbone_source 'imagenet_res50', which no architecture here" in mistake(
        state, backbone_source="imagenet_res50"
    )
    assert "input_scale_factor is 'big'" in mistake(state, backbone_source="detector", input_scale_factor="big")
    twin = state | {"backbone.resnet.layer1.0.conv1.weight": torch.zeros(1)}
    assert "backbone.resnet.layer1.0.conv1.weight differs from its twin backbone.base.4.0.conv1.weight" in mistake(twin)
    odd = published(narrow(), strange=torch.zeros(1))
    del odd["backbone.top.0.0.bn1.weight"], odd["backbone.resnet.layer4.0.bn1.weight"]
    told = mistake(odd)
    assert "1 missing: backbone.res5.0.conv1.norm.weight" in told and "1 unexpected: strange" in told
    deeper = mistake(published(narrow(blocks=(1, 1, 2, 1))))
    assert "unexpected: backbone.res4.1.conv1.norm.bias" in deeper


def test_no_checkpoint_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file at"):
        load_checkpoint(narrow(), tmp_path / "missing.pth")
    path = write(tmp_path / "best.pth", published(narrow()))
    with pytest.raises(UserError, match=r"asks for argparse.Namespace; .*checkpoints of retrieval models do.*vse_grid"):
        load_network("scenes_grids", path)
    torch.save({"base": {}, "top": {}}, path)
    with pytest.raises(ValueError, match="it has no `model` with two encoders' states"):
        load_checkpoint(narrow(), path)
