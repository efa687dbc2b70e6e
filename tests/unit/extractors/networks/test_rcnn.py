"""Whole networks: batching, naming, and the layers' conventions."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import box_iou, roi_align

from extractors.networks import build, layers
from extractors.networks.layers import DeformConv2d, FrozenBatchNorm2d, fold_norms
from extractors.networks.resnet import ResNet, Stem, make_stage
from extractors.networks.roi import AttributePredictor, RoIPooler, select_detections
from extractors.networks.rpn import RPN


def spread(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights whose scores spread, so that suppression and thresholds really act."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if name.endswith(("cls_score.weight", "objectness_logits.weight", "predictor.weight")):
            value.normal_(0, 0.3, generator=generator)
        elif name.endswith(("bbox_pred.weight", "anchor_deltas.weight")):
            value.normal_(0, 0.02, generator=generator)
        elif name.endswith("running_mean"):
            value.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
    return network


def pixels(batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, 96, 128, generator=torch.Generator().manual_seed(seed))


def test_regions_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    network = spread(build("scenes_regions"))
    x = pixels()
    together = network.regions(x, [(96, 120), (96, 120)])
    for i in range(2):
        alone = network.regions(x[i : i + 1], [(96, 120)])[0]
        assert len(alone.boxes) > 20
        torch.testing.assert_close(together[i].boxes, alone.boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(together[i].features, alone.features, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together[i].probabilities, alone.probabilities, rtol=1e-4, atol=1e-4)
        rows = torch.arange(len(alone.boxes))
        regressed = alone.regressed(rows, alone.probabilities.argmax(1))
        assert alone.boxes[:, 2].max() <= 120 and regressed[:, 2].max() <= 120


def test_grid_is_the_whole_image_res5_map():
    torch.manual_seed(0)
    network = spread(build("scenes_grids"))
    x = pixels()
    maps = network.grid(x)
    assert maps.shape == (2, 512, 3, 4)
    with torch.no_grad():
        expected = network.roi_heads.res5(network.backbone(x)["res4"])
    torch.testing.assert_close(maps, expected)


def test_panoptic_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    network = spread(build("scenes_panoptic"))
    x = pixels()
    together = network.panoptic(x, [(90, 120)] * 2, [(60, 80)] * 2)
    for i in range(2):
        alone = network.panoptic(x[i : i + 1], [(90, 120)], [(60, 80)])[0]
        assert alone.segment_map.shape == (60, 80)
        assert (together[i].segment_map == alone.segment_map).float().mean() > 0.999
        assert len(alone.segments) > 1
        ids = set(alone.segment_map.unique().tolist()) - {0}
        assert ids <= {s["id"] for s in alone.segments}


def test_parameter_names_are_detectron2s():
    keys = set(build("scenes_panoptic").state_dict())
    for name in (
        "backbone.bottom_up.stem.conv1.norm.running_var",
        "backbone.bottom_up.res4.2.conv3.weight",
        "backbone.fpn_lateral5.bias",
        "proposal_generator.rpn_head.anchor_deltas.weight",
        "roi_heads.box_head.fc2.weight",
        "roi_heads.box_predictor.cls_score.bias",
        "roi_heads.mask_head.mask_fcn4.weight",
        "roi_heads.mask_head.deconv.bias",
        "sem_seg_head.p5.4.norm.weight",
        "sem_seg_head.predictor.weight",
    ):
        assert name in keys
    assert "roi_heads.res5.0.shortcut.norm.bias" in build("scenes_regions").state_dict()
    assert not any("anchor_generator" in key for key in keys)


def test_unknown_architecture_lists_the_known():
    with pytest.raises(ValueError, match="scenes_regions"):
        build("vgg16")


def test_frozen_norm_is_batch_norm_in_eval_mode():
    torch.manual_seed(0)
    reference = nn.BatchNorm2d(5).eval()
    for tensor in (reference.weight.data, reference.running_var):
        tensor.uniform_(0.5, 2)
    reference.bias.data.normal_()
    reference.running_mean.normal_()
    frozen = FrozenBatchNorm2d(5)
    frozen.load_state_dict({k: v for k, v in reference.state_dict().items() if k != "num_batches_tracked"})
    x = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(frozen(x), reference(x))
    torch.testing.assert_close(frozen(x.requires_grad_()), reference(x))


def test_where_the_stride_sits_changes_the_result():
    torch.manual_seed(0)
    caffe = ResNet(blocks=(1, 1), stem_channels=8, res2_channels=16, width_per_group=4, stride_in_1x1=True)
    other = ResNet(blocks=(1, 1), stem_channels=8, res2_channels=16, width_per_group=4, stride_in_1x1=False)
    other.load_state_dict(caffe.state_dict())
    x = pixels(1)
    assert caffe(x)["res3"].shape == other(x)["res3"].shape
    assert not torch.allclose(caffe(x)["res3"], other(x)["res3"], atol=1e-3)
    assert torch.allclose(caffe(x)["res2"], other(x)["res2"])


def test_caffe_stem_pools_without_padding():
    stem = Stem(4, "", caffe_pool=True)
    x = torch.randn(1, 3, 62, 62)
    convolved = F.relu(F.conv2d(x, stem.conv1.weight, stem.conv1.bias, 2, 3))
    assert stem(x).shape == (1, 4, 15, 15)
    torch.testing.assert_close(stem(x)[0, :, 0, 0], convolved[0, :, :3, :3].amax((1, 2)))


def test_deformable_convolution_samples_where_it_is_told():
    torch.manual_seed(0)
    conv = DeformConv2d(4, 4, groups=2)
    x = torch.randn(1, 4, 6, 6)
    plain = F.relu(F.conv2d(x, conv.weight, padding=1, groups=2))
    torch.testing.assert_close(conv(x, torch.zeros(1, 18, 6, 6)), plain)
    one_down = torch.zeros(1, 18, 6, 6)
    one_down[:, 0::2] = 1.0  # (y, x) pairs
    shifted = F.relu(F.conv2d(F.pad(x, (0, 0, 0, 1))[:, :, 1:], conv.weight, padding=1, groups=2))
    torch.testing.assert_close(conv(x, one_down)[:, :, 1:-1], shifted[:, :, 1:-1])
    half = torch.full((1, 9, 6, 6), 0.5)
    torch.testing.assert_close(conv(x, torch.zeros(1, 18, 6, 6), half), plain / 2)


@pytest.mark.parametrize("deform", ["v1", "v2"])
def test_a_deformable_stage_starts_as_a_plain_one(deform):
    torch.manual_seed(0)
    options = {"blocks": (1, 1), "stem_channels": 8, "res2_channels": 16, "width_per_group": 4}
    plain, deformed = ResNet(**options), ResNet(**options, deform=("", deform))
    state = deformed.state_dict()
    offsets = state["res3.0.conv2_offset.weight"]
    assert offsets.shape[0] == (27 if deform == "v2" else 18) and not offsets.any()
    for key, value in plain.state_dict().items():
        state[key].copy_(value)
    x = pixels(1)
    torch.testing.assert_close(deformed(x)["res2"], plain(x)["res2"])
    if deform == "v1":  # v2 starts with every tap at half weight
        torch.testing.assert_close(deformed(x)["res3"], plain(x)["res3"])
    deformed.res3[0].conv2_offset.bias.data.fill_(0.7)
    assert not torch.allclose(deformed(x)["res3"], plain(x)["res3"], atol=1e-3)


def test_merging_norms_changes_no_result():
    torch.manual_seed(0)
    body = ResNet(blocks=(1, 2), stem_channels=8, res2_channels=16, width_per_group=4, deform=("", "v1")).eval()
    spread(body)
    x = pixels(1)
    with torch.no_grad():
        before = body(x)
        fold_norms(body)
        after = body(x)
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-5)
    # A deformable convolution has no bias to merge a norm into.
    assert {k.rsplit(".norm", 1)[0] for k in body.state_dict() if ".norm." in k} == {"res3.0.conv2", "res3.1.conv2"}


@pytest.mark.parametrize("groups", [1, 4])
def test_adding_and_cutting_off_in_one_pass_changes_no_number(groups, monkeypatch):
    torch.manual_seed(0)
    options = {"first_stride": 2, "groups": groups, "dilation": groups, "stride_in_1x1": True, "norm": "FrozenBN"}
    stage = make_stage(2, 8, 16, bottleneck_channels=8, **options).eval()
    fold_norms(stage)
    x = torch.randn(2, 8, 12, 10).to(memory_format=torch.channels_last)
    given, calls = x.clone(), []
    monkeypatch.setattr(layers, "_in_one", lambda x, ask=layers._in_one: calls.append(ask(x)) or calls[-1])
    with torch.inference_mode():
        found = stage(x)
        assert calls and all(calls) and torch.equal(x, given) and (found == 0).any()
        with torch.autocast("cpu", torch.bfloat16):
            assert stage(x).dtype == torch.bfloat16
        monkeypatch.setattr(layers, "_in_one", lambda x: False)
        torch.testing.assert_close(found, stage(x), rtol=1e-5, atol=1e-5)
    monkeypatch.undo()
    stage(x.requires_grad_()).sum().backward()
    assert x.grad.abs().sum() > 0


def test_proposals_in_the_caffe_convention_follow_its_order_of_work():
    """Against a plain loop written from the published description: decode all, clip to the last pixel, drop what is small in
    the original image, take the best, suppress with both end pixels counted."""
    torch.manual_seed(0)
    rpn = RPN(
        in_channels=4,
        anchor_sizes=((16, 48),),
        strides=(16,),
        pre_nms_top=60,
        post_nms_top=25,
        min_size=10.0,
        inclusive=True,
    )
    nn.init.normal_(rpn.rpn_head.objectness_logits.weight, std=1)
    nn.init.normal_(rpn.rpn_head.anchor_deltas.weight, std=0.15)
    feature, size, scale = torch.randn(1, 4, 6, 7), (90, 105), 1.7
    (boxes, scores), *_ = rpn([feature], [size], [scale])
    with pytest.raises(ValueError, match="scales"):
        rpn([feature], [size])

    logits, deltas = rpn.rpn_head([feature])
    candidates = []
    for anchor, logit, (dx, dy, dw, dh) in zip(
        rpn.anchor_generator([feature])[0].tolist(), logits[0][0].tolist(), deltas[0][0].tolist(), strict=True
    ):
        w, h = anchor[2] - anchor[0] + 1, anchor[3] - anchor[1] + 1
        cx, cy = anchor[0] + w / 2 + dx * w, anchor[1] + h / 2 + dy * h
        w, h = w * math.exp(dw), h * math.exp(dh)
        box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        box = [min(max(v, 0), size[1 - i % 2] - 1) for i, v in enumerate(box)]
        if box[2] > box[0] and box[3] > box[1] and min(box[2] - box[0] + 1, box[3] - box[1] + 1) > 10 * scale:
            candidates.append((logit, box))
    assert len(candidates) < len(logits[0][0]), "some must be too small for this test to mean something"
    candidates.sort(key=lambda c: -c[0])
    kept = []
    for logit, a in candidates[:60]:

        def overlap(b, a=a):
            w = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
            h = max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
            areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
            return w * h / (sum(areas) - w * h)

        if all(overlap(b) <= 0.7 for _, b in kept):
            kept.append((logit, a))
    torch.testing.assert_close(boxes, torch.tensor([b for _, b in kept[:25]]), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(scores, torch.tensor([s for s, _ in kept[:25]]))


def test_attributes_are_told_the_object_and_leave_out_none():
    torch.manual_seed(0)
    x, logits = torch.randn(5, 8), torch.randn(5, 4)
    logits[0, 3] = 9.0  # background, the last
    for none_class, sees_background in itertools.product(("", "dropped", "kept"), (False, True)):
        head = AttributePredictor(8, 3, 6, 4, 16, none_class, sees_background)
        told = logits.argmax(1) if sees_background else logits[:, :3].argmax(1)
        scores = head(x, told)
        assert scores.shape == (5, 7 if none_class else 6)
        if none_class == "dropped":
            scores = scores[:, :6]
        torch.testing.assert_close(head.probabilities(x, logits), scores.softmax(1)[:, :6])


def test_pooler_reads_each_box_from_its_level():
    torch.manual_seed(0)
    levels = [torch.randn(1, 2, 64 // 2**i, 64 // 2**i) for i in range(4)]
    pooler = RoIPooler(7, (1 / 4, 1 / 8, 1 / 16, 1 / 32))
    boxes = torch.tensor(
        [[0.0, 0.0, 40.0, 40.0], [0.0, 0.0, 120.0, 120.0], [0.0, 0.0, 230.0, 230.0], [0.0, 0.0, 256.0, 1000.0]]
    )
    pooled = pooler(levels, [boxes])
    for box, level, out in zip(boxes, (0, 1, 2, 3), pooled, strict=True):
        rois = torch.cat([torch.zeros(1), box])[None]
        expected = roi_align(levels[level], rois, (7, 7), pooler.scales[level], 0, True)[0]
        torch.testing.assert_close(out, expected)


def test_proposals_are_suppressed_limited_and_inside():
    torch.manual_seed(0)
    rpn = RPN(in_channels=4, anchor_sizes=((32, 64),), strides=(16,), pre_nms_top=200, post_nms_top=15, min_size=4.0)
    nn.init.normal_(rpn.rpn_head.objectness_logits.weight, std=1)
    nn.init.normal_(rpn.rpn_head.anchor_deltas.weight, std=0.1)
    boxes, scores = rpn([torch.randn(1, 4, 8, 8)], [(110, 125)])[0]
    assert 0 < len(boxes) <= 15
    assert (scores[:-1] >= scores[1:]).all()
    overlap = box_iou(boxes, boxes) - torch.eye(len(boxes))
    assert overlap.max() <= 0.7
    assert boxes[:, 2].max() <= 125 and boxes[:, 3].max() <= 110 and boxes.min() >= 0
    assert ((boxes[:, 2:] - boxes[:, :2]) > 4).all()


def test_detections_are_chosen_per_class():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0, 0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0, 50.0, 50.0, 60.0, 60.0]])
    scores = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.04, 0.46]])
    kept, values, classes, source = select_detections(boxes, scores, (100, 100), 0.05, 0.5, 10)
    assert classes.tolist() == [0, 1] and source.tolist() == [0, 0]
    torch.testing.assert_close(values, torch.tensor([0.6, 0.3]))
    torch.testing.assert_close(kept, torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 2))
