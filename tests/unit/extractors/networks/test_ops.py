"""torchvision's operators, got at without importing torchvision."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision import ops as expected

from extractors.networks import ops

ROOT = Path(__file__).parents[4]


def boxes(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = 50 * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + 40 * torch.rand(count, 2, generator=generator)], dim=1)


# 4,000 numbers are 1,000 boxes: from there on another way is taken.
@pytest.mark.parametrize("count", [0, 1, 30, 1000, 1001, 1500])
def test_suppression(count):
    places = boxes(count)
    generator = torch.Generator().manual_seed(1)
    scores, classes = torch.rand(count, generator=generator), torch.randint(7, (count,), generator=generator)
    for threshold in (0.3, 0.7):
        assert torch.equal(ops.nms(places, scores, threshold), expected.nms(places, scores, threshold))
        wanted = expected.batched_nms(places, scores, classes, threshold)
        assert torch.equal(ops.batched_nms(places, scores, classes, threshold), wanted)


@pytest.mark.parametrize(("n", "m"), [(0, 3), (5, 8), (1, 1)])
def test_overlaps(n, m):
    assert torch.equal(ops.box_iou(boxes(n), boxes(m, 1)), expected.box_iou(boxes(n), boxes(m, 1)))


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
def test_pooling(learns, aligned):
    maps = torch.randn(2, 3, 12, 15, generator=torch.Generator().manual_seed(0))
    rois = torch.cat([torch.tensor([[0.0], [1.0], [1.0]]), boxes(3)], dim=1)
    results = []
    for module in (ops, expected):
        x = maps.clone().requires_grad_(learns)
        pooled = [
            module.roi_align(x, rois, (7, 5), 0.25, 2, aligned=aligned),
            module.roi_pool(x, rois, (7, 5), 0.25),
        ]
        if learns:
            sum((part * part).sum() for part in pooled).backward()
            pooled.append(x.grad)
        results.append(pooled)
    for own, wanted in zip(*results, strict=True):
        torch.testing.assert_close(own, wanted, rtol=0, atol=0 if not learns else 1e-5)


EXTRACT = """
import sys, torch
from extractors.networks import build
from extractors.networks.ops import batched_nms, roi_align
import extractors.regions, extractors.grids, extractors.panoptic
batched_nms(torch.rand(3, 4).cumsum(1), torch.rand(3), torch.zeros(3), 0.5)
roi_align(torch.rand(1, 2, 8, 8), torch.tensor([[0.0, 1, 1, 5, 5]]), (7, 7), 0.5, 0, aligned=True)
print(sorted(name for name in ("torchvision", "torch._dynamo", "transformers") if name in sys.modules))
"""


def test_extraction_imports_neither_torchvision_nor_the_compiler():
    done = subprocess.run([sys.executable, "-c", EXTRACT], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
