"""The hinge triplet loss over a batch of matching pairs, with all or the hardest negatives (source: VSE++)."""

from __future__ import annotations

import torch
from torch import Tensor

from model.layers import at_least_single


def triplet_loss(
    image_emb: Tensor,
    caption_emb: Tensor,
    margin: float = 0.2,
    hardest: bool = True,
    same_image: Tensor | None = None,
) -> Tensor:
    """`triplet_loss_from_scores` of the inner products of embeddings (B, E), row i of both belonging together.

    Normalised rows give cosine similarities.
    """
    scores = at_least_single(image_emb) @ at_least_single(caption_emb).T
    return triplet_loss_from_scores(scores, margin, hardest, same_image)


def triplet_loss_from_scores(scores: Tensor, margin: float, hardest: bool, same_image: Tensor | None = None) -> Tensor:
    """Sum over the batch, in both directions, of max(0, margin + negative - positive).

    Args:
        scores: (B, B) similarities of the images (rows) and captions (columns) of matching pairs.
        margin: in units of similarity.
        hardest: only the hardest negative caption of each image and the hardest negative image of each caption count;
            otherwise all of them do.
        same_image: (B, B) bool, pairs that are not negatives of each other besides the diagonal, or None: in the
            reference two captions of one image that meet in a batch ARE negatives of each other.

    Returns:
        A scalar, float32 at least: a sum, not a mean, as in the reference (`lib/loss.py`).
    """
    positive = scores.diagonal()
    excluded = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    if same_image is not None:
        excluded = excluded | same_image.to(scores.device)
    wrong_caption = (margin + scores - positive[:, None]).clamp(min=0).masked_fill(excluded, 0)
    wrong_image = (margin + scores - positive[None, :]).clamp(min=0).masked_fill(excluded, 0)
    if hardest:
        wrong_caption, wrong_image = wrong_caption.max(dim=1).values, wrong_image.max(dim=0).values
    return wrong_caption.sum() + wrong_image.sum()
