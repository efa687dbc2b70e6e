"""Embeddings of whole splits: each image once, each distinct caption once, in batches. And scores of all pairs, where a
network scores pairs.

Processes that train together share the batches; each of them gets all embeddings, those of a process alone to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from core.console import progress
from model.data import Features, image_tensors, prefetch
from model.kernels.fixed_linear import Fixed
from model.network import RetrievalNetwork
from model.parallel import process, processes, summed
from model.tokenizer import CaptionTokenizer, Pieces

_QUIET_BATCHES = 20
_BATCHES_AT_ONCE = 8  # on a CPU; each needs memory for its activations
_WORTH_FIXING = 4  # batches: laying the weights out costs about as much as it saves on one or two
_CAPTIONS_AT_ONCE = 4096  # of pair scores: 1,024 wide and 20 words long they take a third of a GiB


def embed_images(network: RetrievalNetwork, features: Features, rows: np.ndarray, **options: Any) -> np.ndarray:
    """(N, E) float32 embeddings of the images in these store rows; see `image_batches`."""
    return _vectors(network, len(rows), image_batches(network, features, rows, **options))


@torch.inference_mode()
def image_batches(
    network: RetrievalNetwork, features: Features, rows: np.ndarray, *, batch_size: int = 128, workers: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images in these store rows, batch by batch, by a network in eval mode: this process's share of them.

    Args:
        workers: threads that read ahead for a GPU; on a CPU whoever embeds a batch reads it.

    Yields:
        (b,) numbers among `rows`, and (b, E) float32 embeddings, or (b, K, E) of a network that scores pairs.
    """
    rows = np.asarray(rows)
    batches = [np.arange(start, min(start + batch_size, len(rows))) for start in range(0, len(rows), batch_size)]
    on_gpu = network.device.type == "cuda"

    def read(numbers: np.ndarray) -> tuple[torch.Tensor, ...]:
        inputs = image_tensors(features.rows(rows[numbers]))
        return tuple(part.pin_memory() for part in inputs) if on_gpu else inputs

    yield from _embedded(network, batches, read, network.encode_images, "embed images", workers=workers)


def embed_captions(
    network: RetrievalNetwork, tokenizer: CaptionTokenizer, captions: list[str], *, batch_size: int | None = None
) -> np.ndarray:
    """(M, E) float32 embeddings of captions; see `caption_batches`."""
    return _vectors(network, len(captions), caption_batches(network, tokenizer, captions, batch_size=batch_size))


def _vectors(network: RetrievalNetwork, count: int, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """(count, E) float32: each process's batches, in their places."""
    found = np.zeros((count, network.image.sizes.embed_size), dtype=np.float32)
    for numbers, embeddings in batches:
        found[numbers] = embeddings
    return _from_all(found, network.device)


@torch.inference_mode()
def caption_batches(
    network: RetrievalNetwork, tokenizer: CaptionTokenizer, captions: list[str], *, batch_size: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Captions, batch by batch, by a network in eval mode: this process's share of them.

    Captions that read alike are encoded once, so that they tie exactly whatever batch they would have met; the captions of
    a batch are of one length, so that nothing is padded.

    Args:
        batch_size: None: 256, or 128 on a CPU, where larger activations cost more than they save.

    Yields:
        (b,) numbers of captions, and (b, E) float32 embeddings, or (b, T, E) of a network that scores pairs.
    """
    batch_size = batch_size or (128 if network.device.type == "cpu" else 256)
    pieces = tokenizer.split(captions)
    distinct, which = _distinct(pieces)
    same = np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))[:-1])
    batches = _of_one_length(np.diff(pieces.offsets)[distinct], batch_size)

    def read(chosen: np.ndarray) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(part) for part in tokenizer.batch(pieces, distinct[chosen]))

    for chosen, embeddings in _embedded(network, batches, read, network.encode_captions, "embed captions"):
        own = [same[number] for number in chosen]
        yield np.concatenate(own), np.repeat(embeddings, [len(numbers) for numbers in own], axis=0)


@torch.inference_mode()
def score_pairs(
    network: RetrievalNetwork,
    features: Features,
    rows: np.ndarray,
    tokenizer: CaptionTokenizer,
    captions: list[str],
    *,
    images_at_once: int = 128,
    captions_at_once: int = _CAPTIONS_AT_ONCE,
) -> np.ndarray:
    """(N, M) float32 scores of all pairs by a network that scores pairs; it must be in eval mode.

    Of the embeddings only a block of each side is held; images are encoded anew for every block of captions, which costs a
    thousandth of scoring them. Captions that read alike are scored once. Processes share the blocks of captions.
    """
    pieces = tokenizer.split(captions)
    distinct, which = _distinct(pieces)
    order = np.argsort(np.diff(pieces.offsets)[distinct], kind="stable")  # captions of one length side by side
    distinct, column = distinct[order], np.argsort(order)[which]
    if processes() > 1:  # enough blocks for all
        captions_at_once = min(captions_at_once, -(-len(distinct) // processes()))
    blocks = [
        (left, top)
        for left in range(0, len(distinct), captions_at_once)[process() :: processes()]
        for top in range(0, len(rows), images_at_once)
    ]
    found = np.zeros((len(rows), len(pieces)), dtype=np.float32)
    encoded: tuple[int, list[torch.Tensor], np.ndarray] | None = None
    for left, top in _shown(blocks, len(blocks), "score pairs"):
        if encoded is None or encoded[0] != left:
            own = np.flatnonzero((column >= left) & (column < left + captions_at_once))
            encoded = left, _encoded(network, tokenizer, pieces, distinct[left : left + captions_at_once]), own
        images = image_tensors(features.rows(rows[top : top + images_at_once]))
        scores = network.similarity(network.encode_images(*images), images[1], *encoded[1]).float().cpu().numpy()
        found[top : top + images_at_once, encoded[2]] = scores[:, column[encoded[2]] - left]
    return _from_all(found, network.device)


def _encoded(
    network: RetrievalNetwork, tokenizer: CaptionTokenizer, pieces: Pieces, captions: np.ndarray
) -> list[torch.Tensor]:
    """Embeddings (M, T, E) and lengths of these captions, encoded 256 at a time."""
    parts = []
    for start in range(0, len(captions), 256):
        tokens, lengths = (torch.from_numpy(part) for part in tokenizer.batch(pieces, captions[start : start + 256]))
        parts.append((network.encode_captions(tokens, lengths), lengths))
    longest = max(part.shape[1] for part, _ in parts)
    padded = [torch.nn.functional.pad(part, (0, 0, 0, longest - part.shape[1])) for part, _ in parts]
    return [torch.cat(padded), torch.cat([lengths for _, lengths in parts])]


def _same_as(pieces: Pieces) -> np.ndarray:
    """(M,) of each caption the first that reads alike."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(pieces.of(i).tobytes(), i) for i in range(len(pieces))], dtype=np.int64)


def _distinct(pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
    """(D,) one caption of each reading, and (M,) which of them every caption reads like."""
    return np.unique(_same_as(pieces), return_inverse=True)


def _of_one_length(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The numbers of the captions that have these lengths, in batches of one length each, of at most so many captions."""
    order = np.argsort(lengths, kind="stable")
    alike = np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1)
    return [own[start : start + batch_size] for own in alike for start in range(0, len(own), batch_size)]


def _embedded(
    network: RetrievalNetwork,
    batches: Sequence[Any],
    read: Callable[[Any], tuple[torch.Tensor, ...]],
    encode: Callable[..., torch.Tensor],
    desc: str,
    *,
    workers: int = 0,
) -> Iterator[tuple[Any, np.ndarray]]:
    """This process's batches, in order, each with its embeddings `encode(*read(batch))`.

    On a CPU every thread that torch has takes a batch of its own: where all share each product, they wait for the slowest
    of them hundreds of times a batch.
    """
    own, device = batches[process() :: processes()], network.device.type
    if device != "cpu":
        made = (encode(*inputs) for inputs in prefetch(read, own, workers=workers))
    else:
        made = _beside_one_another(
            lambda batch: encode(*read(batch)),
            own,
            Fixed(network) if len(batches) >= _WORTH_FIXING else contextlib.nullcontext(),
        )
    for batch, embeddings in zip(own, _shown(made, len(own), desc), strict=True):
        yield batch, embeddings.float().cpu().numpy()


def _beside_one_another(
    encode: Callable[[Any], torch.Tensor], batches: Sequence[Any], context: contextlib.AbstractContextManager
) -> Iterator[torch.Tensor]:
    """`encode(batch)` for each, in order, on the CPU's threads and in `context`."""
    threads = torch.get_num_threads()
    workers = min(threads, len(batches), _BATCHES_AT_ONCE)
    rounding = {"enabled": torch.is_autocast_enabled("cpu"), "dtype": torch.get_autocast_dtype("cpu")}

    def alone(batch: Any) -> torch.Tensor:
        torch.set_num_threads(threads // workers)
        with torch.inference_mode(), torch.autocast("cpu", **rounding), context:  # what a thread has to be told itself
            return encode(batch)

    try:
        yield from prefetch(alone, batches, workers=workers if workers > 1 else 0)
    finally:
        torch.set_num_threads(threads)


def _from_all(found: np.ndarray, device: torch.device) -> np.ndarray:
    """Each row from the process that made it; it is zero in the others."""
    return summed(torch.from_numpy(found).to(device)).cpu().numpy() if processes() > 1 else found


def _shown(batches: Iterable, total: int, desc: str) -> Iterable:
    """A progress bar for work that takes a while; a small validation after every epoch would only fill the log."""
    if total <= _QUIET_BATCHES or process():
        return batches
    return progress(batches, total=total, desc=desc, unit="batch")
