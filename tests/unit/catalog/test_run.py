"""The command that makes an index: its settings are checked like the configuration's."""

import json

import pytest

from catalog.index import read_index
from catalog.run import main
from core.console import UserError


def index(folder, settings, *flags):
    arguments = ["index", "--dataset", "d", "--settings", json.dumps(settings), "--threads", "1", *map(str, flags)]
    main([*arguments, "--images", f"{folder}/images.parquet", "--captions", f"{folder}/captions.parquet"])
    return read_index(folder)


def test_scenes_are_rendered_and_indexed(tmp_path, capsys):
    settings = {"source": "scenes", "splits": {"train": 2, "val": 1}}
    main(["render", "--dataset", "d", "--settings", json.dumps(settings), "--output", str(tmp_path / "scenes")])
    rows = index(tmp_path, settings, "--annotations", tmp_path / "scenes")
    assert rows.images.column("split").to_pylist() == ["train", "train", "val"]
    assert rows.captions.num_rows == 15
    assert "d: 3 images (train 2, val 1), 15 captions\n" in capsys.readouterr().out


def test_unpacked_images_are_indexed_where_they_lie(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"no image")
    rows = index(tmp_path, {"source": "folder", "images": "photos.zip"}, "--unpacked", tmp_path / "out")
    assert rows.images.column("path").to_pylist() == [str(tmp_path / "out" / "a.png")]
    assert "d: 1 images (all 1), 0 captions, 1 files with a broken header\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"source": "foldr"}, "source: 'foldr' is not a source here; did you mean 'folder'?"),
        ({}, "source: missing; choose one of scenes, folder, karpathy, precomputed"),
        ({"source": "folder"}, "images: missing; add it"),
        ({"source": "folder", "images": "i", "caption": "c"}, "caption: unknown key; did you mean 'captions'?"),
        ({"source": "folder", "images": "i", "seed": -1}, "seed: -1 - should be greater than or equal to 0"),
    ],
)
def test_wrong_settings_are_named(tmp_path, settings, line):
    with pytest.raises(UserError, match="^--settings: ") as error:
        index(tmp_path, settings)
    assert line in str(error.value)
