"""Weights files: formats, completeness, and that a hostile file is refused."""

import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from extractors.images import InputSpec
from extractors.networks import build, load_checkpoint
from extractors.networks.checkpoint import save_checkpoint
from extractors.networks.resnet import ResNet


def spread(network):
    """Random weights that make proposals differ."""
    for name, value in network.state_dict().items():
        if name.endswith(("cls_score.weight", "objectness_logits.weight")):
            value.normal_(0, 0.3)
    return network


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


def test_values_that_are_not_finite_are_told(tmp_path):
    broken = small(0).state_dict() | {"conv.bias": torch.tensor([1.0, torch.nan, 0.0, 2.0])}
    torch.save(broken, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="not finite, in conv.bias: it is damaged"):
        load_checkpoint(small(1), tmp_path / "weights.pth")


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


# ---- published layouts

SMALL = {
    "input": InputSpec(64, 96, "BGR", (0.0,) * 3, (64.0,) * 3, 1),
    "blocks": (1, 1, 1, 1),
    "stem_channels": 8,
    "res2_channels": 16,
    "width_per_group": 4,
    "rpn_channels": 16,
    "num_classes": 11,
    "num_attributes": 5,
    "attribute_embedding": 4,
    "attribute_hidden": 16,
    "anchor_sizes": (16, 32),
}


def looks(network, **extra):
    torch.manual_seed(9)
    return network.regions(torch.randn(1, 3, 64, 96), [(64, 96)], [1.3])[0]


def write(path, state):
    content = {"model": {k: v.numpy() for k, v in state.items()}, "__author__": "seeded"}
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save({"model": state, "optimizer": {}, "iteration": 7}, path)
    return path


def test_the_milvlg_conversion(tmp_path):
    """Background first, a two-way objectness, anchors in the file: read into our layout, against its own reading."""
    torch.manual_seed(0)
    path = tmp_path / "bua-caffe-frcn-r101-k36.pth"
    network = spread(build("vg_r101_c4_caffe_milvlg", **SMALL))
    state = {
        k: v for k, v in network.state_dict().items() if "attribute_predictor" not in k and "cell_anchors" not in k
    }
    head, rpn = "roi_heads.box_predictor.", "proposal_generator.rpn_head."
    for name, shape in {
        head + "cls_score.weight": (12, 128),
        head + "cls_score.bias": (12,),
        head + "bbox_pred.weight": (48, 128),
        head + "bbox_pred.bias": (48,),
        head + "cls_embed.weight": (12, 4),
        head + "attr_linear1.weight": (16, 132),
        head + "attr_linear1.bias": (16,),
        head + "attr_linear2.weight": (6, 16),
        head + "attr_linear2.bias": (6,),
        rpn + "objectness_logits.weight": (12, 16, 1, 1),
        rpn + "objectness_logits.bias": (12,),
    }.items():
        state[name] = torch.randn(shape) * 0.3
    anchors = (
        torch.tensor([[-9.0, -9, 9, 9], [-20, -9, 19, 9], [-9, -20, 9, 19]]).repeat(2, 1) * torch.arange(1, 7)[:, None]
    )
    state["proposal_generator.anchor_generator.cell_anchors.0"] = anchors
    state["backbone.stem.conv1.norm.num_batches_tracked"] = torch.tensor(1)
    load_checkpoint(network, write(path, state))
    assert torch.equal(network.proposal_generator.anchor_generator.cell_anchors_0, anchors)

    found = looks(network)
    assert len(found.boxes) > 20
    torch.manual_seed(9)
    with torch.no_grad():
        feature = network.backbone(torch.randn(1, 3, 64, 96))["res4"]
        hidden = torch.relu(network.proposal_generator.rpn_head.conv(feature))
        two_way = F.conv2d(hidden, state[rpn + "objectness_logits.weight"], state[rpn + "objectness_logits.bias"])
        own = network.proposal_generator.rpn_head.objectness_logits(hidden)
        torch.testing.assert_close(own.sigmoid(), two_way.view(1, 2, 6, *own.shape[2:]).softmax(1)[:, 1])
        logits = F.linear(found.features, state[head + "cls_score.weight"], state[head + "cls_score.bias"])
        torch.testing.assert_close(found.probabilities, logits.softmax(1)[:, 1:])
        deltas = F.linear(found.features, state[head + "bbox_pred.weight"], state[head + "bbox_pred.bias"])
        torch.testing.assert_close(found.deltas, deltas[:, 4:])
        told = state[head + "cls_embed.weight"][logits.argmax(1)]
        x = F.linear(
            torch.cat([found.features, told], 1), state[head + "attr_linear1.weight"], state[head + "attr_linear1.bias"]
        )
        x = F.linear(torch.relu(x), state[head + "attr_linear2.weight"], state[head + "attr_linear2.bias"])
        torch.testing.assert_close(found.attribute_probabilities, x.softmax(1)[:, 1:])

    # Our own files of it keep the anchors.
    save_checkpoint(network, tmp_path / "own.safetensors")
    again = build("vg_r101_c4_caffe_milvlg", **SMALL)
    load_checkpoint(again, tmp_path / "own.safetensors")
    assert torch.equal(again.proposal_generator.anchor_generator.cell_anchors_0, anchors)
    with pytest.raises(ValueError, match="vg_r101_c4_caffe_milvlg"):
        load_checkpoint(build("vg_r101_c4_caffe_attr", **SMALL), path)


@pytest.mark.parametrize("attributes", [False, True])
def test_the_airsplay_conversion(tmp_path, attributes):
    torch.manual_seed(0)
    name = "vg_r101_c4_caffe_attr" if attributes else "vg_r101_c4_caffe"
    options = SMALL | {"num_attributes": 5 if attributes else 0}
    network, source = build(name, **options), spread(build(name, **options))
    names = {"obj_embed": "cls_embedding", "fc.0": "fc_attr", "attr_score": "attr_score"}
    state = {}
    for key, value in source.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(f"roi_heads.attribute_predictor.{ours}.", f"roi_heads.box_predictor.{theirs}.")
        state[key] = value
    assert ("roi_heads.box_predictor.cls_embedding.weight" in state) == attributes
    state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(6, 4)  # not looked at: detectron2's own
    path = write(tmp_path / "faster_rcnn_from_caffe.pkl", state)
    load_checkpoint(network, path)
    ours, theirs = looks(network), looks(source)
    assert torch.equal(ours.boxes, theirs.boxes) and torch.equal(ours.probabilities, theirs.probabilities)
    if attributes:
        assert ours.attribute_probabilities.shape[1] == 5
        assert torch.equal(ours.attribute_probabilities, theirs.attribute_probabilities)
        with pytest.raises(ValueError, match="vg_r101_c4_caffe_attr"):
            load_checkpoint(build("vg_r101_c4_caffe_milvlg", **SMALL), path)
    else:
        with pytest.raises(ValueError, match="missing: .*attribute_predictor"):
            load_checkpoint(build("vg_r101_c4_caffe_attr", **SMALL), path)


def caffe2_names(state):
    """Blob names as Caffe2's ImageNet files have them."""
    result = {}
    for key, value in state.items():
        parts = key.split(".")
        end = {"weight": "w", "bias": "b"}[parts[-1]] if parts[-1] in ("weight", "bias") else None
        if end is None:
            continue  # running statistics: folded into weight and bias
        norm = "norm" in parts
        if parts[0] == "stem":
            blob = "res_conv1_bn_" + {"w": "s", "b": "b"}[end] if norm else "conv1_" + end
        else:
            branch = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}[parts[2]]
            blob = f"{parts[0]}_{parts[1]}_{branch}_" + ("bn_" + {"w": "s", "b": "b"}[end] if norm else end)
        result[blob] = value.numpy()
        result[blob + "_momentum"] = value.numpy() * 0
    return result


def test_imagenet_bodies_with_caffe2s_names(tmp_path):
    torch.manual_seed(0)
    options = {"blocks": (1, 2, 1, 1), "stem_channels": 8, "res2_channels": 16, "width_per_group": 4}
    source, target = ResNet(**options), ResNet(**options)
    for value in source.state_dict().values():
        value.normal_()
    content = caffe2_names(source.state_dict())
    assert "res3_0_branch1_bn_s" in content and "res3_1_branch2c_w" in content
    content |= {"fc1000_w": np.zeros((10, 128), "f4"), "fc1000_b": np.zeros(10, "f4")}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(content, protocol=2))
    load_checkpoint(target, path)
    for key, value in target.state_dict().items():
        if key.endswith("running_mean"):
            assert not value.any()
        elif key.endswith("running_var"):
            assert (value == 1).all()
        else:
            assert torch.equal(value, source.state_dict()[key]), key

    # The same names inside of a whole C4 detector: res5 is the head's. What ImageNet cannot give is listed.
    network = build(
        "faster_rcnn_r50_c4", **{k: v for k, v in SMALL.items() if "attribute" not in k} | {"blocks": (1, 2, 1, 1)}
    )
    with pytest.raises(ValueError) as error:
        load_checkpoint(network, path)
    missing = str(error.value).split("missing: ")[1].split(", ")
    assert len(missing) == 10 and not any("res" in name for name in missing)

    path.write_bytes(pickle.dumps(content | {"surprise_w": np.zeros(3, "f4")}))
    with pytest.raises(ValueError, match="1 unexpected: surprise.weight"):
        load_checkpoint(target, path)


def test_a_whole_detector_with_caffe2s_names(tmp_path):
    """Detectron's files: heads with the background first, a pyramid's layers named after its blocks."""
    torch.manual_seed(0)
    options = {k: v for k, v in SMALL.items() if k not in ("num_attributes", "rpn_channels", "anchor_sizes")}
    options = {k: v for k, v in options.items() if not k.startswith("attribute")} | {
        "fpn_channels": 8,
        "box_hidden": 16,
    }
    source, target = build("faster_rcnn_r50_fpn", **options), build("faster_rcnn_r50_fpn", **options)
    for value in source.state_dict().values():
        value.normal_()
    state = source.state_dict()
    body = {k.removeprefix("backbone.bottom_up."): v for k, v in state.items() if k.startswith("backbone.bottom_up.")}
    blobs = caffe2_names(body)
    names = {
        f"backbone.fpn_lateral{i}": f"fpn_inner_res{i}_0_sum" + ("" if i == 5 else "_lateral") for i in (2, 3, 4, 5)
    }
    names |= {f"backbone.fpn_output{i}": f"fpn_res{i}_0_sum" for i in (2, 3, 4, 5)}
    names |= {
        "proposal_generator.rpn_head.conv": "conv_rpn_fpn2",
        "proposal_generator.rpn_head.objectness_logits": "rpn_cls_logits_fpn2",
        "proposal_generator.rpn_head.anchor_deltas": "rpn_bbox_pred_fpn2",
        "roi_heads.box_head.fc1": "fc6",
        "roi_heads.box_head.fc2": "fc7",
        "roi_heads.box_predictor.cls_score": "cls_score",
        "roi_heads.box_predictor.bbox_pred": "bbox_pred",
    }
    for ours, theirs in names.items():
        for end, letter in (("weight", "w"), ("bias", "b")):
            value = state[f"{ours}.{end}"]
            if theirs == "cls_score":
                value = torch.cat([value[-1:], value[:-1]])
            elif theirs == "bbox_pred":
                value = torch.cat([torch.zeros_like(value[:4]), value])
            blobs[f"{theirs}_{letter}"] = value.numpy()
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs, "cfg": "a text"}))
    load_checkpoint(target, path)
    for key, value in target.state_dict().items():
        if "running" not in key:
            assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
def test_files_that_are_cut_off_say_so(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_checkpoint(small(0), path)
    else:
        write(path, small(0).state_dict())
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"weights{suffix}"):
            load_checkpoint(small(1), path)


def test_prefixes_of_parallel_training_are_taken_off(tmp_path):
    source, target = small(0), small(1)
    path = write(tmp_path / "w.pth", {f"module.{k}": v for k, v in source.state_dict().items()})
    load_checkpoint(target, path)
    assert torch.equal(target.conv.weight, source.conv.weight)
