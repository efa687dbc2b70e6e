"""The benchmark of SCAN's scores runs at a tiny size, and its other side computes the same scores."""

import pytest
import torch

from benchmarks.pair_scores import SETTINGS, caption_by_caption, main
from model.kernels.cross_attention import pair_scores


def test_it_runs(capsys):
    main(["--images", "3", "--captions", "4", "--width", "8", "--repeats", "1"])
    printed = capsys.readouterr().out
    assert "t2i:" in printed and "i2t:" in printed and "COCO 5K" in printed


@pytest.mark.parametrize("name", SETTINGS)
def test_both_sides_score_alike(name):
    torch.manual_seed(0)
    images, captions, lengths = torch.randn(130, 5, 8), torch.randn(4, 6, 8), torch.tensor([6, 2, 4, 1])
    theirs = caption_by_caption(images, captions, lengths, **SETTINGS[name])
    ours = pair_scores(images, torch.full((130,), 5), captions, lengths, **SETTINGS[name])
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)
