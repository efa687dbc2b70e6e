"""The embedded detectors' training: losses against hand-made cases, and a few real steps."""

import math

import numpy as np
import pytest
import torch
from safetensors import safe_open

from catalog.scenes import render_scene
from core.console import UserError
from extractors.networks import build, load_checkpoint
from extractors.networks.boxes import encode_boxes
from extractors.training import box_losses, make_example, rpn_loss, sample_regions, train


def test_examples_are_scenes_at_the_networks_scale():
    spec = build("scenes_regions").meta.input
    example = make_example(5, spec, np.random.default_rng(0))
    height, width = example.panoptic.shape
    scale = example.pixels.shape[2] / width
    assert min(example.pixels.shape[1:]) == spec.min_size
    for box, segment in zip(example.boxes, example.segment_ids, strict=True):
        ys, xs = torch.nonzero(example.panoptic == segment, as_tuple=True)
        expected = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
        torch.testing.assert_close(box / scale, expected, rtol=0.02, atol=0.6)
    assert (example.colors[~example.is_thing] == -1).all() and (example.colors[example.is_thing] >= 0).all()
    assert height <= 240


def test_proposal_loss_of_a_perfect_head_is_nil_and_of_a_blind_one_is_not():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 70.0, 70.0], [100.0, 100.0, 120.0, 120.0]])
    objects = [torch.tensor([[1.0, 0.0, 11.0, 10.0]])]
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 0] = encode_boxes(anchors[:1], objects[0], (1.0, 1.0, 1.0, 1.0))[0]
    perfect = rpn_loss(anchors, torch.tensor([[40.0, -40.0, -40.0]]), deltas, objects)
    assert float(perfect) == pytest.approx(0, abs=1e-6)
    blind = rpn_loss(anchors, torch.zeros(1, 3), deltas, objects)
    assert float(blind) == pytest.approx(3 * math.log(2) / 128, rel=1e-4)


def test_sampled_regions_are_labelled_by_overlap():
    torch.manual_seed(0)
    objects = torch.tensor([[0.0, 0.0, 20.0, 20.0]])
    proposals = torch.tensor([[1.0, 1.0, 21.0, 21.0], [15.0, 15.0, 40.0, 40.0], [60.0, 60.0, 80.0, 80.0]])
    ((boxes, matched, foreground),) = sample_regions([proposals], [objects], 8, fraction=0.5)
    assert foreground.sum() == 2 and len(boxes) == 4, "the near proposal and the object itself"
    assert (matched[foreground] == 0).all()
    assert (boxes[foreground][:, 0] < 2).all()


def test_box_loss_counts_the_own_class_only():
    regions = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0]])
    goals = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 9.0, 9.0]])
    logits = torch.tensor([[30.0, 0.0, 0.0], [0.0, 0.0, 30.0]])
    deltas = torch.zeros(2, 8)
    deltas[:, 4:] = 9.0  # of the other class: must not matter
    loss = box_losses(logits, deltas, regions, goals, torch.tensor([0, 2]), (10.0, 10.0, 5.0, 5.0))
    assert float(loss) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["regions", "grids", "panoptic"])
def test_a_few_steps_make_weights_that_load(tmp_path, name):
    output = tmp_path / "weights.safetensors"
    train(network_name=name, output=output, steps=2, batch_size=1, lr=1e-3, init=None, per_image=8, seed=1)
    with safe_open(output, "pt") as file:
        assert file.metadata()["architecture"] == f"scenes_{name}"
    network = build(f"scenes_{name}")
    load_checkpoint(network, output)
    assert all(torch.isfinite(v).all() for v in network.state_dict().values())


def test_divergence_is_reported(tmp_path):
    with pytest.raises(UserError, match="lower --lr"):
        train(
            network_name="regions", output=tmp_path / "w.safetensors", steps=4, batch_size=1, lr=1e30, init=None,
            per_image=8, seed=1,
        )  # fmt: skip


def test_shipped_weights_find_what_is_drawn(repository):
    """One held-out scene: the 36 boxes cover its objects."""
    from torchvision.ops import box_iou

    from extractors.engines import build_extractor
    from extractors.images import make_batch, resize_shortest_edge

    weights = str(repository / "weights/scenes_regions.safetensors")
    extractor = build_extractor("regions", architecture="scenes_regions", weights=weights)
    spec = extractor.input
    found = total = 0
    for index in range(6):
        scene = render_scene(31337, index)
        image = resize_shortest_edge(scene.image, spec.min_size, spec.max_size)
        (rows,) = extractor(make_batch([image], [0], [scene.image.shape[:2]], spec))
        boxes = torch.from_numpy(rows["boxes"][: rows["counts"]])
        truth = torch.tensor([s["bbox"] for s in scene.segments])
        found += int((box_iou(truth, boxes).max(1).values >= 0.5).sum())
        total += len(truth)
    assert found / total >= 0.8
