"""The choice of regions against plain per-class suppression."""

import numpy as np
import pytest
import torch
from torchvision.ops import nms

from core.console import UserError
from extractors.engines import build_extractor
from extractors.images import InputSpec, make_batch
from extractors.loading import NetworkRunner, load_network
from extractors.networks import build
from extractors.networks.checkpoint import save_checkpoint
from extractors.networks.rcnn import Meta, Proposals
from extractors.regions import RegionExtractor, choose_regions, surviving_confidence


def random_proposals(count=60, classes=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 10 + torch.rand(count, 2, generator=generator) * 40], dim=1)
    logits = torch.randn(count, classes + 1, generator=generator) * 2
    deltas = torch.randn(count, classes * 4, generator=generator)
    features = torch.randn(count, 5, generator=generator)
    return Proposals(boxes, deltas, logits.softmax(-1)[:, :-1], features, None, size=(100, 100))


def naive_confidence(boxes, probabilities, threshold):
    """The published loop: one suppression per class."""
    confidence = torch.zeros(len(boxes))
    for c in range(probabilities.shape[1]):
        for i in nms(boxes, probabilities[:, c], threshold).tolist():
            confidence[i] = max(confidence[i], probabilities[i, c])
    return confidence


@pytest.mark.parametrize("seed", range(5))
def test_confidence_is_the_best_class_score_that_survives(seed):
    p = random_proposals(seed=seed)
    expected = naive_confidence(p.boxes, p.probabilities, 0.3)
    torch.testing.assert_close(surviving_confidence(p.boxes, p.probabilities), expected, rtol=0, atol=0)
    assert (expected == 0).any(), "suppression must act for this test to mean something"


@pytest.mark.parametrize("classes", [3, 400])
@pytest.mark.parametrize("count", [1, 5, 20])
def test_the_best_confidences_are_exact_without_looking_at_every_score(classes, count, monkeypatch):
    p = random_proposals(count=150, classes=classes, seed=classes)
    expected = naive_confidence(p.boxes, p.probabilities, 0.3)
    dense = surviving_confidence(p.boxes, p.probabilities)
    torch.testing.assert_close(dense, expected, rtol=0, atol=0)
    monkeypatch.setattr("extractors.regions._dense_confidence", None)
    found = surviving_confidence(p.boxes, p.probabilities, count)
    best = expected.argsort(descending=True, stable=True)[:count]
    assert torch.equal(found.argsort(descending=True, stable=True)[:count], best)
    torch.testing.assert_close(found[best], expected[best], rtol=0, atol=0)


def test_flat_scores_are_looked_at_in_full():
    boxes = random_proposals(count=50).boxes
    probabilities = torch.full((50, 2000), 4e-4)
    probabilities[7, 3] = 5e-4
    found = surviving_confidence(boxes, probabilities, 10)
    torch.testing.assert_close(found, naive_confidence(boxes, probabilities, 0.3))
    assert int(found.argmax()) == 7


def inclusive_nms(boxes, scores, threshold):
    """Suppression as the Caffe code's, in a plain loop: widths are x1 - x0 + 1."""
    kept, order = [], scores.argsort(descending=True, stable=True).tolist()
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    while order:
        i = order.pop(0)
        kept.append(i)
        rest = []
        for j in order:
            width = max(0.0, float(min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0])) + 1)
            height = max(0.0, float(min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1])) + 1)
            overlap = width * height / float(area[i] + area[j] - width * height)
            if overlap <= threshold:
                rest.append(j)
        order = rest
    return kept


def test_the_caffe_convention_counts_both_end_pixels_of_the_original_image():
    p = random_proposals(count=40)
    p.boxes = p.boxes * 0.05  # small boxes, of which one pixel is a good part
    p.inclusive = True
    found = {}
    for scale in ((1.0, 1.0), (3.0, 3.0)):
        keep, boxes, scores = choose_regions(p, "caffe", 20, scale)
        expected = torch.zeros(40)
        for c in range(p.probabilities.shape[1]):
            for i in inclusive_nms(p.boxes * scale[0], p.probabilities[:, c], 0.3):
                expected[i] = max(expected[i], p.probabilities[i, c])
        assert torch.equal(keep, expected.argsort(descending=True, stable=True)[:20])
        torch.testing.assert_close(scores, expected[keep])
        torch.testing.assert_close(boxes, p.boxes[keep] * scale[0])
        found[scale] = keep
    assert not torch.equal(*found.values()), "the added pixel must matter for this test to mean something"
    p.inclusive = False
    assert not torch.equal(choose_regions(p, "caffe", 20)[0], found[1.0, 1.0])


def test_caffe_takes_the_most_confident_proposals():
    p = random_proposals()
    keep, boxes, scores = choose_regions(p, "caffe", 36)
    expected = naive_confidence(p.boxes, p.probabilities, 0.3)
    assert len(keep) == 36
    assert torch.equal(boxes, p.boxes[keep])
    assert torch.equal(scores, expected[keep])
    assert scores.min() >= torch.sort(expected, descending=True).values[35]


def test_adaptive_keeps_the_confident_but_never_too_few():
    p = random_proposals()
    confident = int((naive_confidence(p.boxes, p.probabilities, 0.3) >= 0.2).sum())
    assert len(choose_regions(p, "adaptive", 100)[0]) == max(10, confident)
    assert len(choose_regions(p, "adaptive", 12)[0]) == 12
    p.probabilities = p.probabilities * 0.01
    assert len(choose_regions(p, "adaptive", 100)[0]) == 10


def test_adaptive_keeps_the_order_of_the_proposals():
    p = random_proposals()
    confidence = naive_confidence(p.boxes, p.probabilities, 0.3)
    confident = torch.nonzero(confidence >= 0.2).flatten()
    assert 10 <= len(confident) < 60 and (confidence[confident].diff() > 0).any()
    keep, boxes, scores = choose_regions(p, "adaptive", 60)
    assert torch.equal(keep, confident) and torch.equal(scores, confidence[keep]) and torch.equal(boxes, p.boxes[keep])
    best = confidence.argsort(descending=True, stable=True)
    assert torch.equal(choose_regions(p, "adaptive", len(confident) - 1)[0], best[: len(confident) - 1])
    p.probabilities = p.probabilities * 0.01
    assert torch.equal(choose_regions(p, "adaptive", 60)[0], best[:10])


class Fixed(torch.nn.Module):
    """A detector that finds the given proposals everywhere."""

    region_size = 5

    def __init__(self, proposals: Proposals, resize: str) -> None:
        super().__init__()
        self.proposals, self.roi_heads = proposals, torch.nn.Module()
        self.meta = Meta(InputSpec(100, 200, "BGR", (0.0,) * 3, (1.0,) * 3, 1, resize))

    def regions(self, pixels, sizes, scales=None):
        return [self.proposals for _ in sizes]


def test_a_region_has_what_it_was_chosen_by_and_the_score_of_its_class():
    """Two numbers of two meanings: a box suppressed in its best class is chosen by another."""
    p = random_proposals()
    extractor = RegionExtractor(NetworkRunner(Fixed(p, "pillow"), "x"), num_regions=60)
    (rows,) = extractor(make_batch([np.zeros((100, 100, 3), np.uint8)], [0], [(100, 100)], extractor.input))
    keep = naive_confidence(p.boxes, p.probabilities, 0.3).argsort(descending=True, stable=True)
    best, classes = p.probabilities[keep].max(1)
    assert np.array_equal(rows["class_ids"], classes) and np.array_equal(rows["class_scores"], best)
    assert np.array_equal(rows["scores"], naive_confidence(p.boxes, p.probabilities, 0.3)[keep])
    assert (rows["scores"] < rows["class_scores"]).any()


def test_boxes_of_a_network_fed_by_one_scale_are_divided_by_it():
    p = random_proposals()
    for resize, expected in (("float", 1.01), ("pillow", 101 / 100)):
        extractor = RegionExtractor(NetworkRunner(Fixed(p, resize), "x"), num_regions=4)
        batch = make_batch([np.zeros((100, 147, 3), np.uint8)], [0], [(101, 149)], extractor.input)
        (rows,) = extractor(batch)
        keep = choose_regions(p, "caffe", 4)[0]
        width = 1.01 if resize == "float" else 149 / 147
        assert np.allclose(rows["boxes"], p.boxes[keep] * torch.tensor([width, expected] * 2), rtol=1e-6)


def test_no_images_give_no_rows():
    extractor = RegionExtractor(NetworkRunner(Fixed(random_proposals(), "pillow"), "x"))
    assert extractor(make_batch([], [], [], extractor.input)) == []


@pytest.mark.parametrize("architecture", ["vg_r50_c4_d2", "vg_r101_c4_d2", "vg_r101_c4_caffe_milvlg"])
def test_what_the_port_resizes_in_floats_is_fed_so(architecture):
    assert build(architecture, blocks=(1, 1, 1, 1), res2_channels=16, width_per_group=4).meta.input.resize == "float"


def test_lxmert_relaxes_suppression_until_enough_are_left():
    p = random_proposals()
    scores, classes = p.probabilities.max(1)
    boxes = p.regressed(torch.arange(60), classes)
    assert boxes.min() >= 0 and boxes.max() <= 100
    for limit in (5, 20, 45):
        keep, chosen, chosen_scores = choose_regions(p, "lxmert", limit)
        threshold = next(t for t in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9) if len(nms(boxes, scores, t)) >= limit)
        assert torch.equal(keep, nms(boxes, scores, threshold)[:limit])
        assert torch.equal(chosen, boxes[keep]) and torch.equal(chosen_scores, scores[keep])


def test_no_proposals_give_no_regions():
    p = random_proposals(count=0)
    for selection in ("caffe", "adaptive", "lxmert"):
        assert len(choose_regions(p, selection, 36)[0]) == 0


def test_settings_are_checked_by_name(tmp_path):
    with pytest.raises(UserError, match="unknown engine 'caffe'"):
        build_extractor("regions", architecture="scenes_regions", weights="x", engine="caffe")
    with pytest.raises(UserError, match="unknown architecture 'resnet'"):
        build_extractor("regions", architecture="resnet", weights="x")
    with pytest.raises(UserError, match="missing.safetensors"):
        build_extractor("regions", architecture="scenes_regions", weights=str(tmp_path / "missing.safetensors"))


def test_weights_of_another_architecture_are_refused_by_their_own_word(repository, tmp_path):
    grids = repository / "weights/scenes_grids.safetensors"
    with pytest.raises(UserError, match="are of scenes_grids, not scenes_regions"):
        load_network("scenes_regions", grids)
    unsaid = tmp_path / "unsaid.safetensors"
    save_checkpoint(build("scenes_regions"), unsaid)
    load_network("scenes_regions", unsaid)


def test_scores_are_finite_numbers():
    p = random_proposals()
    assert np.isfinite(choose_regions(p, "caffe", 36)[2].numpy()).all()
