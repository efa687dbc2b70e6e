"""Embeddings of whole splits: each image once, each distinct caption once, in batches."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from console import progress
from model.data import Features, image_tensors, prefetch
from model.network import ThreeSHNet
from model.tokenizer import CaptionTokenizer

_QUIET_BATCHES = 20


@torch.inference_mode()
def embed_images(
    network: ThreeSHNet, features: Features, rows: np.ndarray, *, batch_size: int = 128, workers: int = 0
) -> np.ndarray:
    """(N, E) float32 embeddings of the images in these store rows; the network must be in eval mode."""
    rows = np.asarray(rows)
    starts = range(0, len(rows), batch_size)
    batches = prefetch(
        lambda start: image_tensors(features.rows(rows[start : start + batch_size])), starts, workers=workers
    )
    parts = [
        network.encode_images(*batch).float().cpu().numpy() for batch in _shown(batches, len(starts), "embed images")
    ]
    return np.concatenate(parts)


@torch.inference_mode()
def embed_captions(
    network: ThreeSHNet, tokenizer: CaptionTokenizer, captions: list[str], *, batch_size: int = 256
) -> np.ndarray:
    """(M, E) float32 embeddings of captions; the network must be in eval mode.

    Captions that read alike are encoded once, so that they tie exactly whatever batch they would have met; captions of
    similar length share a batch, which saves padding.
    """
    pieces = tokenizer.split(captions)
    first: dict[bytes, int] = {}
    same_as = np.array([first.setdefault(pieces.of(i).tobytes(), i) for i in range(len(pieces))])
    distinct, which = np.unique(same_as, return_inverse=True)
    order = np.argsort(np.diff(pieces.offsets)[distinct], kind="stable")
    starts = range(0, len(order), batch_size)
    found = None
    for start in _shown(starts, len(starts), "embed captions"):
        chosen = order[start : start + batch_size]
        tokens, lengths = (torch.from_numpy(part) for part in tokenizer.batch(pieces, distinct[chosen]))
        emb = network.encode_captions(tokens, lengths).float().cpu().numpy()
        if found is None:
            found = np.empty((len(order), emb.shape[1]), dtype=np.float32)
        found[chosen] = emb
    return found[which]


def _shown(batches: Iterable, total: int, desc: str) -> Iterable:
    """A progress bar for work that takes a while; a small validation after every epoch would only fill the log."""
    return progress(batches, total=total, desc=desc, unit="batch") if total > _QUIET_BATCHES else batches
