"""Rows of the stores and of the index -> batches. A batch depends on seed, epoch and position alone, so training can
stop anywhere and go on with the very batches it would have seen."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from catalog.categories import VOID
from core.console import UserError
from model.parallel import processes as all_processes
from model.parallel import share
from model.tokenizer import CaptionTokenizer, Pieces

if TYPE_CHECKING:
    from model.network import RetrievalNetwork

# What is read of each store that a network may need.
ARRAYS = {"visual": ("features", "counts"), "panoptic": ("seg_maps", "category_onehots", "seg_features")}
_ROWS_AT_ONCE = 1024


class FeatureStore(Protocol):
    """What is needed of a store; `stores.open_store` gives one."""

    attributes: dict[str, Any]
    image_ids: np.ndarray
    dropped: set[str]

    def rows(self, array: str, indices: np.ndarray) -> np.ndarray: ...
    def shape(self, array: str) -> tuple[int, ...]: ...
    def dtype(self, array: str) -> np.dtype: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Split:
    """Images of a split and their captions.

    Attributes:
        name: of the split.
        image_rows: (N,) int64 rows in the stores. image_ids: their ids.
        captions, caption_ids: M strings each, grouped by image in the images' order.
        caption_image: (M,) int64, position in `image_rows` of the image each caption belongs to.
        index_digest: of the index that was read, or None.
        contents: digests of the N images' files, as the index has them.
        skipped: how many images of the split were left out, having no caption or having been dropped from a store.
    """

    name: str
    image_rows: np.ndarray
    image_ids: list[str]
    captions: list[str]
    caption_ids: list[str]
    caption_image: np.ndarray
    index_digest: str | None = None
    contents: list[str] = field(default_factory=list)
    skipped: int = 0


def read_split(
    images: str | Path,
    captions: str | Path,
    split: str,
    *,
    captions_per_image: int | None = None,
    dropped: Sequence[str] = (),
    first: int | None = None,
) -> Split:
    """Read one split of an index.

    Args:
        images, captions: the two Parquet files of the index.
        split: its name.
        captions_per_image: the first so many captions of an image are used; None: all that count, of which the index holds
            as many as `datasets.NAME.captions_per_image` says.
        dropped: ids of images to leave out; so are images without a caption.
        first: only so many images from the split's beginning.

    Raises:
        UserError: the split has no images, or none of them has a caption.
    """
    from catalog.index import counted_captions, read_captions, read_images

    table, digest = read_images(images)
    ids, splits, contents = (table[name].to_pylist() for name in ("image_id", "split", "content_hash"))
    rows = [row for row, name in enumerate(splits) if name == split]
    if not rows:
        found = ", ".join(sorted({str(name) for name in splits})) or "none"
        raise UserError(f"split {split!r} has no images in {images}; its splits are: {found}")
    rows, leave_out = rows[:first], set(dropped)
    texts: dict[str, list[tuple[str, str]]] = {ids[row]: [] for row in rows if ids[row] not in leave_out}
    table = read_captions(captions)
    limit = captions_per_image or counted_captions(table)
    columns = (table[name].to_pylist() for name in ("caption_id", "image_id", "text"))
    for caption_id, image_id, text in zip(*columns, strict=True):
        own = texts.get(image_id)
        if own is not None and (limit is None or len(own) < limit):
            own.append((caption_id, text))
    used = [row for row in rows if texts.get(ids[row])]
    if not used and not texts:
        raise UserError(
            f"no image of split {split!r} could be read: features.on_bad_image: drop has left out all {len(rows)} of {images}"
        )
    if not used:
        raise UserError(f"no image of split {split!r} has a caption in {captions}")
    pairs = [(position, *pair) for position, row in enumerate(used) for pair in texts[ids[row]]]
    return Split(
        name=split,
        image_rows=np.array(used, dtype=np.int64),
        image_ids=[ids[row] for row in used],
        captions=[text for _, _, text in pairs],
        caption_ids=[caption_id for _, caption_id, _ in pairs],
        caption_image=np.array([position for position, _, _ in pairs], dtype=np.int64),
        index_digest=digest,
        contents=[contents[row] for row in used],
        skipped=len(rows) - len(used),
    )


class Features:
    """The features of images by row, from a visual store (regions or grids) and, for networks that need it, a panoptic
    store of the same index.

    Raises:
        UserError: the stores lack an array, hold different images, or were made from another index than `index_digest`.
    """

    def __init__(
        self, visual: FeatureStore, panoptic: FeatureStore | None = None, *, index_digest: str | None = None
    ) -> None:
        self.stores = {"visual": visual} | ({} if panoptic is None else {"panoptic": panoptic})
        for kind, store in self.stores.items():
            arrays = ARRAYS[kind]
            for name in arrays:
                try:
                    store.shape(name)
                except KeyError as error:
                    raise UserError(
                        f"the {kind} store ({_name(store)}) has no array {name!r}; it must hold {', '.join(arrays)}"
                    ) from error
        if panoptic is not None and not np.array_equal(visual.image_ids, panoptic.image_ids):
            raise UserError(
                f"the visual store ({_name(visual)}, {len(visual)} images) and the panoptic store ({_name(panoptic)}, "
                f"{len(panoptic)} images) hold different images; extract both from the same index"
            )
        self.img_dim: int = visual.shape("features")[-1]
        self.num_categories: int | None = None if panoptic is None else panoptic.shape("category_onehots")[-1]
        self.dropped: set[str] = set().union(*(store.dropped for store in self.stores.values()))
        self._rows: np.ndarray | None = None
        self._memory: dict[str, np.ndarray] = {}
        if index_digest is not None:
            self.check_index(index_digest)

    def check_index(self, digest: str) -> None:
        """UserError if a store was made from another index than that of this digest."""
        for kind, store in self.stores.items():
            made_from = store.attributes.get("index_digest")
            if made_from and made_from != digest:
                raise UserError(
                    f"the {kind} store ({_name(store)}) was made from another index (digest {made_from[:12]}) than "
                    f"the one given ({digest[:12]}); extract its features again"
                )

    def check_network(self, network: RetrievalNetwork, run: str) -> None:
        """UserError if a network takes visual tokens of another width, or maps of other classes. run: its name, for messages."""
        sizes = network.image.sizes
        wanted = getattr(sizes, "num_categories", None)
        for kind, takes, has, what in (
            ("visual", sizes.img_dim, self.img_dim, "features of width {}"),
            ("panoptic", wanted, self.num_categories, "panoptic features of {} classes"),
        ):
            if kind in self.stores and None not in (takes, has) and takes != has:
                raise UserError(
                    f"run {run} takes {what.format(takes)}, but {_name(self.stores[kind])} holds {what.format(has)}; extract the data set's "
                    "features with the network that made those it was trained on (features: architecture, weights), or name another run"
                )

    def describe(self) -> dict[str, Any]:
        """What a run records of the features it was trained on: kind, extractor and digests of each store."""
        keys = ("feature", "extractor", "weights_digest", "index_digest")
        return {kind: {key: store.attributes.get(key) for key in keys} for kind, store in self.stores.items()}

    def nbytes(self, images: int) -> int:
        """Bytes that so many images take in memory, as stored."""
        return images * sum(
            int(np.prod(store.shape(name)[1:], dtype=np.int64)) * np.dtype(store.dtype(name)).itemsize
            for store, name in self._arrays()
        )

    def preload(self, rows: np.ndarray) -> None:
        """Hold these rows in memory from now on; asking for any other row is then an error (IndexError)."""
        rows = np.unique(rows)
        blocks = [rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE)]
        parts = [self._read(block) for block in blocks]
        self._memory = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self._rows = rows

    def rows(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`features` (B, K, D) and `counts` (B,) of these rows, and from a panoptic store the arrays of that."""
        if self._rows is None:
            return self._read(rows)
        at = self._at(rows)
        return {name: values[at] for name, values in self._memory.items()}

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """`counts` alone, (B,): how many visual tokens these rows have."""
        if self._rows is None:
            return self.stores["visual"].rows("counts", rows)
        return self._memory["counts"][self._at(rows)]

    def _arrays(self) -> Iterator[tuple[FeatureStore, str]]:
        yield from ((store, name) for kind, store in self.stores.items() for name in ARRAYS[kind])

    def _at(self, rows: np.ndarray) -> np.ndarray:
        at = np.searchsorted(self._rows, rows)
        if (at >= len(self._rows)).any() or (self._rows[np.minimum(at, len(self._rows) - 1)] != rows).any():
            raise IndexError("a row was asked for that has not been preloaded")
        return at

    def _read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        found = {name: store.rows(name, rows) for store, name in self._arrays()}
        maps = found.get("seg_maps")
        if maps is None:
            return found
        wrong = (maps >= self.num_categories) & (maps != VOID)
        if wrong.any():
            bad = int(np.flatnonzero(wrong.any(axis=(1, 2)))[0])
            name = _name(self.stores["panoptic"])
            raise UserError(
                f"the panoptic store ({name}) holds class number {maps[bad][wrong[bad]][0]} at image "
                f"row {rows[bad]}; class numbers are 0..{self.num_categories - 1}, or {VOID} for void"
            )
        return found


@dataclass(frozen=True)
class Batch:
    """A batch of pairs, or the B of them that are one process's; in host memory, features in the stores' precision.

    Attributes:
        image: the arguments of a network's `encode_images`: visual (B, K, D), lengths (B,) int64 and, from a panoptic store,
            seg_maps (B, H, W) uint8, category_onehots (B, C) and seg_features (B, C, h, w). K is the whole batch's longest
            item.
        text: those of its `encode_captions`: token_ids (B, T) int64, lengths (B,) int64.
        images: (N,) int64 tensor, the image of each pair of the whole batch. captions: (N,) int64 array, positions in
            the split, likewise.
    """

    image: tuple[Tensor, ...]
    text: tuple[Tensor, Tensor]
    images: Tensor
    captions: np.ndarray

    def inputs(self) -> tuple[Tensor, ...]:
        """The arguments of a network's `forward`."""
        return *self.image, *self.text

    def pinned(self) -> Batch:
        """In page-locked memory, from which a device copies while the processor goes on."""
        image, text = (tuple(part.pin_memory() for part in side) for side in (self.image, self.text))
        return replace(self, image=image, text=text)


def kept_tokens(
    counts: np.ndarray,
    width: int,
    *,
    token_drop: float = 0.0,
    varies: bool = False,
    generator: np.random.Generator | None = None,
) -> np.ndarray:
    """(B, width) bool: which places hold one of an image's `counts` visual tokens.

    With `token_drop` p each of them is left out with probability p (the reference's size augmentation); if it `varies`, with
    p * u where its image draws u from [0, 1), and not at all where u is 0.2 at most (VSE-infinity's for grids).
    """
    kept = np.arange(width) < counts[:, None]
    if token_drop > 0:
        draws, share = generator.random(kept.shape), token_drop
        if varies:
            of_image = generator.random((len(counts), 1))
            share = token_drop * np.where(of_image > 0.2, of_image, 0.0)
        kept &= draws >= share
    return kept


def image_tensors(
    found: dict[str, np.ndarray],
    *,
    token_drop: float = 0.0,
    generator: np.random.Generator | None = None,
    kept: np.ndarray | None = None,
    longest: int | None = None,
) -> tuple[Tensor, ...]:
    """The arguments of a network's `encode_images` from what `Features.rows` gives.

    The visual tokens that `kept` (B, K) says, or else `kept_tokens`, are packed to the front, zeros after them, and cut
    to `longest` or else to the longest item.
    """
    features = found["features"]
    if kept is None:
        kept = kept_tokens(found["counts"], features.shape[1], token_drop=token_drop, generator=generator)
    lengths = kept.sum(axis=1)
    item, source = np.nonzero(kept)
    target = np.cumsum(kept, axis=1)[item, source] - 1
    longest = max(1, int(lengths.max(initial=0)) if longest is None else longest)
    if longest == features.shape[1] and kept.all():
        visual = features
    else:
        visual = np.zeros((len(features), longest, features.shape[2]), dtype=features.dtype)
        visual[item, target] = features[item, source]
    others = [found[name] for name in ARRAYS["panoptic"] if name in found]
    return tuple(torch.from_numpy(part) for part in (visual, lengths, *others))


class TrainingPairs:
    """The pairs of a split, shuffled each epoch, with both augmentations. `batches(epoch)` whole batches make an epoch.

    Args:
        split, features, tokenizer: what to train on.
        batch_size: pairs per batch; the last, incomplete batch of an epoch is left out, as in the reference, unless
            `keep_last`.
        token_drop, token_drop_varies, word_augmentation: see `kept_tokens` and `CaptionTokenizer.batch`.
        seed: of shuffling and augmentation.
    """

    def __init__(
        self,
        split: Split,
        features: Features,
        tokenizer: CaptionTokenizer,
        *,
        batch_size: int,
        token_drop: float = 0.0,
        token_drop_varies: bool = False,
        word_augmentation: float = 0.0,
        keep_last: bool = False,
        seed: int = 0,
    ) -> None:
        if len(split.captions) < batch_size:
            raise UserError(
                f"training.batch_size is {batch_size}, but split {split.name!r} has only {len(split.captions)} "
                "captions; lower it"
            )
        self.split, self.features, self.tokenizer = split, features, tokenizer
        self.batch_size, self.token_drop, self.word_augmentation = batch_size, token_drop, word_augmentation
        self.token_drop_varies, self.keep_last, self.seed = token_drop_varies, keep_last, seed
        self.pieces: Pieces = tokenizer.split(split.captions)
        self._shuffled: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        whole, left = divmod(len(self.split.captions), self.batch_size)
        # Batch statistics and negatives need two pairs, and every process one.
        return whole + (self.keep_last and left >= max(2, all_processes()))

    @property
    def per_epoch(self) -> int:
        """Pairs per epoch."""
        return min(len(self) * self.batch_size, len(self.split.captions))

    def batch(self, epoch: int, position: int, *, process: int = 0, processes: int = 1) -> Batch:
        """Batch `position` of `epoch`, both from 0, or what `process` of so many works on.

        Every process draws the augmentation of the whole batch, but reads and packs its own items only.
        """
        captions = self._order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]
        generator = np.random.default_rng([self.seed, epoch, position + 1])
        images = self.split.caption_image[captions]
        rows, own = self.split.image_rows[images], share(len(captions), process, processes)
        found = self.features.rows(rows[own])
        counts = found["counts"] if processes == 1 else self.features.counts(rows)
        width = found["features"].shape[1]
        kept = kept_tokens(
            counts, width, token_drop=self.token_drop, varies=self.token_drop_varies, generator=generator
        )
        tensors = image_tensors(found, kept=kept[own], longest=int(kept.sum(axis=1).max()))
        tokens, lengths = self.tokenizer.batch(
            self.pieces, captions, augmentation=self.word_augmentation, generator=generator
        )
        tokens, lengths = tokens[own, : lengths[own].max()], lengths[own]
        text = (torch.from_numpy(tokens), torch.from_numpy(lengths))
        return Batch(tensors, text, torch.from_numpy(images), captions)

    def _order(self, epoch: int) -> np.ndarray:
        known = self._shuffled
        if known is None or known[0] != epoch:
            known = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.split.captions))
            self._shuffled = known
        return known[1]

    def batches(
        self, epoch: int, *, start: int = 0, workers: int = 0, process: int = 0, processes: int = 1, pin: bool = False
    ) -> Iterator[Batch]:
        """The batches of an epoch from position `start` on; `workers` threads make them ahead of time.

        At most 2 x workers + 1 batches are in memory besides the one in use, however large the stores. `pin`: in
        page-locked memory.
        """

        def make(position: int) -> Batch:
            batch = self.batch(epoch, position, process=process, processes=processes)
            return batch.pinned() if pin else batch

        return prefetch(make, range(start, len(self)), workers=workers)


def prefetch(make: Callable[[int], Any], items: Sequence[int], *, workers: int = 0) -> Iterator[Any]:
    """`make(item)` for each item, in order. `workers` threads stay 2 x workers ahead; with 0 nothing runs ahead."""
    if workers == 0:
        yield from map(make, items)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="batch") as pool:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _name(store: FeatureStore) -> str:
    return str(getattr(store, "path", None) or store.attributes.get("feature", "unnamed"))
