"""UPSNet's published files: which entries they have, and that every one of them is accounted for."""

import re

import pytest
import torch

from extractors.networks import build, load_checkpoint
from extractors.networks.checkpoint import save_checkpoint
from tests.unit.extractors.networks.narrow_upsnet import NARROW, narrow

NAMES = (
    (r"^backbone\.bottom_up\.stem\.conv1\.norm\.", "resnet_backbone.conv1.bn1."),
    (r"^backbone\.bottom_up\.stem\.", "resnet_backbone.conv1."),
    (r"^backbone\.bottom_up\.(res\d)\.", r"resnet_backbone.\1.layers."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"^backbone\.fpn_lateral(\d)\.", r"fpn.fpn_p\1_1x1."),
    (r"^backbone\.fpn_output(\d)\.", r"fpn.fpn_p\1."),
    (r"^backbone\.fpn_gap\.", "fpn.fpn_gap."),
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn.conv_proposal.0."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn.cls_score."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.bbox_pred."),
    (r"^roi_heads\.box_head\.fc1\.", "rcnn.fc6.0."),
    (r"^roi_heads\.box_head\.fc2\.", "rcnn.fc7.0."),
    (r"^roi_heads\.box_predictor\.", "rcnn."),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.", r"mask_branch.mask_conv\1.0."),
    (r"^roi_heads\.mask_head\.deconv\.", "mask_branch.mask_deconv1.0."),
    (r"^roi_heads\.mask_head\.predictor\.", "mask_branch.mask_score."),
    (r"^sem_seg_head\.conv(\d)(_offset)?\.", r"fcn_head.fcn_subnet.conv.\1.0.conv\2."),
    (r"^sem_seg_head\.predictor\.", "fcn_head.score."),
)


def published(network):
    """The network's weights as UPSNet names and orders them."""
    state = {}
    for key, value in network.state_dict().items():
        for pattern, name in NAMES:
            key = re.sub(pattern, name, key)
        if key.startswith("rcnn.cls_score"):
            value = torch.cat([value[-1:], value[:-1]])
        elif key.startswith("rcnn.bbox_pred"):
            value = torch.cat([torch.full_like(value[:4], 7.0), value])
        elif key.startswith("mask_branch.mask_score"):
            value = torch.cat([torch.full_like(value[:1], 7.0), value])
        state[key] = value
        if key.endswith("running_var"):
            state[key.replace("running_var", "num_batches_tracked")] = torch.tensor(90000)
    return state


@pytest.mark.parametrize(("architecture", "entries"), [("upsnet_r50", 376), ("upsnet_r101_dcn", 742)])
def test_published_files_have_these_entries(architecture, entries):
    state = published(build(architecture))
    assert len(state) == entries
    shapes = {
        "resnet_backbone.conv1.conv1.weight": (64, 3, 7, 7),
        "resnet_backbone.res5.layers.0.downsample.0.weight": (2048, 1024, 1, 1),
        "resnet_backbone.res4.layers.5.conv2.weight": (256, 256, 3, 3),
        "fpn.fpn_gap.weight": (256, 2048),
        "rpn.bbox_pred.bias": (12,),
        "rcnn.fc6.0.weight": (1024, 12544),
        "rcnn.cls_score.weight": (81, 1024),
        "rcnn.bbox_pred.weight": (324, 1024),
        "mask_branch.mask_deconv1.0.weight": (256, 256, 2, 2),
        "mask_branch.mask_score.weight": (81, 256, 1, 1),
        "fcn_head.fcn_subnet.conv.1.0.conv.weight": (128, 256, 3, 3),
        "fcn_head.fcn_subnet.conv.2.0.conv_offset.weight": (18, 128, 3, 3),
        "fcn_head.score.weight": (133, 512, 1, 1),
    }
    if architecture == "upsnet_r101_dcn":
        shapes["resnet_backbone.res3.layers.3.conv2_offset.weight"] = (18, 128, 3, 3)
    assert {key: tuple(state[key].shape) for key in shapes} == shapes


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_file_loads(tmp_path, prefix):
    source, network = narrow(), build("upsnet_r101_dcn", **NARROW)
    path = tmp_path / "upsnet_resnet_101_dcn_coco_270000.pth"
    state = {prefix + key: value for key, value in published(source).items()}
    torch.save(state, path, _use_new_zipfile_serialization=False)  # as PyTorch 0.4 wrote them
    load_checkpoint(network, path)
    for (key, value), expected in zip(network.state_dict().items(), source.state_dict().values(), strict=True):
        assert torch.equal(value, expected), key
    save_checkpoint(network, tmp_path / "own.safetensors")
    load_checkpoint(build("upsnet_r101_dcn", **NARROW), tmp_path / "own.safetensors")


def test_a_published_file_that_does_not_fit_is_described(tmp_path):
    path = tmp_path / "weights.pth"
    state = published(narrow())
    del state["fpn.fpn_gap.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["fcn_head.score.bias"] = torch.zeros(19)
    torch.save(state, path)
    with pytest.raises(ValueError) as error:
        load_checkpoint(build("upsnet_r101_dcn", **NARROW), path)
    message = str(error.value)
    assert "1 missing: backbone.fpn_gap.weight" in message and "1 unexpected: extra.weight" in message
    assert "sem_seg_head.predictor.bias: file (19,), network (133,)" in message
    torch.save(published(narrow()), path)
    with pytest.raises(ValueError, match=r"unexpected: .*res3\.0\.conv2_offset\.bias"):
        load_checkpoint(build("upsnet_r50", **NARROW), path)
    torch.save(published(narrow("upsnet_r50")), path)
    with pytest.raises(ValueError, match=r"missing: .*res3\.0\.conv2_offset\.bias"):
        load_checkpoint(build("upsnet_r101_dcn", **NARROW), path)
