"""How users name an image: found where only one can be meant."""

import hashlib
import math
import unicodedata
from pathlib import Path

import pytest

from catalog.names import Names, as_name, row_of
from core.console import UserError

FILES = ["0.jpg", "00123.png", "Dog.JPG", "more/COCO_val2014_000000000042.jpg", "more/d.jpg", "other/d.jpg"]


@pytest.fixture
def names(tmp_path):
    root = tmp_path / "mine" / "images"
    return Names(root, FILES, [f.rsplit(".", 1)[0] for f in FILES], ["more/raw.heic", "notes"])


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (0, "0"),
        ("0", "0"),
        (0.0, "0"),
        (123, "00123"),
        ("123.0", "00123"),
        (42, "more/COCO_val2014_000000000042"),
        ("123.png", "00123"),
        ("123.jpg", ""),
        ("42.JPG", "more/COCO_val2014_000000000042"),
        ("dog.jpg", "Dog"),
        (" Dog ", "Dog"),
        ("./more/d.jpg", "more/d"),
        ("more\\d.jpg", "more/d"),
        ("images/more/d", "more/d"),
        ("mine/images/0.jpg", "0"),
        ("d.jpg", None),
        ("d", None),
        ("else/d.jpg", ""),
        ("elsewhere/0.jpg", ""),
        ("0.jpg#0", "0"),
        ("more/d.jpg#12", "more/d"),
        ("d.jpg#1", None),
        ("0.jpg#x", ""),
        (7, ""),
        (None, ""),
        ("  ", ""),
        (math.nan, ""),
    ],
)
def test_what_is_found(names, given, found):
    assert names.find(given) == found


def test_numbers_that_floating_point_cannot_tell_apart():
    """9007199254740993 becomes 9007199254740992 where a table is read as numbers."""
    names = Names("x", ["9007199254740992.jpg", "9007199254740991.jpg"], ["9007199254740992", "9007199254740991"])
    assert names.find(9007199254740993.0) == ""
    assert names.find(9007199254740991.0) == "9007199254740991"


def test_absolute_paths_into_the_folder(names, tmp_path):
    assert names.find(str(tmp_path / "mine" / "images" / "more" / "d.jpg")) == "more/d"
    assert names.find(str(tmp_path / "mine" / "0.jpg")) == ""


def test_composed_and_decomposed_names_are_one():
    decomposed = unicodedata.normalize("NFD", "café")
    assert decomposed != "café"
    for on_disk, given in ((decomposed, "café.jpg"), ("café", f"{decomposed}.jpg"), ("CAFÉ", decomposed)):
        assert Names("x", [f"{on_disk}.jpg"], [on_disk]).find(given) == on_disk


def test_hints(names):
    assert "has kept the first digits" in names.hint("1.23457E+11")
    assert (names.unread("raw.heic"), names.unread("RAW"), names.unread("notes")) == (
        "more/raw.heic",
        "more/raw.heic",
        "notes",
    )
    assert names.unread("Dog.png") == ""
    assert names.hint("Dog.png") == " (there is 'Dog' with another suffix or in another folder)"
    assert names.hint("more/COCO_val2014_000000000043.jpg") == " (did you mean 'more/COCO_val2014_000000000042.jpg'?)"
    assert names.hint("quite another") == ""


def test_an_image_of_an_index_is_known_by_id_file_copy_and_name(tmp_path):
    paths = [str(tmp_path / name) for name in ("a/dog.jpg", "b/dog.jpg", "b/Cat.png")]
    for number, path in enumerate(paths):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(bytes([number]))
    contents = [hashlib.sha256(bytes([number])).hexdigest() for number in range(3)]
    index = (["a/dog", "b/dog", "b/Cat"], paths, contents)
    (tmp_path / "link").symlink_to(tmp_path / "b")
    (tmp_path / "copy.jpg").write_bytes(bytes([1]))
    for given, row in (("b/dog", 1), (paths[1], 1), (str(tmp_path / "link/Cat.png"), 2), (str(tmp_path / "copy.jpg"), 1),
                       ("Cat.png", 2), ("cat", 2), ("b/dog.jpg", 1), ("bird.jpg", None), ("", None)):  # fmt: skip
        assert row_of(given, *index) == row, given
    # A file of one's own is not what happens to be called so.
    (tmp_path / "Cat.png").write_bytes(b"another")
    assert row_of(str(tmp_path / "Cat.png"), *index) is None
    with pytest.raises(UserError, match="'dog.jpg' could be 2 images"):
        row_of("dog.jpg", *index)
    assert row_of("x", ["x", "y"], [None, None], [None, None]) == 0  # features without images
    archived = (["p/1", "p/2"], ["photos.zip#p/1.jpg", "photos.zip#p/2.jpg"], ["", ""])
    assert [row_of(name, *archived) for name in ("2.jpg", "p/2.JPG", "photos.zip#p/2.jpg", "2", "p")] == [
        1,
        1,
        1,
        1,
        None,
    ]


def test_a_cell_s_name():
    assert [as_name(v) for v in (0, 1.0, 1.5, None, math.nan, "x", True)] == ["0", "1", "1.5", "", "", "x", "True"]
