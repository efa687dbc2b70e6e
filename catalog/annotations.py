"""What a source of images and captions knows, and the two tables of the index that are made of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa

from catalog.index import CAPTIONS_SCHEMA, IMAGES_SCHEMA, describe_images, listing
from core.text import spoilt

_OFTEN, _SHARE = 10, 0.05  # times that a caption may be there, and share of the images; COCO's commonest is at 0.0003
UNLISTED = "unlisted"  # split of images that belong to none


@dataclass
class Annotations:
    """What a source knows before any image is opened: parallel lists per image, and per caption; and what to tell of it.

    `content_hashes`: of a source without image files, what stands for an image's bytes.
    """

    image_ids: list[str]
    paths: list[str]
    splits: list[str]
    caption_ids: list[str]
    caption_images: list[str]
    texts: list[str]
    notes: list[str] = field(default_factory=list)
    content_hashes: list[str] | None = None

    def keep_first(self, count: int | None) -> None:
        """Leave out an image's captions beyond its first `count`, and note how many; None keeps all."""
        if count is None:
            return
        seen: Counter[str] = Counter()
        kept, beyond = [], set()
        for k, image_id in enumerate(self.caption_images):
            seen[image_id] += 1
            if seen[image_id] <= count:
                kept.append(k)
            else:
                beyond.add(image_id)
        if beyond:
            left = len(self.caption_images) - len(kept)
            self.notes.append(
                f"{left} captions of {len(beyond)} images left out: the first {count} of an image count (captions_per_image)"
            )
            for name in ("caption_ids", "caption_images", "texts"):
                setattr(self, name, [getattr(self, name)[k] for k in kept])

    def note_spoilt(self) -> None:
        """Note captions that an earlier program or conversion seems to have spoilt, and one that very many images have."""
        found: dict[str, list[str]] = {}
        for caption_id, text in zip(self.caption_ids, self.texts, strict=True):
            # Of hundreds of thousands few can be.
            odd = not text.isascii() or len(text) < 12 or text[-1] in "]'\"" or "&" in text
            if odd and (what := spoilt(text)):
                found.setdefault(what, []).append(caption_id)
        self.notes += [listing(what, ids) for what, ids in found.items()]
        for text, count in Counter(self.texts).most_common(1):
            if count > max(_OFTEN, _SHARE * len(self.image_ids)):
                shown = repr(text if len(text) <= 60 else f"{text[:60]}...")
                self.notes.append(
                    f"{count} captions are the same, {shown}: retrieval cannot tell their images apart; was a column filled by mistake?"
                )

    def images(self, workers: int) -> pa.Table:
        """The images table of the index. workers: threads that read the files."""
        if self.content_hashes is None:
            return describe_images(self.image_ids, self.paths, self.splits, workers, self.notes)
        count = len(self.image_ids)
        # There are no images: 0 pixels, as for those that cannot be read, but no error.
        columns = {"width": [0] * count, "height": [0] * count, "error": [None] * count}
        columns |= {"image_id": self.image_ids, "path": self.paths, "split": self.splits}
        return pa.Table.from_pydict(columns | {"content_hash": self.content_hashes}, schema=IMAGES_SCHEMA)

    def captions(self) -> pa.Table:
        """The captions table of the index."""
        columns = {"caption_id": self.caption_ids, "image_id": self.caption_images, "text": self.texts}
        return pa.Table.from_pydict(columns, schema=CAPTIONS_SCHEMA)
