"""The choice of regions against plain per-class suppression."""

import numpy as np
import pytest
import torch
from torchvision.ops import nms

from console import UserError
from extractors.networks.rcnn import Proposals
from extractors.regions import build_extractor, choose_regions, surviving_confidence


def random_proposals(count=60, classes=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 10 + torch.rand(count, 2, generator=generator) * 40], dim=1)
    logits = torch.randn(count, classes + 1, generator=generator) * 2
    regressed = boxes[:, None] + torch.randn(count, classes, 4, generator=generator)
    return Proposals(boxes, regressed, logits.softmax(-1)[:, :-1], torch.randn(count, 5, generator=generator), None)


def naive_confidence(boxes, probabilities, threshold):
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


def test_lxmert_relaxes_suppression_until_enough_are_left():
    p = random_proposals()
    scores, classes = p.probabilities.max(1)
    boxes = p.regressed[torch.arange(60), classes]
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
        build_extractor(architecture="scenes_regions", weights="x", engine="caffe")
    with pytest.raises(UserError, match="unknown architecture 'resnet'"):
        build_extractor(architecture="resnet", weights="x")
    with pytest.raises(UserError, match="missing.safetensors"):
        build_extractor(architecture="scenes_regions", weights=str(tmp_path / "missing.safetensors"))


def test_scores_are_finite_numbers():
    p = random_proposals()
    assert np.isfinite(choose_regions(p, "caffe", 36)[2].numpy()).all()
