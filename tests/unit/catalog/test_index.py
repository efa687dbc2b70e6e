"""The index: sizes, hashes, digests and versions."""

import hashlib
import struct

import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from catalog.index import (
    CAPTIONS_SCHEMA,
    check_image_ids,
    describe_images,
    index_digest,
    read_images,
    read_index,
    write_index,
)
from core.console import UserError


@pytest.fixture
def files(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    return [str(tmp_path / n) for n in ("plain.png", "turned.jpg", "broken.jpg", "missing.jpg")]


def table(files):
    return describe_images(["a", "b", "c", "d"], files, ["train"] * 4, workers=2)


def test_sizes_are_upright_and_hashes_of_the_bytes(files):
    rows = table(files).to_pylist()
    assert (rows[0]["width"], rows[0]["height"]) == (30, 20)
    assert (rows[1]["width"], rows[1]["height"]) == (20, 30)
    with open(files[0], "rb") as file:
        assert rows[0]["content_hash"] == hashlib.sha256(file.read()).hexdigest()
    assert rows[0]["error"] is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "tif", "png", "webp"])
def test_every_format_is_measured_as_it_is_decoded(tmp_path, kind, orientation):
    path, exif = str(tmp_path / f"a.{kind}"), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    row = describe_images(["a"], [path], ["train"]).to_pylist()[0]
    with Image.open(path) as image:
        assert (row["width"], row["height"]) == ImageOps.exif_transpose(image).size
    assert (row["width"], row["height"]) == ((20, 30) if orientation > 4 else (30, 20))


def test_a_broken_header_is_a_note_not_a_stop(files):
    rows = table(files).to_pylist()
    assert (rows[2]["width"], rows[2]["height"]) == (0, 0) and "not a readable image" in rows[2]["error"]
    assert "cannot be read" in rows[3]["error"]


def test_empty_and_gigantic_files_are_called_that(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    # The header alone says it: 30,000 x 30,000 pixels.
    (tmp_path / "b.bmp").write_bytes(
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 30000, 30000, 1, 24, *[0] * 6)
    )
    paths = [str(tmp_path / name) for name in ("a.jpg", "b.bmp")]
    errors = describe_images(["a", "b"], paths, ["x", "x"])["error"].to_pylist()
    assert errors == ["an empty file (0 bytes); copy it again", "has more than 178,956,970 pixels; scale it down"]


def test_round_trip_with_digest_and_version(files, tmp_path):
    images = table(files)
    captions = CAPTIONS_SCHEMA.empty_table()
    paths = tmp_path / "index" / "images.parquet", tmp_path / "index" / "captions.parquet"
    digest = write_index(*paths, images, captions)
    index = read_index(tmp_path / "index")
    assert index.digest == digest == index_digest(["a", "b", "c", "d"], images.column("content_hash").to_pylist())
    assert index.images.equals(images) and index.captions.num_rows == 0
    first = [p.read_bytes() for p in paths]
    write_index(*paths, images, captions)
    assert [p.read_bytes() for p in paths] == first

    newer = pq.read_table(paths[0])
    pq.write_table(newer.replace_schema_metadata({"index_version": "2", "index_digest": digest}), paths[0])
    with pytest.raises(UserError, match="index version 2"):
        read_images(paths[0])
    with pytest.raises(UserError, match="target `index`"):
        read_images(tmp_path / "nowhere.parquet")


def test_what_is_no_table_of_the_index_is_told(files, tmp_path):
    images, captions = tmp_path / "images.parquet", tmp_path / "captions.parquet"
    write_index(images, captions, describe_images(["a"], [str(files[0])], ["train"]), CAPTIONS_SCHEMA.empty_table())
    with pytest.raises(UserError, match="captions.parquet is another table: it has no column path; make it"):
        read_images(captions)
    images.write_bytes(images.read_bytes()[:100])
    for read in (read_images, read_index):
        with pytest.raises(
            UserError, match="images.parquet is damaged, or no Parquet file; remove it and make it with the target"
        ):
            read(images)


def test_tables_of_different_runs_are_refused(files, tmp_path):
    images = table(files)
    paths = tmp_path / "images.parquet", tmp_path / "captions.parquet"
    write_index(*paths, images, CAPTIONS_SCHEMA.empty_table())
    write_index(paths[0], tmp_path / "other.parquet", images.slice(0, 2), CAPTIONS_SCHEMA.empty_table())
    with pytest.raises(UserError, match="different runs"):
        read_index(tmp_path)


def test_the_digest_depends_on_order_name_and_content():
    base = index_digest(["a", "b"], ["1", "2"])
    assert (
        len(
            {
                base,
                index_digest(["b", "a"], ["2", "1"]),
                index_digest(["a", "c"], ["1", "2"]),
                index_digest(["a", "b"], ["1", "3"]),
            }
        )
        == 4
    )


def test_hostile_and_repeated_ids_are_listed():
    problems = check_image_ids(
        ["ok", "sub/ok", "../up", "a/../b", "/root", "nul\0", "x" * 300, "ok", "e\u0301", "\u00e9", "\udcff"]
    )
    assert "6 image ids that cannot be used" in problems[0]
    assert "2 image ids that occur twice" in problems[1]
    assert check_image_ids(["a", "b/c", "A"]) == []


def test_what_pillow_warns_of_is_told_with_the_files_name(tmp_path, capsys):
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\0\0\xff\xff\0\x06"  # says five entries, has a part of one
    paths = [str(tmp_path / f"{name}.jpg") for name in "abc"]
    for path in paths:
        Image.new("RGB", (4, 2)).save(path, **({} if path == paths[1] else {"exif": exif}))
    Image.new("1", (10_000, 9_000)).save(tmp_path / "large.png")  # beyond Pillow's limit, not twice
    paths.append(str(tmp_path / "large.png"))
    notes = []
    table = describe_images(list("abcd"), paths, ["x"] * 4, workers=2, notes=notes)
    assert table["error"].to_pylist() == [None] * 4 and table["width"][3].as_py() == 10_000
    (note,) = notes
    assert note.startswith(
        f"2 images with damaged metadata, which are taken as far as they can be read: '{paths[0]}: Corrupt EXIF"
    )
    assert paths[2] in note and paths[1] not in note
    assert capsys.readouterr().err.count("Warning") == 0


def test_files_of_several_images_are_told(tmp_path):
    frames = [Image.new("RGB", (4, 2), (k, 0, 0)) for k in range(0, 200, 90)]
    names = ("a.gif", "a.png", "a.webp", "a.tif", "one.gif", "one.tif", "photo.mpo", "cut.gif")
    for name in names:
        more = {} if name.startswith("one") else {"save_all": True, "append_images": frames[1:]}
        frames[0].save(tmp_path / name, **more)
    with open(tmp_path / "cut.gif", "r+b") as file:
        file.truncate(40)
    paths, notes = [str(tmp_path / name) for name in names], []
    table = describe_images(names, paths, ["x"] * len(names), workers=1, notes=notes)
    assert list(zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)) == [(4, 2)] * len(names)
    shown = ", ".join(map(repr, paths[:4]))
    assert notes == [f"4 files of several frames or pages, of which the first is the image: {shown}"]
