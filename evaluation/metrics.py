"""Retrieval metrics of embeddings or of a similarity matrix, with intervals, folds and two checks: control and chance.

R@1, R@5, R@10 (in %), median and mean rank in both directions and rSum, as SCAN, VSE-infinity and 3SHNet report them:
an image's rank is that of the best of its captions; a tie counts as a miss. Scores are compared block by block and
never held together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.console import UserError, run_cli
from core.files import write_json
from core.flags import command
from core.scores import CUTOFFS, SUMMED
from evaluation.bootstrap import LEVEL, RESAMPLES, interval, resample_ranks
from evaluation.galleries import Gallery, Vectors, gallery_of
from evaluation.positives import PROTOCOLS, Positives, read_positives
from evaluation.protocols import protocol_metrics
from evaluation.ranks import Ranked, items_digest, write_ranks
from evaluation.scores import Scored, read_scored
from model.ranking import ranks_from_embeddings, ranks_from_similarity, retrieval_scores

PROTOCOL = "standard"
# The control of a small test set is the mean over shuffles of so many images in all, else it would be mere noise.
_CONTROL_IMAGES = 2000


def retrieval_metrics(
    image_embeddings: np.ndarray, caption_embeddings: np.ndarray, caption_image: np.ndarray
) -> dict[str, Any]:
    """Metrics of one gallery: all images against all captions, scored by inner product.

    Args:
        image_embeddings: (N, E) floats, each image once. caption_embeddings: (M, E) floats. Tensors on a GPU are scored
            there.
        caption_image: (M,) integers, the image row of each caption, in any order.

    Returns:
        `{i2t, t2i, rsum, images, captions, protocol}`; `i2t` and `t2i` are `{r1, r5, r10, medr, meanr}`, recalls in %,
        ranks from 1.

    Raises:
        ValueError: NaN or infinite embeddings, shapes that do not fit, an image without a caption.
    """
    images, captions = image_embeddings, caption_embeddings
    if not getattr(images, "is_cuda", False):
        images, captions = _numpy(images), _numpy(captions)
    owner = _numpy(caption_image)
    return _with_size(retrieval_scores(*ranks_from_embeddings(images, captions, owner)), len(images), len(captions))


def retrieval_metrics_from_similarity(similarity: np.ndarray, caption_image: np.ndarray) -> dict[str, Any]:
    """`retrieval_metrics` from scores (N, M) instead of embeddings; same result, same errors."""
    similarity, owner = _numpy(similarity), _numpy(caption_image)
    return _with_size(retrieval_scores(*ranks_from_similarity(similarity, owner)), *similarity.shape)


def rank_intervals(
    parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], *, resamples: int, seed: int
) -> dict[str, Any]:
    """Intervals of the mean over galleries of every metric (see `evaluation.bootstrap`).

    Args:
        parts: per gallery the ranks of its N images (N,), those of its M captions (M,), and the captions' image rows
            (M,). Each gallery's images are resampled on their own.

    Returns:
        `{level, resamples, seed, i2t, t2i, rsum}`: a pair `[low, high]` for each metric.
    """
    sums: dict[str, dict[str, np.ndarray]] = {"i2t": {}, "t2i": {}}
    for number, (to_caption, to_image, owner) in enumerate(parts):
        # One seed for both directions: an image is drawn together with its captions.
        draws = {"images": len(to_caption), "resamples": resamples, "seed": seed + number}
        for direction, ranks, image in (("i2t", to_caption, np.arange(len(to_caption))), ("t2i", to_image, owner)):
            for name, samples in resample_ranks(ranks, image, **draws).items():
                sums[direction][name] = sums[direction].get(name, 0) + samples / len(parts)
    result: dict[str, Any] = {"level": LEVEL, "resamples": resamples, "seed": seed}
    result |= {d: {name: interval(samples) for name, samples in sums[d].items()} for d in sums}
    return result | {"rsum": interval(sum(sums[d][name] for d in sums for name in SUMMED))}


def fold_metrics(
    images: np.ndarray,
    captions: np.ndarray,
    caption_image: np.ndarray,
    folds: int,
    *,
    resamples: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """Mean of the metrics over `folds` galleries of consecutive images (COCO 1K: five folds of 1,000 of the 5,000).

    All folds are of one size, as recall depends on it; the few images left over at the end are in no fold.

    Returns:
        `{count, images_per_fold, images_left_out, i2t, t2i, rsum}`; with `resamples`, also `intervals` of the means.

    Raises:
        UserError: more folds than images.
    """
    return _fold_metrics(Vectors(images, captions), caption_image, folds, resamples=resamples, seed=seed)


def _fold_metrics(
    gallery: Gallery, caption_image: np.ndarray, folds: int, *, resamples: int, seed: int
) -> dict[str, Any]:
    images = len(gallery)
    size = images // folds
    if size < 1:
        raise UserError(f"{folds} folds of {images} images cannot be made: lower the test set's `folds` to {images}")
    parts = []
    for fold in range(folds):
        start = fold * size
        chosen = np.flatnonzero((caption_image >= start) & (caption_image < start + size))
        owner = caption_image[chosen] - start
        parts.append((*gallery.part(slice(start, start + size), chosen).ranks(owner), owner))
    result = {"count": folds, "images_per_fold": size, "images_left_out": images - folds * size}
    result |= _mean_scores([retrieval_scores(*part[:2]) for part in parts])
    if resamples:
        result["intervals"] = rank_intervals(parts, resamples=resamples, seed=seed)
    return result


def control_metrics(
    images: np.ndarray, captions: np.ndarray, caption_image: np.ndarray, seed: int
) -> dict[str, Any] | None:
    """The metrics after the image embeddings have been shuffled among the images; they must be at chance.

    Were they not, something other than the match of image and caption would give the answer away, such as the order of
    rows. Every assignment is equally likely, the true place of an image included, so that the expectation is chance
    itself. Returns `{seed, shuffles, i2t, t2i, rsum}`, the mean over some shuffles; None for a single image.
    """
    return _control_metrics(Vectors(images, captions), caption_image, seed)


def _control_metrics(gallery: Gallery, caption_image: np.ndarray, seed: int) -> dict[str, Any] | None:
    images = len(gallery)
    if images < 2:
        return None
    generator = np.random.default_rng(seed)
    repeats = max(1, min(20, _CONTROL_IMAGES // images))
    scores = [
        retrieval_scores(*gallery.moved_ranks(generator.permutation(images), caption_image)) for _ in range(repeats)
    ]
    return {"seed": seed, "shuffles": repeats, **_mean_scores(scores)}


def chance_metrics(captions_per_image: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """What a random order of the gallery gives on average, exactly.

    Among M captions, c of them right, the best right one is later than place k with the probability
    C(M-c, k) / C(M, k), and its mean place is (M+1) / (c+1). Among N images every place is as likely as any other.

    Args:
        captions_per_image: (N,) counts, each at least 1.

    Returns:
        `{i2t, t2i, rsum}`; `medr` is the first place by which half of the queries have been answered.
    """
    counts = np.asarray(captions_per_image, dtype=np.int64)
    images, captions = len(counts), int(counts.sum())
    places = np.arange(captions + 1, dtype=np.float64)
    later = np.zeros(captions + 1)
    for count, how_often in zip(*np.unique(counts, return_counts=True), strict=True):
        each = np.ones(captions + 1)
        for taken in range(count):
            each *= np.clip(captions - places - taken, 0, None) / (captions - taken)
        later += how_often / images * each
    i2t = {f"r{k}": 100.0 * float(1 - later[min(k, captions)]) for k in CUTOFFS}
    i2t |= {"medr": float(np.argmax(later <= 0.5)), "meanr": float(np.mean((captions + 1) / (counts + 1)))}
    t2i = {f"r{k}": 100.0 * min(k, images) / images for k in CUTOFFS}
    t2i |= {"medr": float(-(-images // 2)), "meanr": (images + 1) / 2}
    return {"i2t": i2t, "t2i": t2i, "rsum": _rsum(i2t, t2i)}


def all_metrics(embeddings: Scored, **options: Any) -> dict[str, Any]:
    """Everything that goes into a metrics file: `metrics_and_ranks`, which says what the options are, without the ranks."""
    return metrics_and_ranks(embeddings, **options)[0]


def metrics_and_ranks(
    embeddings: Scored,
    *,
    folds: int,
    seed: int,
    resamples: int = RESAMPLES,
    positives: Sequence[Positives] = (),
) -> tuple[dict[str, Any], Ranked]:
    """The whole test set, its folds and protocols, the control and chance; and the ranks on the whole test set.

    Images without a caption cannot be scored: they are left out and counted under `images_without_captions`.

    Args:
        folds: see `fold_metrics`; 0 or 1: none. seed: of the control and the intervals.
        resamples: of the intervals; 0: none. positives: of the protocols to score beside.

    Raises:
        UserError: nothing to score, too many folds, or a protocol made for another test set.
    """
    gallery, owner = gallery_of(embeddings), embeddings.caption_image.astype(np.int64)
    images = len(gallery)
    if not images or not len(owner):
        raise UserError(
            f"the test set has {images} images and {len(owner)} captions: give the dataset captions, or choose "
            "another split for the test set"
        )
    protocols = {one.protocol: protocol_metrics(embeddings, one, resamples=resamples, seed=seed) for one in positives}
    counts = np.bincount(owner, minlength=images)
    captioned = counts > 0
    image_ids = embeddings.image_ids
    if not captioned.all():
        image_ids = image_ids[captioned]
        gallery = gallery.part(captioned, slice(None))
        owner = (np.cumsum(captioned) - 1)[owner]
        counts = counts[captioned]
    ranks = gallery.ranks(owner)
    result = _with_size(retrieval_scores(*ranks), len(gallery), len(owner))
    if resamples:
        result["intervals"] = rank_intervals([(*ranks, owner)], resamples=resamples, seed=seed)
    if not captioned.all():
        result["images_without_captions"] = int((~captioned).sum())
        print(f"note: {result['images_without_captions']} images have no caption and are left out", file=sys.stderr)
    if folds > 1:
        result["folds"] = _fold_metrics(gallery, owner, folds, resamples=resamples, seed=seed)
    if protocols:
        result["protocols"] = protocols
    if control := _control_metrics(gallery, owner, seed):
        result["control"] = control
    result["chance"] = chance_metrics(counts)
    return result, Ranked(*ranks, owner, items_digest(image_ids, embeddings.caption_ids, owner))


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """The flags that `metrics` and `ensemble` share: `output`, and those that `metric_options` takes."""
    parser.add_argument("--folds", type=int, default=0, help="also the mean over so many folds; 0 or 1: none")
    parser.add_argument(
        "--protocols", nargs="*", default=[], choices=PROTOCOLS, help="more protocols, for COCO's 5K test"
    )
    parser.add_argument("--positives", help="folder with their positives (default: the package eccv-caption)")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="of the intervals; 0: no intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the control's shuffles and of the resamples")
    parser.add_argument("--output", required=True, help="metrics.json to write")
    parser.add_argument("--ranks", help="also write the ranks behind it, to compare systems by")


def metric_options(
    *, folds: int, protocols: Sequence[str], positives: str | None, resamples: int, seed: int
) -> dict[str, Any]:
    """What `all_metrics` takes beside the embeddings.

    Raises:
        UserError: a wrong number, or positives that cannot be read.
    """
    if resamples < 0:
        raise UserError(f"--resamples must be 0 or more, not {resamples}")
    read = [read_positives(name, positives or None) for name in dict.fromkeys(protocols)]
    for one in read:
        if one.protocol == "cxc" and "i2i" not in one.retrievals:
            print(
                "note: CxC is scored without image-to-image and text-to-text: the package has no positives for them; "
                "give the `data` folder of Crisscrossed-Captions as the test set's `positives`",
                file=sys.stderr,
            )
    return {"folds": folds, "seed": seed, "resamples": resamples, "positives": read}


def _numpy(values: Any) -> np.ndarray:
    """Also takes tensors, on any device and with gradients, without importing torch."""
    return np.asarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values)


def _with_size(scores: dict[str, Any], images: int, captions: int) -> dict[str, Any]:
    return {**scores, "images": int(images), "captions": int(captions), "protocol": PROTOCOL}


def _rsum(i2t: dict[str, float], t2i: dict[str, float]) -> float:
    return sum(direction[key] for direction in (i2t, t2i) for key in SUMMED)


def _mean_scores(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    mean = {
        direction: {key: float(np.mean([score[direction][key] for score in scores])) for key in scores[0][direction]}
        for direction in ("i2t", "t2i")
    }
    return {**mean, "rsum": _rsum(mean["i2t"], mean["t2i"])}


def score(*, embeddings: str, output: str, ranks: str | None = None, **flags: Any) -> None:
    """Write the metrics of one run's embeddings or pair scores, and the ranks if wanted."""
    options = metric_options(**flags)
    found = read_scored(embeddings)
    metrics, ranked = metrics_and_ranks(found, **options)
    for name in ("run", "split", "index_digest"):
        if name in found.attributes:
            metrics[name] = found.attributes[name]
    if ranks:
        write_ranks(ranks, ranked)
    write_json(output, metrics)


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("evaluation.metrics", __doc__)
    parser.add_argument("--embeddings", required=True, help="embeddings.zarr or scores.zarr of evaluation.encode")
    add_metrics(parser)
    score(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    run_cli(main)
