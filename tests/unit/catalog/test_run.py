"""The command that makes an index: its settings are checked like the configuration's."""

import json

import pytest

from catalog.index import captions_refused, read_images, read_index
from catalog.run import main
from core.console import UserError
from core.machine import IMAGES_ALONE


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


def test_captions_that_cannot_be_used_stop_nothing_but_what_reads_them(tmp_path, capsys, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"x")
    (tmp_path / "c.csv").write_text("image,caption\na.png,a dog\nb.png,a cat\n")
    settings = {"source": "folder", "images": str(tmp_path / "images"), "captions": str(tmp_path / "c.csv")}
    with pytest.raises(UserError, match="captions of images that are not in the folder: 'b.png'"):
        index(tmp_path, settings)
    monkeypatch.setenv(IMAGES_ALONE, "yes")
    with pytest.raises(UserError, match=r"captions.parquet is for features alone: .*'b\.png'"):
        index(tmp_path, settings)
    assert read_images(tmp_path / "images.parquet")[0]["image_id"].to_pylist() == ["a"]
    assert captions_refused(tmp_path / "captions.parquet")
    assert "note: the captions cannot be used, which features do not need" in capsys.readouterr().out
    # What is wrong with the images themselves does.
    with pytest.raises(UserError, match="does not exist"):
        index(tmp_path, settings | {"images": str(tmp_path / "other")})


def test_captions_that_a_conversion_has_spoilt_are_noted(tmp_path, capsys):
    """Whatever format they come in: they are words to nobody."""
    (tmp_path / "images").mkdir()
    texts = {
        "a": "a dog’s ball in a café, Ça va, ÉTÉ, naïve Ångström", "b": "a dog’s".encode().decode("cp1252"),
        "c": "собака".encode("cp1251").decode("latin1"), "d": "一只狗".encode("gb18030").decode("latin1"), "e": "caf\ufffd", "f": "一只狗",
        "g": "nan", "h": "None", "i": "a nan bread", "j": "b'a dog'", "k": "dogs &amp; cats", "l": "AT&T; a dog's", "m": "[a dog's]",
    }  # fmt: skip
    for name in texts:
        (tmp_path / "images" / f"{name}.png").write_bytes(b"x")
    rows = [{"image": f"{name}.png", "caption": text} for name, text in texts.items()]
    (tmp_path / "c.json").write_text(json.dumps(rows))
    found = index(
        tmp_path, {"source": "folder", "images": str(tmp_path / "images"), "captions": str(tmp_path / "c.json")}
    )
    twice, lost, nothing, raw, entities = found.notes
    assert raw.startswith("1 captions are bytes as Python writes them") and raw.endswith("'j#0'")
    assert entities.startswith("1 captions hold characters as HTML writes them") and entities.endswith("'k#0'")
    assert nothing.startswith("2 captions are what programs write for nothing") and nothing.endswith("'g#0', 'h#0'")
    assert twice.startswith("3 captions look as if they had been converted") and twice.endswith(
        "before: 'b#0', 'c#0', 'd#0'"
    )
    assert lost.startswith("1 captions hold U+FFFD") and lost.endswith("'e#0'")
    assert f"note: {twice}" in capsys.readouterr().out


@pytest.mark.parametrize(("same", "told"), [(10, False), (11, True)])
def test_a_caption_of_very_many_images_is_noted(tmp_path, same, told):
    (tmp_path / "images").mkdir()
    for k in range(30):
        (tmp_path / "images" / f"{k}.png").write_bytes(b"x")
    rows = [f"{k}.png,{'a dog' if k < same else f'cat {k}'}" for k in range(30)]
    (tmp_path / "c.csv").write_text("\n".join(["image,caption", *rows]))
    found = index(
        tmp_path, {"source": "folder", "images": str(tmp_path / "images"), "captions": str(tmp_path / "c.csv")}
    )
    assert found.notes == (
        (
            f"{same} captions are the same, 'a dog': retrieval cannot tell their images apart; was a column filled by mistake?",
        )
        if told
        else ()
    )
