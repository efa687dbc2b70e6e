"""A picture that a run has learnt from in one dataset and is scored on in another is told."""

from pathlib import Path

import pyarrow as pa

from catalog.index import CAPTIONS_SCHEMA, IMAGES_SCHEMA, write_index
from core import layout
from reporting.artefacts import Artefacts
from reporting.report import build, render
from reporting.seen import seen_in_training

CONFIG = {
    "datasets": {"coco": {"source": "folder"}, "flickr": {"source": "folder"}},
    "runs": {
        "a": {"dataset": "coco", "visual": "regions", "train_split": "train", "val_split": "val"},
        "b": {"dataset": "coco", "visual": "grids", "train_split": "train", "val_split": None},
        "published": {"dataset": "coco", "visual": "grids", "train_split": "train", "checkpoint": "some.pth"},
    },
    "testsets": {"own": {"dataset": "coco", "split": "test"}, "other": {"dataset": "flickr", "split": "test"}},
}


def write(results, dataset, images):
    """images: (id, split, content hash)"""
    table = pa.Table.from_pylist(
        [
            {"image_id": name, "path": name, "width": 1, "height": 1, "split": split, "content_hash": content}
            for name, split, content in images
        ],
        schema=IMAGES_SCHEMA,
    )
    captions = pa.Table.from_pylist([], schema=CAPTIONS_SCHEMA)
    write_index(Path(layout.images(results, dataset)), Path(layout.captions(results, dataset)), table, captions)


def test_pictures_of_other_datasets_are_told(tmp_path):
    write(
        tmp_path,
        "coco",
        [("1", "train", "x"), ("2", "train", "y"), ("3", "val", "z"), ("4", "test", "x"), ("5", "train", "")],
    )
    write(tmp_path, "flickr", [("p", "test", "x"), ("q", "test", "z"), ("r", "train", "y"), ("s", "test", ""), ("t", "test", "new")])  # fmt: skip
    artefacts = Artefacts(tmp_path, CONFIG)
    assert seen_in_training(artefacts) == [
        "1 pictures of test set other are also in split 'train' of coco, byte by byte, on which a, b trained: 'p = 1 of coco'",
        "1 pictures of test set other are also in split 'val' of coco, byte by byte, by which a chose the best epoch: 'q = 3 of coco'",
    ]
    assert "&#39;train&#39; of coco, byte by byte" in render(build(artefacts, queries=0, seed=0))


def test_nothing_in_common_is_nothing_to_tell(tmp_path):
    write(tmp_path, "coco", [("1", "train", "x")])
    write(tmp_path, "flickr", [("p", "test", "w"), ("s", "test", "")])
    assert seen_in_training(Artefacts(tmp_path, CONFIG)) == []


def test_an_index_that_is_not_there_tells_nothing(tmp_path):
    write(tmp_path, "coco", [("1", "train", "x")])
    assert seen_in_training(Artefacts(tmp_path, CONFIG)) == []
