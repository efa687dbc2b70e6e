"""Embeddings of whole splits: each image once, each distinct caption once, in batches.

Processes that train together share the batches; each of them gets all embeddings, those of a process alone to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from core.console import progress
from model.data import Features, image_tensors, prefetch
from model.network import RetrievalNetwork
from model.parallel import process, processes, summed
from model.tokenizer import CaptionTokenizer

_QUIET_BATCHES = 20


@torch.inference_mode()
def embed_images(
    network: RetrievalNetwork, features: Features, rows: np.ndarray, *, batch_size: int = 128, workers: int = 0
) -> np.ndarray:
    """(N, E) float32 embeddings of the images in these store rows; the network must be in eval mode."""
    rows = np.asarray(rows)
    starts = range(0, len(rows), batch_size)[process() :: processes()]
    on_gpu = network.device.type == "cuda"

    def make(start: int) -> tuple[torch.Tensor, ...]:
        inputs = image_tensors(features.rows(rows[start : start + batch_size]))
        return tuple(part.pin_memory() for part in inputs) if on_gpu else inputs

    batches = prefetch(make, starts, workers=workers)
    found = np.zeros((len(rows), network.image.sizes.embed_size), dtype=np.float32)
    for start, inputs in zip(starts, _shown(batches, len(starts), "embed images"), strict=True):
        found[start : start + batch_size] = network.encode_images(*inputs).float().cpu().numpy()
    return _from_all(found, network.device)


@torch.inference_mode()
def embed_captions(
    network: RetrievalNetwork, tokenizer: CaptionTokenizer, captions: list[str], *, batch_size: int | None = None
) -> np.ndarray:
    """(M, E) float32 embeddings of captions; the network must be in eval mode.

    Captions that read alike are encoded once, so that they tie exactly whatever batch they would have met; captions of
    similar length share a batch, which saves padding.

    Args:
        batch_size: None: 256, or 128 on a CPU, where larger activations cost more than they save.
    """
    batch_size = batch_size or (128 if network.device.type == "cpu" else 256)
    pieces = tokenizer.split(captions)
    first: dict[bytes, int] = {}
    same_as = np.array([first.setdefault(pieces.of(i).tobytes(), i) for i in range(len(pieces))], dtype=np.int64)
    distinct, which = np.unique(same_as, return_inverse=True)
    order = np.argsort(np.diff(pieces.offsets)[distinct], kind="stable")
    starts = range(0, len(order), batch_size)[process() :: processes()]
    found = np.zeros((len(order), network.image.sizes.embed_size), dtype=np.float32)
    for start in _shown(starts, len(starts), "embed captions"):
        chosen = order[start : start + batch_size]
        tokens, lengths = (torch.from_numpy(part) for part in tokenizer.batch(pieces, distinct[chosen]))
        found[chosen] = network.encode_captions(tokens, lengths).float().cpu().numpy()
    return _from_all(found, network.device)[which]


def _from_all(found: np.ndarray, device: torch.device) -> np.ndarray:
    """Each row from the process that made it; it is zero in the others."""
    return summed(torch.from_numpy(found).to(device)).cpu().numpy() if processes() > 1 else found


def _shown(batches: Iterable, total: int, desc: str) -> Iterable:
    """A progress bar for work that takes a while; a small validation after every epoch would only fill the log."""
    if total <= _QUIET_BATCHES or process():
        return batches
    return progress(batches, total=total, desc=desc, unit="batch")
