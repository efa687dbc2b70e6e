"""Checkpoints as SCAN's `train.py` writes them (kuanghuei/SCAN); its authors published none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.checkpoints import read_checkpoint
from core.console import UserError
from core.messages import validated
from model.checkpoints.heads import SCORE, SWITCHES, family
from model.checkpoints.reading import loaded, options_of, read_text, renamed, sizes_told, wrong_family
from model.scan import SCAN
from model.settings import ScanModel

IMAGE_PREFIXES = {"fc": "projection"}
WEIGHT_NORM = {"projection.weight_g": "original0", "projection.weight_v": "original1"}


def load_scan(
    path: str | Path, vocabulary: str | Path | None = None, *, options: Mapping[str, Any] | None = None
) -> SCAN:
    """Load a checkpoint that SCAN's training wrote, without running anything that is in it.

    Args:
        path: a `model_best.pth.tar` of theirs. vocabulary: of its words (`*_precomp_vocab.json`), to be checked against it.
        options: in place of the file's own, by SCAN's names: cross_attn, raw_feature_norm, agg_func, lambda_lse,
            lambda_softmax, no_imgnorm, no_txtnorm.

    Returns:
        The network in eval mode on the CPU. Sizes are read from the weights, how pairs are scored from the options.

    Raises:
        UserError: not such a file, one without the options, a vocabulary that does not fit, or keys that are missing,
            unexpected or of unexpected shape: all of them are listed.
    """
    image_state, text_state, own = read_checkpoint(path, "SCAN's authors")
    if (found := family(image_state)) != "scan":
        raise wrong_family(path, "scan", found)
    given = options_of(own, options, (*SCORE, *SWITCHES))
    if missing := [name for name in SCORE if name not in given]:
        raise UserError(
            f"{path} does not say how SCAN scores pairs: its options lack {', '.join(missing)}; the same weights score "
            "differently under others, so name those it was trained with: model: {cross_attn: ...} of the run, --options, in Python options="
        )
    score = {name: float(value) if isinstance(value := given[name], int) else value for name in SCORE}
    section = validated(ScanModel, score, place=f"the options of {path}")
    image, unknown = renamed(image_state, IMAGE_PREFIXES)
    problems = [f"image encoder: unexpected {key}" for key in unknown]
    normed = "projection.weight_v" in image
    for theirs, ours in WEIGHT_NORM.items():
        if theirs in image:  # torch 0.3 kept the one length as a vector of one
            value = image.pop(theirs)
            image[f"projection.parametrizations.weight.{ours}"] = value.reshape(()) if value.numel() == 1 else value
    with sizes_told(path, problems):
        weight = image["projection.parametrizations.weight.original1" if normed else "projection.weight"]
        sizes = section.numbers() | {
            "img_dim": weight.shape[1],
            "embed_size": weight.shape[0],
            "weight_norm": normed,
            "normalise_images": not given.get("no_imgnorm", False),
        }
        del sizes["normalise_captions"]
        normalise = not given.get("no_txtnorm", False)
        text_sizes, text, unknown = read_text(text_state, pooled=False, normalise=normalise)
        problems += [f"text encoder: unexpected {key}" for key in unknown]
    return loaded("scan", (sizes, image), (text_sizes, text), path=path, problems=problems, vocabulary=vocabulary)
