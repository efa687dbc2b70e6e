"""Retrieval ranks, counted block by block: the one place where a rank is computed. NumPy, so that it starts fast; tensors
on a GPU are counted there.

A rank is the number of OTHER items that score at least as high as the right one (0 is best), so a tie counts as a miss:
a model that gives every item the same score must not reach 100 % recall, which sorting would grant it by luck of the
order. Recall, median and mean follow the field's convention (SCAN, VSE++, 3SHNet: 1-based median and mean).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from core.scores import CUTOFFS, SUMMED

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_BLOCK = 4_194_304  # scores per block: 16 MiB of float32
DEVICE_BLOCK = 16 * DEFAULT_BLOCK  # a GPU is busy with fewer, larger blocks


def ranks_from_embeddings(
    image_emb: Any, caption_emb: Any, caption_image: np.ndarray, *, block: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks in both directions from one pass over the inner products.

    Args:
        image_emb: (N, E) floats, one row per image (each image once); arrays, or tensors on a GPU, which does the work.
        caption_emb: (M, E) floats.
        caption_image: (M,) integers, the image row of each caption.
        block: the most scores held at a time; memory is about 6 bytes times this, whatever N and M are. Default:
            `DEFAULT_BLOCK`, on a GPU `DEVICE_BLOCK`.

    Returns:
        `(image_to_caption, caption_to_image)`: int64 (N,) and (M,), see the functions of those names.

    Raises:
        ValueError: shapes that do not fit, NaN or infinite embeddings, caption_image out of range, an image without a
            caption.
    """
    if getattr(image_emb, "is_cuda", False):
        return ranks_from_tensors(image_emb, caption_emb, caption_image, block=block or DEVICE_BLOCK)
    block = block or DEFAULT_BLOCK
    image_emb, caption_emb = _embeddings(image_emb, "image_emb"), _embeddings(caption_emb, "caption_emb")
    _check_widths(image_emb, caption_emb)
    owner = _owners(caption_image, len(image_emb), len(caption_emb))
    # The score of each right pair. Its rounding may differ in the last bit from the blocks' matrix products, which is
    # harmless except between equal embeddings: those must tie exactly, so they are compared by identity below.
    positive = np.empty(len(caption_emb), dtype=image_emb.dtype)
    step = max(1, block // max(1, image_emb.shape[1]))
    for start in range(0, len(caption_emb), step):
        rows = slice(start, start + step)
        positive[rows] = np.einsum("me,me->m", caption_emb[rows], image_emb[owner[rows]])
    image_twin, caption_twin = equal_rows(image_emb), equal_rows(caption_emb)
    best_caption = _best_caption(positive, owner, len(image_emb))
    best = positive[best_caption]

    to_caption = np.zeros(len(image_emb), dtype=np.int64)
    to_image = np.zeros(len(caption_emb), dtype=np.int64)
    for rows, columns in _blocks(len(caption_emb), len(image_emb), block):
        scores = caption_emb[rows] @ image_emb[columns].T
        own_row = np.flatnonzero((owner[rows] >= columns.start) & (owner[rows] < columns.stop))
        own_column = owner[rows][own_row] - columns.start
        hits = scores >= positive[rows, None]
        if image_twin is not None:
            hits |= image_twin[columns][None, :] == image_twin[owner[rows]][:, None]
        hits[own_row, own_column] = False
        to_image[rows] += hits.sum(axis=1)
        np.greater_equal(scores, best[columns][None, :], out=hits)
        if caption_twin is not None:
            hits |= caption_twin[rows][:, None] == caption_twin[best_caption[columns]][None, :]
        hits[own_row, own_column] = False
        to_caption[columns] += hits.sum(axis=0)
    return to_caption, to_image


def ranks_from_tensors(
    image_emb: Tensor, caption_emb: Tensor, caption_image: np.ndarray, *, block: int = DEVICE_BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """`ranks_from_embeddings` of two tensors on one device, counted there; same results (arrays) and errors."""
    import torch

    image_emb, caption_emb = _tensor(image_emb, "image_emb"), _tensor(caption_emb, "caption_emb")
    _check_widths(image_emb, caption_emb)
    host_owner = _owners(caption_image, len(image_emb), len(caption_emb))
    owner = torch.from_numpy(host_owner).to(image_emb.device)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # TF32 would round scores to three digits
    try:
        step = max(1, block // max(1, image_emb.shape[1]))
        positive = torch.cat(
            [
                torch.linalg.vecdot(caption_emb[i : i + step], image_emb[owner[i : i + step]])
                for i in range(0, len(owner), step)
            ]
        )
        image_twin, caption_twin = _equal_tensor_rows(image_emb), _equal_tensor_rows(caption_emb)
        best_caption = torch.from_numpy(_best_caption(positive.cpu().numpy(), host_owner, len(image_emb)))
        best_caption = best_caption.to(image_emb.device)
        best, numbers = positive[best_caption], torch.arange(len(image_emb), device=image_emb.device)
        to_caption, to_image = numbers * 0, owner * 0
        for rows, columns in _blocks(len(caption_emb), len(image_emb), block):
            scores = caption_emb[rows] @ image_emb[columns].T
            other = numbers[columns] != owner[rows, None]
            hits = scores >= positive[rows, None]
            if image_twin is not None:
                hits |= image_twin[columns] == image_twin[owner[rows], None]
            to_image[rows] += (hits & other).sum(dim=1)
            hits = scores >= best[columns]
            if caption_twin is not None:
                hits |= caption_twin[rows, None] == caption_twin[best_caption[columns]]
            to_caption[columns] += (hits & other).sum(dim=0)
    finally:
        torch.set_float32_matmul_precision(precision)
    return to_caption.cpu().numpy(), to_image.cpu().numpy()


def caption_to_image_ranks(
    image_emb: np.ndarray, caption_emb: np.ndarray, caption_image: np.ndarray, *, block: int | None = None
) -> np.ndarray:
    """(M,) int64: for each caption, the number of other images that score at least as high as its own image."""
    return ranks_from_embeddings(image_emb, caption_emb, caption_image, block=block)[1]


def image_to_caption_ranks(
    image_emb: np.ndarray, caption_emb: np.ndarray, caption_image: np.ndarray, *, block: int | None = None
) -> np.ndarray:
    """(N,) int64: for each image, how many captions of OTHER images score at least as high as its best caption."""
    return ranks_from_embeddings(image_emb, caption_emb, caption_image, block=block)[0]


def ranks_from_similarity(
    similarity: np.ndarray, caption_image: np.ndarray, *, block: int = DEFAULT_BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """The same two ranks, `(image_to_caption (N,), caption_to_image (M,))`, from scores (N, M). Raises as above."""
    similarity = np.asarray(similarity)
    if similarity.ndim != 2:
        raise ValueError(f"similarity has shape {similarity.shape}; expected (images, captions)")
    images, captions = similarity.shape
    owner = _owners(caption_image, images, captions)
    positive = np.asarray(similarity[owner, np.arange(captions)])
    best = positive[_best_caption(positive, owner, images)]
    to_caption = np.zeros(images, dtype=np.int64)
    to_image = np.zeros(captions, dtype=np.int64)
    for rows, columns in _blocks(images, captions, block):
        scores = similarity[rows, columns]
        if not np.isfinite(scores).all():
            raise ValueError("similarity holds NaN or infinite scores; the model that made them has diverged")
        own_column = np.flatnonzero((owner[columns] >= rows.start) & (owner[columns] < rows.stop))
        own_row = owner[columns][own_column] - rows.start
        hits = scores >= positive[None, columns]
        hits[own_row, own_column] = False
        to_image[columns] += hits.sum(axis=0)
        hits = scores >= best[rows, None]
        hits[own_row, own_column] = False
        to_caption[rows] += hits.sum(axis=1)
    return to_caption, to_image


def recalls(ranks: np.ndarray) -> dict[str, float]:
    """`{r1, r5, r10}` (of `CUTOFFS`) in percent, `medr` = floor(median) + 1 and `meanr` = mean + 1, from 0-based ranks."""
    ranks = np.asarray(ranks)
    if ranks.size == 0:
        raise ValueError("no ranks to summarise: the split holds no images or no captions")
    return {f"r{k}": 100.0 * float(np.mean(ranks < k)) for k in CUTOFFS} | {
        "medr": float(np.floor(np.median(ranks)) + 1),
        "meanr": float(np.mean(ranks) + 1),
    }


def retrieval_scores(to_caption: np.ndarray, to_image: np.ndarray) -> dict:
    """`{i2t: recalls, t2i: recalls, rsum}` from the ranks of both directions; rsum = the sum of the six recalls."""
    i2t, t2i = recalls(to_caption), recalls(to_image)
    return {"i2t": i2t, "t2i": t2i, "rsum": sum(d[k] for d in (i2t, t2i) for k in SUMMED)}


def _embeddings(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values)
    _check_matrix(values, name)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float32)
    _check_finite(np.isfinite(values).all(axis=1), name)
    return values


def _tensor(values: Tensor, name: str) -> Tensor:
    import torch

    _check_matrix(values, name)
    values = values.detach()
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    # A row's sum finds NaN and infinity without a mask as large as the embeddings; on a GPU in one synchronisation.
    _check_finite(torch.isfinite(values.sum(dim=1, dtype=torch.float64)).cpu().numpy(), name)
    return values


def _check_matrix(values: Any, name: str) -> None:
    if values.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(values.shape)}; expected (items, width)")


def _check_finite(finite: np.ndarray, name: str) -> None:
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise ValueError(
            f"{name} holds NaN or infinite values in {len(bad)} of {len(finite)} rows, the first at row {bad[0]}; "
            "the model that made them has diverged"
        )


def _check_widths(image_emb: Any, caption_emb: Any) -> None:
    if image_emb.shape[1] != caption_emb.shape[1]:
        raise ValueError(f"image_emb has width {image_emb.shape[1]} but caption_emb has {caption_emb.shape[1]}")


def _owners(caption_image: np.ndarray, images: int, captions: int) -> np.ndarray:
    owner = np.asarray(caption_image)
    if owner.shape != (captions,) or not np.issubdtype(owner.dtype, np.integer):
        raise ValueError(f"caption_image is {owner.dtype} {owner.shape}; expected integers of shape ({captions},)")
    owner = owner.astype(np.int64)
    if captions and (owner.min() < 0 or owner.max() >= images):
        raise ValueError(f"caption_image ranges over {owner.min()}..{owner.max()}; there are {images} images")
    missing = np.flatnonzero(np.bincount(owner, minlength=images) == 0)
    if len(missing):
        shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise ValueError(f"{len(missing)} of {images} images have no caption (rows {shown}); leave them out")
    return owner


def equal_rows(values: np.ndarray) -> np.ndarray | None:
    """(N,) a label 0, 1, ... per row of (N, E) floats, shared by equal rows; None when all rows differ (the usual case)."""
    plain = np.ascontiguousarray(values) + 0.0  # -0.0 becomes 0.0: equal numbers must have equal bytes
    if not plain.size:
        return None if len(plain) < 2 else np.zeros(len(plain), dtype=np.int64)
    # Equal rows have equal checksums (integers, so in any order of summation); only those few need a comparison.
    words = plain.view(np.dtype(f"u{plain.dtype.itemsize}"))
    factors = np.random.default_rng(0).integers(1, np.iinfo(words.dtype).max, words.shape[1], words.dtype)
    _, labels, counts = np.unique(words @ factors, return_inverse=True, return_counts=True)
    if counts.max(initial=0) < 2:
        return None
    suspects = np.flatnonzero(counts[labels] > 1)
    whole = plain[suspects].view(np.dtype((np.void, plain.dtype.itemsize * plain.shape[1]))).ravel()
    distinct, same = np.unique(whole, return_inverse=True)
    labels = np.arange(len(values))
    labels[suspects] = len(values) + same
    return None if len(distinct) == len(suspects) else np.unique(labels, return_inverse=True)[1]


def _equal_tensor_rows(values: Tensor) -> Tensor | None:
    """`equal_rows` of a tensor."""
    import torch

    distinct, labels = torch.unique(values + 0.0, dim=0, return_inverse=True)
    return None if len(distinct) == len(values) else labels


def _best_caption(positive: np.ndarray, owner: np.ndarray, images: int) -> np.ndarray:
    """(images,) the caption of each image that scores highest with it."""
    order = np.lexsort((-positive, owner))
    first = np.searchsorted(owner[order], np.arange(images))
    return order[first]


def _blocks(rows: int, columns: int, block: int) -> list[tuple[slice, slice]]:
    width = min(columns, max(1, min(block, 8192)))
    height = max(1, block // max(1, width))
    return [
        (slice(top, min(top + height, rows)), slice(left, min(left + width, columns)))
        for top in range(0, rows, height)
        for left in range(0, columns, width)
    ]
