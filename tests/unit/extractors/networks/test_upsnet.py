"""UPSNet's parts against plain loops written from a description of its code, and its whole against a recording of ours.

`fixtures/upsnet.npz` holds what a narrow network with seeded weights made of two photographs, on the day when the networks of
full size gave the original code's numbers on seeded weights: the same lists of detections and instances, and maps equal in all
but at most one pixel. It is made by `python -m tests.unit.extractors.networks.test_upsnet`.
"""

import dataclasses
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from benchmarks.detectors import photographs
from catalog.categories import UPSNET_TO_COCO
from extractors.images import make_batch, resize_image
from extractors.networks import build
from extractors.networks.boxes import AnchorGenerator
from extractors.networks.layers import fold_norms
from extractors.networks.roi import RoIPooler
from extractors.networks.upsnet import UPSNetRPN, decode_inclusive, select_instances
from extractors.networks.upsnet_panoptic import (
    Instance,
    merge_labels,
    panoptic_labels,
    panoptic_probabilities,
    remove_masks,
    semantic_labels,
    source_pixels,
    upsampled,
)
from tests.unit.extractors.networks.narrow_upsnet import INPUT, NARROW, narrow

FIXTURE = Path(__file__).resolve().parents[3] / "fixtures" / "upsnet.npz"


# ---- boxes


def test_anchors_are_py_faster_rcnns():
    expected = {
        4: [(-22, -10, 25, 13), (-14, -14, 17, 17), (-10, -22, 13, 25)],
        8: [(-40, -20, 47, 27), (-28, -28, 35, 35), (-20, -44, 27, 51)],
        16: [(-84, -40, 99, 55), (-56, -56, 71, 71), (-36, -80, 51, 95)],
        32: [(-164, -72, 195, 103), (-112, -112, 143, 143), (-76, -168, 107, 199)],
        64: [(-332, -152, 395, 215), (-224, -224, 287, 287), (-148, -328, 211, 391)],
    }
    sizes = tuple((8 * stride,) for stride in expected)
    generator = AnchorGenerator(sizes, (0.5, 1.0, 2.0), tuple(expected), rounded=True)
    levels = generator([torch.zeros(1, 1, 2, 3)] * 5)
    for (stride, anchors), found in zip(expected.items(), levels, strict=True):
        for row in range(2):
            for column in range(3):
                corner = torch.tensor([column, row, column, row]) * stride
                own = found[(row * 3 + column) * 3 :][:3]
                assert torch.equal(own, torch.tensor(anchors, dtype=torch.float32) + corner)


def decoded(box, deltas, weights, size):
    """One inclusive box moved, in double precision."""
    w, h = box[2] - box[0] + 1, box[3] - box[1] + 1
    dx, dy, dw, dh = (d / weight for d, weight in zip(deltas, weights, strict=True))
    cx, cy = box[0] + 0.5 * w + dx * w, box[1] + 0.5 * h + dy * h
    w, h = w * math.exp(min(dw, math.log(1000 / 16))), h * math.exp(min(dh, math.log(1000 / 16)))
    corners = cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w - 1, cy + 0.5 * h - 1
    return [min(max(v, 0.0), size[1 - i % 2] - 1.0) for i, v in enumerate(corners)]


def overlap(a, b):
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return w * h / (sum(areas) - w * h)


def suppressed(boxes, threshold):
    """Places of boxes, best first, that no better kept one overlaps by more."""
    kept = []
    for i, box in enumerate(boxes):
        if all(overlap(box, boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def test_decoding_names_the_last_pixel():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(40, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + torch.rand(40, 2, generator=generator) * 50], 1)
    deltas = torch.randn(40, 8, generator=generator) * 4
    deltas[0], boxes[0] = 0.0, torch.tensor([3.0, 4.0, 3.0, 9.0])  # one pixel wide, and not moved
    found = decode_inclusive(deltas, boxes, (10.0, 10.0, 5.0, 5.0), (70, 90))
    assert torch.equal(found[0, 0], boxes[0])
    for box, own, result in zip(boxes.tolist(), deltas.view(40, 2, 4).tolist(), found, strict=True):
        expected = [decoded(box, d, (10, 10, 5, 5), (70, 90)) for d in own]
        torch.testing.assert_close(result, torch.tensor(expected), rtol=1e-5, atol=1e-3)


def test_proposals_follow_upsnets_order_of_work():
    torch.manual_seed(0)
    rpn = UPSNetRPN(
        in_channels=4,
        anchor_sizes=((32,), (64,)),
        strides=(4, 8),
        pre_nms_top=60,
        post_nms_top=50,
        rounded_anchors=True,
    )
    nn.init.normal_(rpn.rpn_head.objectness_logits.weight, std=1)
    nn.init.normal_(rpn.rpn_head.anchor_deltas.weight, std=0.3)
    levels, sizes = [torch.randn(2, 4, 16, 24), torch.randn(2, 4, 8, 12)], [(60, 90), (64, 71)]
    logits, deltas = rpn.rpn_head(levels)
    anchors = rpn.anchor_generator(levels)
    for b, (size, (boxes, scores)) in enumerate(zip(sizes, rpn(levels, sizes), strict=True)):
        found = []
        for level in range(2):
            ranks = {i: -logit for i, logit in enumerate(logits[level][b].tolist())}
            order = sorted(ranks, key=ranks.get)[:60]
            own = [
                decoded(a, d, (1,) * 4, size)
                for a, d in zip(anchors[level][order].tolist(), deltas[level][b, order].tolist(), strict=True)
            ]
            found += [(float(logits[level][b, order[i]].detach().sigmoid()), own[i]) for i in suppressed(own, 0.7)]
        found = sorted(found, key=lambda item: -item[0])[:50]
        torch.testing.assert_close(scores, torch.tensor([s for s, _ in found]))
        torch.testing.assert_close(boxes, torch.tensor([box for _, box in found]), rtol=1e-4, atol=1e-3)
        assert len(boxes) == 50 and boxes[:, 2].max() <= size[1] - 1


def test_proposals_without_width_stay():
    rpn = UPSNetRPN(in_channels=1, anchor_sizes=((32,),), strides=(4,), pre_nms_top=9, post_nms_top=9)
    for layer in (rpn.rpn_head.objectness_logits, rpn.rpn_head.anchor_deltas):
        nn.init.zeros_(layer.weight)
    rpn.rpn_head.anchor_deltas.bias.data.view(3, 4)[:, 0] = 50.0  # all far to the right: clipped to the last column
    ((boxes, _),) = rpn([torch.zeros(1, 1, 1, 1)], [(4, 4)])
    assert len(boxes) and (boxes[:, 0] == 3).all() and (boxes[:, 2] == 3).all()


def test_the_level_of_a_region_counts_both_ends():
    torch.manual_seed(0)
    pooler = RoIPooler(7, (1 / 4, 1 / 8, 1 / 16, 1 / 32), "align_legacy", sampling_ratio=2, inclusive=True)
    boxes = torch.tensor([[0.0, 0, 110, 110], [0, 0, 111, 111], [9, 9, 232, 232], [0, 0, 446, 446], [5, 5, 5, 5]])
    assert pooler.level(boxes).tolist() == [0, 1, 2, 2, 0]
    assert RoIPooler(7, (1 / 4, 1 / 8)).level(boxes[1:2]).tolist() == [0]
    levels = [torch.randn(1, 2, 128 // 2**i, 128 // 2**i) for i in range(4)]
    pooled = pooler(levels, [boxes])
    for box, level, out in zip(boxes, (0, 1, 2, 2, 0), pooled, strict=True):
        roi = torch.cat([torch.zeros(1), box])[None]
        expected = roi_align(levels[level], roi, (7, 7), 0.25 / 2**level, sampling_ratio=2, aligned=False)
        torch.testing.assert_close(out, expected[0])


@pytest.mark.parametrize("across", [False, True])
def test_instances_are_chosen_within_or_across_classes(across):
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(30, 3, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + 5 + torch.rand(30, 3, 2, generator=generator) * 20], 2)
    scores = torch.rand(30, 3, generator=generator)
    found = select_instances(boxes, scores, 0.3, 0.5, 1000, across)
    pairs = sorted(((float(s), r, c) for (r, c), s in np.ndenumerate(scores.numpy()) if s > 0.3), reverse=True)
    groups = [pairs] if across else [[p for p in pairs if p[2] == c] for c in range(3)]
    expected = []
    for group in groups:
        expected += [group[i] for i in suppressed([boxes[r, c].tolist() for _, r, c in group], 0.5)]
    assert found[2].tolist() == [c for _, _, c in expected]
    torch.testing.assert_close(found[1], torch.tensor([s for s, _, _ in expected]))
    torch.testing.assert_close(found[0], torch.stack([boxes[r, c] for _, r, c in expected]))


def test_ties_with_the_last_instance_are_kept():
    corner = torch.arange(6.0)[:, None] * 20
    boxes = torch.cat([corner, corner, corner + 9, corner + 9], 1)[:, None]
    scores = torch.tensor([0.9, 0.5, 0.7, 0.5, 0.5, 0.4])[:, None]
    assert select_instances(boxes, scores, 0.1, 0.5, 3)[1].tolist() == pytest.approx([0.9, 0.7, 0.5, 0.5, 0.5])
    for across in (False, True):
        nothing = select_instances(boxes, scores, 0.95, 0.5, 3, across)
        assert [tuple(x.shape) for x in nothing] == [(0, 4), (0,), (0,)]


# ---- panoptic head


def random_candidates(seed, count, size, classes=3):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([size[1] - 12.0, size[0] - 12.0])
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 30], 1)
    boxes = torch.minimum(boxes, torch.tensor([size[1] - 1.0, size[0] - 1.0] * 2))
    boxes[0, 2:] = boxes[0, :2] + 0.25  # one pixel
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    masks = torch.randn(count, 7, 7, generator=generator) + 1.0
    return boxes, scores, torch.randint(classes, (count,), generator=generator), masks


def removed(boxes, classes, masks, size, limit):
    """Places of the kept candidates and their masks' logits on the whole map (n, H, W)."""
    kept, maps, taken = [], [], Counter()
    for i, box in enumerate(boxes.tolist()):
        x0, y0, x1, y1 = map(int, box)
        w, h = max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1)
        logits = np.zeros(size, "f4")
        pasted = F.interpolate(masks[i][None, None], size=(h, w), mode="bilinear", align_corners=False)[0, 0].numpy()
        logits[y0 : y0 + h, x0 : x0 + w] = pasted[: size[0] - y0, : size[1] - x0]
        own = {(int(classes[i]), y, x) for y, x in np.argwhere(logits > 0).tolist()}
        if not own or sum(taken[p] > 0 for p in own) / len(own) > limit:
            continue
        taken.update(own)
        kept.append(i)
        maps.append(logits)
    if not kept:
        return [0], np.zeros((1, *size), "f4")
    return kept, np.stack(maps)


@pytest.mark.parametrize("seed", range(4))
def test_masks_on_masks_of_their_class_go(seed):
    size = (64, 96)
    boxes, scores, classes, masks = random_candidates(seed, 25, size)
    masks[3] = -1.0  # empty
    instances = remove_masks(boxes, scores, classes, masks, size, 0.3)
    kept, maps = removed(boxes, classes, masks, size, 0.3)
    assert [instance.index for instance in instances] == kept and 3 not in kept and 5 < len(kept) < 24
    assert [instance.thing for instance in instances] == classes[kept].tolist()
    for instance, expected in zip(instances, maps, strict=True):
        left, top = map(int, instance.box[:2])
        whole = np.zeros(size, "f4")
        whole[top : top + instance.mask.shape[0], left : left + instance.mask.shape[1]] = instance.mask
        np.testing.assert_array_equal(whole, expected)


def test_one_instance_always_stays():
    boxes, scores, classes, masks = random_candidates(0, 4, (64, 64))
    (first,) = remove_masks(boxes, scores, classes, masks * 0 - 1, (64, 64), 0.3)
    assert first.index == 0 and first.thing == int(classes[0]) and first.mask.numel() == 0
    (nothing,) = remove_masks(boxes[:0], scores[:0], classes[:0], masks[:0], (64, 64), 0.3)
    assert (nothing.index, nothing.thing, nothing.score) == (-1, -1, 1.0) and nothing.mask.numel() == 0


def naive_labels(logits, instances, size, num_stuff):
    """Labels and channels (stuff, instances, unknown) at every pixel of the network's input."""
    full = F.interpolate(logits[None], scale_factor=4.0, mode="bilinear", align_corners=False)[0].numpy()
    terms, maps = np.zeros((2, len(instances), *size), "f4")
    for term, mask, instance in zip(terms, maps, instances, strict=True):
        x0, y0, x1, y1 = instance.box
        if instance.thing >= 0:
            rows = slice(int(y0), int(np.round(np.float32(y1)) + 1))
            columns = slice(int(x0), int(np.round(np.float32(x1)) + 1))
            term[rows, columns] = full[num_stuff + instance.thing, rows, columns]
        h, w = instance.mask.shape
        mask[int(y0) : int(y0) + h, int(x0) : int(x0) + w] = instance.mask
    unknown = full[num_stuff:].max(0) - terms.max(0)
    channels = np.concatenate([full[:num_stuff], terms + maps, unknown[None]])
    return channels.argmax(0), full.argmax(0), channels


CASES = {"usual": (20, 0.0), "two": (2, 0.0), "one": (1, 0.0), "none": (0, 0.0), "all negative": (6, -9.0)}


@pytest.mark.parametrize("case", CASES)
def test_every_pixel_gets_its_best_channel(case):
    count, shift = CASES[case]
    size, num_stuff, things = (64, 96), 5, 3
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(num_stuff + things, 16, 24, generator=generator) + shift
    boxes, scores, classes, masks = random_candidates(7, max(count, 1), size)
    boxes[-1, 2:] = boxes[-1, 2:].floor() + 0.5  # half a pixel: rounds to even
    chosen = slice(count)
    instances = remove_masks(boxes[chosen], scores[chosen], classes[chosen], masks[chosen], size, 0.3)
    expected, semantic, channels = naive_labels(logits, instances, size, num_stuff)
    rows, columns = np.arange(64), np.arange(96)
    labels, best = panoptic_labels(logits, instances, rows, columns, num_stuff)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(best, semantic)
    np.testing.assert_array_equal(semantic_labels(logits, rows, columns), semantic)
    if case == "all negative":
        assert (expected >= num_stuff).all()
    else:
        assert len(np.unique(expected)) >= num_stuff + 1
    # Only some of the pixels.
    rows, columns = np.array([0, 3, 4, 31, 63]), np.array([1, 2, 50, 95])
    labels, best = panoptic_labels(logits, instances, rows, columns, num_stuff)
    np.testing.assert_array_equal(labels, expected[np.ix_(rows, columns)])
    np.testing.assert_array_equal(best, semantic[np.ix_(rows, columns)])
    soft = panoptic_probabilities(logits, instances, rows, columns, num_stuff).numpy()
    shares = torch.from_numpy(channels).softmax(0).numpy()[:, rows][:, :, columns]
    total = shares[:-1].sum(0)
    np.testing.assert_allclose(soft.sum(0), total, atol=1e-5)
    np.testing.assert_allclose(soft[: num_stuff - 1], shares[: num_stuff - 1], atol=1e-5)


def test_parts_of_the_map_are_the_map():
    logits = torch.randn(4, 150, 30, generator=torch.Generator().manual_seed(0))
    full = F.interpolate(logits[None], scale_factor=4.0, mode="bilinear", align_corners=False)[0]
    parts = list(upsampled(logits, np.arange(600), np.arange(120)))
    assert len(parts) > 3 and parts[-1][0].stop == 600
    torch.testing.assert_close(torch.cat([values for _, values in parts]), full.permute(1, 2, 0))


def test_the_way_back_floors():
    assert source_pixels(25, 40, 0.625).tolist() == [int(i * 0.625) for i in range(40)]
    assert source_pixels(8, 5, 1.6).tolist() == [0, 1, 3, 4, 6]
    # A shrunk image: the scale's own sizes end one pixel early, and the last source is taken again.
    taken = source_pixels(800, 3000, 800 / 3000)
    assert len(taken) == 3000 and taken[-1] == 799 and (np.diff(taken) >= 0).all()


def merged(ids, semantic, things, num_stuff, limit):
    """(category, instance number) per pixel from its description, 255 void; `ids`: stuff, instances, then unknown."""
    category, number = ids.copy(), np.zeros_like(ids)
    category[ids == num_stuff + len(things)] = 255
    count = 0
    for k, thing in enumerate(things):
        region = ids == num_stuff + k
        if not region.any():
            continue
        count += 1
        seen = np.bincount(semantic[region])
        major = int(seen.argmax())
        own = num_stuff + thing
        if major != own and major < num_stuff and seen[major] >= 0.5 * region.sum():
            category[region] = major
        else:
            category[region], number[region] = own, count
    for stuff in range(num_stuff):
        if (category == stuff).sum() < limit:
            category[category == stuff] = 255
    number[category == 255] = 0
    return category, number


@pytest.mark.parametrize("seed", range(6))
def test_the_merge_listens_to_the_semantic_branch(seed):
    rng = np.random.default_rng(seed)
    num_stuff, things = 4, [0, 1, 1, 2, 0] if seed else [-1]
    blocks = rng.integers(0, num_stuff + len(things) + 1, (6, 8))
    blocks[blocks == num_stuff + 1] = 0  # an instance without pixels
    ids = np.kron(blocks, np.ones((5, 5), int))
    semantic = np.where(rng.random(ids.shape) < 0.55, rng.integers(0, 2, ids.shape), rng.integers(0, 7, ids.shape))
    semantic[ids == num_stuff] = 0 if seed % 2 else num_stuff
    instances = [Instance(i, thing, 0.9 - i / 10, (0, 0, 0, 0), torch.zeros(0, 0)) for i, thing in enumerate(things)]
    found, segments = merge_labels(
        torch.from_numpy(ids), torch.from_numpy(semantic.astype("u1")), instances, num_stuff, 300
    )
    category, number = merged(ids, semantic, things, num_stuff, 300)
    own_category, own_number = np.full_like(category, 255), np.zeros_like(number)
    for segment in segments:
        region = found.numpy() == segment["id"]
        assert segment["area"] == region.sum() > 0
        is_thing = segment["is_thing"]
        own_category[region] = segment["category"] + num_stuff if is_thing else segment["category"] - 1
        own_number[region] = segment["instance"]
        assert (segment["instance"] > 0) == ("score" in segment)
    np.testing.assert_array_equal(own_category, category)
    np.testing.assert_array_equal(own_number, number)
    assert (category == 255).any()


# ---- the whole


def seen(network, image):
    spec = network.meta.input
    return make_batch([resize_image(image, spec)], [0], [image.shape[:2]], spec)


def outputs(network, image):
    batch = seen(network, image)
    (result,) = network.panoptic(batch.pixels, batch.sizes, batch.original_sizes)
    (semantic,) = network.semantic(batch.pixels, batch.sizes, batch.original_sizes)
    assert result.labels.shape == semantic.labels.shape == image.shape[:2]
    assert (result.labels == semantic.labels).float().mean() > 0.9999  # the branch alone rounds as usual
    rows = [(s["is_thing"], s["category"], s["instance"], s["area"], s.get("score", 0.0)) for s in result.segments]
    instances = [(i.index, i.thing, i.score, *i.box, float(i.mask.sum())) for i in result.instances]
    return {
        "labels": result.labels.numpy(),
        "segment_map": result.segment_map.numpy().astype("u1"),
        "segments": np.array(rows, "f4"),
        "instances": np.array(instances, "f4"),
    }


def images():
    return list(photographs(("coffee.png", "chelsea.png")).values())[:2]


def assert_same(found, expected):
    assert found["instances"].shape == expected["instances"].shape
    np.testing.assert_allclose(found["instances"][:, :7], expected["instances"][:, :7], rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(found["instances"][:, 7], expected["instances"][:, 7], rtol=1e-3, atol=0.5)
    for name in ("labels", "segment_map"):
        assert (found[name] == expected[name]).mean() > 0.9995
    assert found["segments"].shape == expected["segments"].shape
    np.testing.assert_array_equal(found["segments"][:, :3], expected["segments"][:, :3])


def recorded(architecture):
    with np.load(FIXTURE) as file:
        return [
            {key.split("/")[2]: file[key] for key in file if key.startswith(f"{architecture}/{i}/")} for i in range(2)
        ]


@pytest.mark.parametrize("architecture", ["upsnet_r50", "upsnet_r101_dcn"])
def test_same_results_as_recorded(architecture):
    network = narrow(architecture)
    fold_norms(network)
    for image, expected in zip(images(), recorded(architecture), strict=True):
        assert len(expected["instances"]) > 5 and len(expected["segments"]) > 5
        assert len(np.unique(expected["labels"])) > 8 and (expected["segment_map"] == 0).any()
        assert_same(outputs(network, image), expected)


@pytest.mark.parametrize(
    "mistake",
    [
        {"stride_in_1x1": False},
        {"max_overlap": 0.5},
        {"candidate_threshold": 0.5},
        {"input": dataclasses.replace(INPUT, resize="pillow")},
        {"input": dataclasses.replace(INPUT, channels="RGB")},
        {"anchor_sizes": ((30,), (64,), (128,), (256,), (512,))},
        {"canonical_size": 192.0},
        {"deform": ()},
    ],
    ids=str,
)
def test_a_mistake_would_be_noticed(mistake):
    network = narrow(**mistake)
    with pytest.raises(AssertionError):
        for image, expected in zip(images(), recorded("upsnet_r101_dcn"), strict=True):
            assert_same(outputs(network, image), expected)


def test_results_do_not_depend_on_the_batch():
    """Images of several sizes in one batch: each is padded by itself, as the pyramid looks at the mean of its whole input."""
    network = narrow()
    coffee, chelsea = images()
    pictures = [coffee, chelsea, coffee[:, :300], coffee[:, :400]]
    batches = [seen(network, picture) for picture in pictures]
    height, width = (max(b.pixels.shape[i] for b in batches) for i in (2, 3))
    pixels = torch.cat(
        [F.pad(b.pixels, (0, width - b.pixels.shape[3], 0, height - b.pixels.shape[2])) for b in batches]
    )
    sizes, originals = ([size for b in batches for size in getattr(b, n)] for n in ("sizes", "original_sizes"))
    assert len({b.pixels.shape for b in batches}) == 3
    together = network.panoptic(pixels, sizes, originals)
    semantic = network.semantic(pixels, sizes, originals)
    for picture, whole, labels in zip(pictures, together, semantic, strict=True):
        alone = outputs(network, picture)
        for found, name in ((whole.labels, "labels"), (labels.labels, "labels"), (whole.segment_map, "segment_map")):
            assert (found.numpy() == alone[name]).mean() > 0.999
        assert [s["category"] for s in whole.segments] == alone["segments"][:, 1].tolist()


def test_nothing_to_see():
    """No candidate, and no mask: the semantic branch alone decides, and unknown."""
    network = narrow()
    state = network.state_dict()
    state["roi_heads.box_predictor.cls_score.bias"][-1] += 60
    result = outputs(network, images()[0])
    assert result["instances"][:, :3].tolist() == [[-1, -1, 1]] and not result["segments"][:, 0].any()
    assert len(np.unique(result["labels"])) > 8


def test_probabilities_agree_with_the_labels():
    network = narrow()
    batch = seen(network, images()[0])
    (semantic,) = network.semantic(batch.pixels, batch.sizes, batch.original_sizes)
    probabilities = semantic.probabilities()
    taken = [
        source_pixels(*sides, INPUT.scale(*batch.original_sizes[0]))
        for sides in zip(batch.sizes[0], batch.original_sizes[0], strict=True)
    ]
    rows, columns = (np.unique(places, return_inverse=True)[1] for places in taken)
    assert probabilities.shape == (133, rows.max() + 1, columns.max() + 1)
    torch.testing.assert_close(probabilities.sum(0), torch.ones(probabilities.shape[1:]))
    assert (probabilities.argmax(0)[rows][:, columns] == semantic.labels).float().mean() > 0.9999
    (panoptic,) = network.panoptic(batch.pixels, batch.sizes, batch.original_sizes)
    total = panoptic.probabilities().sum(0)
    assert total.max() <= 1 + 1e-5 and total.min() < 0.9


def test_classes_are_stuff_first():
    meta = build("upsnet_r50", **NARROW).meta
    assert (*meta.stuff_categories, *meta.thing_categories) == UPSNET_TO_COCO


if __name__ == "__main__":
    arrays = {
        f"{architecture}/{i}/{name}": value
        for architecture in ("upsnet_r50", "upsnet_r101_dcn")
        for i, image in enumerate(images())
        for name, value in outputs(narrow(architecture), image).items()
    }
    np.savez_compressed(FIXTURE, **arrays)
    print(f"{FIXTURE}: {FIXTURE.stat().st_size:,} bytes")
