"""A folder of images with captions: what is read, and what is said of mistakes."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.folder import read_folder
from core.console import UserError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "more").mkdir(parents=True)
    for name in ("a.jpg", "b.PNG", "more/c.webp", "notes.txt"):
        (root / name).write_bytes(b"x")
    return root


def captions(folder, rows, suffix=".csv"):
    path = folder.parent / f"captions{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(r) for r in rows))
    else:
        keys = list(rows[0])
        lines = [",".join(keys)] + [",".join(f'"{r[k]}"' for k in keys) for r in rows]
        path.write_text("\n".join(lines))
    return str(path)


GOOD = [
    {"image": "a.jpg", "caption": "one, two"},
    {"image": "a", "caption": "  another   text "},
    {"image": "b.PNG", "caption": "ein Bär"},
    {"image": "more/c.webp", "caption": "third"},
]


def test_images_alone_are_enough(folder):
    found = read_folder(str(folder))
    assert found.image_ids == ["a", "b", "more/c"]
    assert found.splits == ["all"] * 3 and found.texts == []
    assert found.paths[2] == str(folder / "more" / "c.webp")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_captions_are_grouped_in_image_order(folder, suffix):
    found = read_folder(str(folder), captions(folder, GOOD[::-1], suffix))
    assert found.caption_images == ["a", "a", "b", "more/c"]
    assert found.texts == ["another text", "one, two", "ein Bär", "third"]
    assert len(set(found.caption_ids)) == 4


def test_splits_by_column_or_by_stable_fractions(folder):
    rows = [r | {"split": "test" if r["image"].startswith("b") else "train"} for r in GOOD]
    assert read_folder(str(folder), captions(folder, rows)).splits == ["train", "test", "train"]

    for i in range(200):
        (folder / f"{i}.jpg").write_bytes(b"x")
    before = dict(
        zip(
            *(lambda f: (f.image_ids, f.splits))(read_folder(str(folder), None, {"train": 0.8, "test": 0.2}, 1)),
            strict=True,
        )
    )
    share = sum(v == "test" for v in before.values()) / len(before)
    assert 0.1 < share < 0.3
    (folder / "new.jpg").write_bytes(b"x")
    found = read_folder(str(folder), None, {"train": 0.8, "test": 0.2}, 1)
    after = dict(zip(found.image_ids, found.splits, strict=True))
    assert all(after[k] == v for k, v in before.items()), "a new image must not move the others"


def test_everything_wrong_is_listed_at_once(folder):
    (folder / "more" / "a.jpg").write_bytes(b"x")
    rows = [
        {"image": "a.jpg", "caption": "fine", "caption_id": "1", "split": "train"},
        {"image": "a.jpg", "caption": "again", "caption_id": "1", "split": "test"},
        {"image": "b.PNG", "caption": "  ", "caption_id": "2", "split": "train"},
        {"image": "z.jpg", "caption": "gone", "caption_id": "3", "split": "train"},
    ]
    with pytest.raises(UserError) as error:
        read_folder(str(folder), captions(folder, rows))
    message = str(error.value)
    assert "1 captions of images that are not in the folder: 'z.jpg'" in message
    assert "1 empty captions (missing_captions: keep or drop goes on without them): 'line 4 (b.PNG)'" in message
    assert "1 caption ids that occur twice: '1'" in message
    assert "1 images with captions in two splits: 'a.jpg'" in message
    assert "3 images without a caption" in message
    assert str(folder) in message and "captions.csv" in message


def test_a_name_that_fits_two_files(folder):
    (folder / "more" / "d.jpg").write_bytes(b"x")
    (folder / "other").mkdir()
    (folder / "other" / "d.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="fits several files"):
        read_folder(str(folder), captions(folder, [*GOOD, {"image": "d.jpg", "caption": "which?"}]))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("captions.csv", 'image,caption\na.jpg,"a dog\r\nruns"\nb.PNG,one\u2028two\nc,x\n'),
        ("captions.jsonl", '{"image":"a","caption":"a dog\\r\\nruns"}\r\n{"image":"b","caption":"one\u2028two"}\n\n{"image":"c","caption":"x"}'),
    ],
)  # fmt: skip
def test_line_breaks_inside_captions(folder, name, data):
    (folder.parent / name).write_bytes(data.encode())
    assert read_folder(str(folder), str(folder.parent / name)).texts == ["a dog runs", "one two", "x"]


def test_captions_that_cannot_be_taken_as_they_are(folder):
    path = folder.parent / "captions.csv"
    path.write_text("image,caption\na.jpg,a dog, on a mat\nb.PNG,x\nc,y\nz,gone\n")
    with pytest.raises(UserError) as error:
        read_folder(str(folder), str(path))
    assert "1 rows with more fields than the header (put captions that hold a comma in quotes): 'line 2'" in str(
        error.value
    )
    assert "1 captions of images that are not in the folder: 'z'" in str(error.value)

    path.write_text('image,caption\na.jpg,"a dog\nb.PNG,x\nc,y\n')  # everything after the quote is one field
    with pytest.raises(UserError, match=r"captions\.csv, the row that begins in line 2: .*; close its quotes"):
        read_folder(str(folder), str(path))
    path.write_text('image,caption\na.jpg,"a dog\nb.PNG,x\nc,y"\nc,z\n')  # the quote is closed, by that of another row
    with pytest.raises(UserError, match=r"1 rows with an open quote, to which .* \(close it\): 'line 2 \(a.jpg\)'"):
        read_folder(str(folder), str(path), missing_captions="keep")

    path = folder.parent / "captions.jsonl"
    path.write_text(
        '{"image": "a", "caption": ["one", "two"]}\n{"image": "b", "caption": "\\ud83d"}\n{"image": "c", "caption": "x"}'
    )
    with pytest.raises(UserError) as error:
        read_folder(str(folder), str(path))
    assert "1 captions that are not text (write one row per caption): 'line 1 (a)'" in str(error.value)
    assert "1 rows with half a surrogate pair, as of an emoji cut in two (remove it): 'line 2 (b)'" in str(error.value)


def test_a_file_name_that_is_not_utf8(folder):
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    with pytest.raises(UserError, match=r"1 image ids that cannot be used .*rename the files: 'caf\\udce9'"):
        read_folder(str(folder))


def test_files_that_differ_in_the_suffix_alone_keep_it(folder):
    (folder / "a.png").write_bytes(b"x")
    rows = [r for r in GOOD if r["image"] != "a"] + [{"image": "a.png", "caption": "drawn"}]
    found = read_folder(str(folder), captions(folder, rows))
    assert found.image_ids == ["a.jpg", "a.png", "b", "more/c"]
    assert found.texts == ["one, two", "drawn", "ein Bär", "third"]
    assert "2 files differ from another in the suffix alone; their ids keep it: 'a.jpg', 'a.png'" in found.notes
    with pytest.raises(UserError, match="1 captions whose image name fits several files .*'a'"):
        read_folder(str(folder), captions(folder, [*rows, {"image": "a", "caption": "which?"}]))
    (folder / "b.PNG.jpg").write_bytes(b"x")  # its name without suffix is another file's
    found = read_folder(str(folder), captions(folder, [*rows, {"image": "b.PNG.jpg", "caption": "copy"}]))
    assert found.image_ids == ["a.jpg", "a.png", "b", "b.PNG.jpg", "more/c"] and found.texts[2:4] == ["ein Bär", "copy"]


def test_other_files_are_told(folder):
    (folder / "d.heic").write_bytes(b"x")
    found = read_folder(str(folder), captions(folder, GOOD))
    assert found.notes == ["2 files left out, no images by their suffix: 1 .heic (d.heic), 1 .txt (notes.txt)"]
    rows = [*GOOD, *({"image": name, "caption": "from a phone"} for name in ("d.heic", "D", "z.jpg"))]
    with pytest.raises(UserError) as error:
        read_folder(str(folder), captions(folder, rows))
    unread = (
        "of files that are there, but of a type that is not read (convert them, to JPEG or PNG say): 'd.heic', 'd.heic'"
    )
    assert f"2 captions {unread}" in str(
        error.value
    ) and "1 captions of images that are not in the folder: 'z.jpg'" in str(error.value)
    left = read_folder(str(folder), captions(folder, rows), missing_images="drop")
    assert f"2 captions left out, {unread}" in left.notes
    (folder.parent / "test.txt").write_text("d.heic\n")
    with pytest.raises(UserError, match="test.txt: 1 names of files that are there, but of a type that is not read"):
        read_folder(str(folder), split_files={"test": str(folder.parent / "test.txt")})
    for name in ("e.jfif", "f.jpe", "g.ppm", "h.avif", "i.jp2"):
        (folder / name).write_bytes(b"x")
    assert len(read_folder(str(folder)).image_ids) == 8


def test_going_on_without_what_is_missing(folder):
    path = captions(folder, [*GOOD[:3], {"image": "z.jpg", "caption": "gone"}])
    with pytest.raises(UserError) as error:
        read_folder(str(folder), path)
    assert "set missing_images: drop" in str(error.value) and "missing_captions: keep or drop" in str(error.value)
    kept = read_folder(str(folder), path, {"train": 1.0}, missing_images="drop", missing_captions="keep")
    assert (kept.image_ids, kept.splits) == (["a", "b", "more/c"], ["train", "train", "unlisted"])
    assert kept.notes[-2:] == [
        "1 captions left out, their images are not in the folder: 'z.jpg'",
        "1 images without a caption kept outside of all splits ('unlisted'): 'more/c'",
    ]
    left = read_folder(str(folder), path, {"train": 1.0}, missing_images="drop", missing_captions="drop")
    assert (left.image_ids, left.caption_images) == (["a", "b"], ["a", "a", "b"])
    assert left.paths == kept.paths[:2]
    blank = read_folder(
        str(folder), captions(folder, [*GOOD[:3], {"image": "more/c.webp", "caption": " "}]), missing_captions="drop"
    )
    assert (blank.image_ids, blank.notes[-2:]) == (["a", "b"], ["1 empty captions left out: 'line 5 (more/c.webp)'",
        "1 images without a caption left out: 'more/c'"])  # fmt: skip


@pytest.mark.parametrize(
    ("image", "caption", "line"),
    [
        (" ", "nobody's", "1 captions that name no image: 'line 6'"),
        ("A.JPEG", "x", "there is 'a' with another suffix"),
        ("more/b.PNG", "x", "'more/b.PNG' (there is 'b' with another suffix or in another folder)"),
        ("moree/c", "x", "'moree/c' (there is 'more/c' with another suffix or in another folder)"),
        ("a", "  ", "1 empty captions (missing_captions: keep or drop goes on without them): 'line 6 (a)'"),
    ],
)
def test_names_that_find_nothing_get_a_hint(folder, image, caption, line):
    with pytest.raises(UserError) as error:
        read_folder(str(folder), captions(folder, [*GOOD, {"image": image, "caption": caption}]))
    assert line in str(error.value) and "''" not in str(error.value)


def test_wrong_encoding_names_line_and_fix(folder):
    path = folder.parent / "captions.csv"
    path.write_bytes(b"image,caption\na.jpg,caf\xe9\n")
    with pytest.raises(UserError, match=r"captions\.csv, line 2: byte 0xe9 is not UTF-8; .*iconv -f latin1"):
        read_folder(str(folder), str(path))
    path.write_bytes("image,caption\na.jpg,a dog’s ball\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"line 2: byte 0x92 is not UTF-8; .*iconv -f cp1252"):
        read_folder(str(folder), str(path))
    path.write_bytes("image,caption\na.jpg,a dog\x92s ball\n".encode())  # what latin1 makes of that
    with pytest.raises(UserError, match=r"line 2: holds the control character U\+0092, .*iconv -f cp1252"):
        read_folder(str(folder), str(path))
    path.write_bytes("image,caption\na.jpg,x\n".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"line 1: byte 0x00 is no text; .*iconv -f utf-16le"):
        read_folder(str(folder), str(path))
    path.write_bytes(b"image,caption\n\xff\xac\xb1\xb6\x81\x80\x81\xb6\x8f\xb1\xf7\xb1\n")
    with pytest.raises(
        UserError, match=r"line 2: .* is not UTF-8; save the file as UTF-8 \(it is in none of the usual"
    ):
        read_folder(str(folder), str(path))
    path.write_bytes("image,caption\na.jpg,x\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"captions\.csv, line 1: byte 0xff is not UTF-8; .*iconv -f utf-16"):
        read_folder(str(folder), str(path))


def test_other_mistakes_name_the_file(folder, tmp_path):
    with pytest.raises(UserError, match="needs columns `image` and `caption` in its line 1; found 'file', 'text'"):
        read_folder(str(folder), captions(folder, [{"file": "a.jpg", "text": "x"}]))
    (tmp_path / "captions.jsonl").write_text('{"image": "a.jpg"\n')
    with pytest.raises(UserError, match=r"captions\.jsonl, line 1: not JSON"):
        read_folder(str(folder), str(tmp_path / "captions.jsonl"))
    (tmp_path / "captions.xml").write_text("")
    with pytest.raises(UserError, match=r"use \.csv, .* or \.parquet"):
        read_folder(str(folder), str(tmp_path / "captions.xml"))
    with pytest.raises(UserError, match="nowhere does not exist"):
        read_folder("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in"):
        read_folder(str(tmp_path / "empty"))


def test_splits_by_file(folder, tmp_path):
    (tmp_path / "train.txt").write_text("a.jpg\r\nmore/c\n\n")
    (tmp_path / "test.txt").write_text("b\n")
    files = {"train": str(tmp_path / "train.txt"), "test": str(tmp_path / "test.txt")}
    (folder / "other.jpg").write_bytes(b"x")
    found = read_folder(str(folder), split_files=files)
    assert dict(zip(found.image_ids, found.splits, strict=True)) == {
        "a": "train",
        "more/c": "train",
        "b": "test",
        "other": "unlisted",
    }

    (tmp_path / "test.txt").write_text("b\nz\na\n")
    with pytest.raises(UserError) as error:
        read_folder(str(folder), split_files=files)
    assert "test.txt: 1 names of images that are not in the folder: 'z'" in str(error.value)
    assert "test.txt: 1 images that another split has: 'a (train)'" in str(error.value)
    assert "set missing_images: drop" in str(error.value)
    (tmp_path / "test.txt").write_text("b\nz\nnotes.txt\n")
    left = read_folder(str(folder), split_files=files, missing_images="drop")
    assert left.splits == found.splits
    assert [note.partition("test.txt: ")[2] for note in left.notes[-2:]] == [
        "1 names of images that are not in the folder, left out: 'z'",
        "1 names of files that are there, but of a type that is not read (convert them, to JPEG or PNG say), left out: 'notes.txt'",
    ]
    (tmp_path / "test.txt").write_text("\n")
    with pytest.raises(UserError, match="test.txt: names no image; fill it, or leave split_files.test out"):
        read_folder(str(folder), split_files=files)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("a", "x", "Train"), ("b", "y", "train")],
            "2 splits that differ in capitals or Unicode form alone .*: 'Train', 'train'",
        ),
        ([("a", "x", "e\u0301"), ("b", "y", "\u00e9")], "2 splits that differ in capitals or Unicode form alone"),
        (
            [("a", "x", "../up"), ("b", "y", ".x"), ("more/c", "z", "-y")],
            r"3 splits whose names cannot be part of a file's name .*: '\.\./up', '\.x', '-y'",
        ),
        ([("a", "['one dog', 'a dog']", "train")], "1 captions that are not text .*: 'line 1 .a.'"),
        ([("a", '["one dog"]', "train")], "1 captions that are not text .*: 'line 1 .a.'"),
        ([("a", "\u200b\u202e", "train")], "no caption of an image is left: .* 1 empty captions left out"),
        ([({"bytes": "..."}, "x", "train")], "1 captions that name no image: 'line 1'"),
    ],
    ids=["capitals", "forms", "paths", "list", "list of JSON", "nothing to be seen", "an image in the table"],
)
def test_rows_that_look_right(folder, rows, message):
    rows = [dict(zip(("image", "caption", "split"), row, strict=True)) for row in rows]
    with pytest.raises(UserError, match=message):
        read_folder(str(folder), captions(folder, rows, ".jsonl"), missing_captions="drop")


def test_control_characters_are_blanks(folder):
    found = read_folder(str(folder), captions(folder, [*GOOD, {"image": "a", "caption": "a\0dog\x07"}], ".jsonl"))
    assert "a dog" in found.texts
    assert found.notes[-1] == "1 captions with control characters, which count as blanks: 'line 5 (a)'"
