"""Zip files of images: what is harmless is unpacked, everything hostile is refused before anything is written."""

from __future__ import annotations

import io
import os
import shutil
import stat
import zipfile

import pytest
from PIL import Image

from catalog.archives import unpack_images
from core.console import UserError


def picture(colour=(200, 30, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pack(tmp_path):
    """`pack({name: bytes, ...})` writes a zip file; a `ZipInfo` may stand for a name."""

    def write(members: dict, compression: int = zipfile.ZIP_DEFLATED):
        path = tmp_path / "photos.zip"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return path

    return write


def everything_below(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_images_are_unpacked_and_nothing_else(pack, tmp_path):
    archive = pack(
        {
            "train/": b"",
            "train/ä b.png": picture(),
            "c.JPG": b"broken, but that is for the index to say",
            "readme.txt": b"hello",
            "script.sh": b"rm -rf /",
            "train/.hidden.png": picture(),
            "__MACOSX/train/._a.png": b"rubbish",
            "train/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg": b"rubbish",
        }
    )
    output = tmp_path / "out" / "images"
    assert unpack_images(archive, output) == 2
    assert everything_below(tmp_path / "out") == {"images", "images/c.JPG", "images/train", "images/train/ä b.png"}
    assert (output / "train/ä b.png").read_bytes() == picture()
    # Again, with other contents: nothing of before is left.
    assert unpack_images(pack({"d.png": picture()}), output) == 1
    assert everything_below(output) == {"d.png"}


@pytest.mark.parametrize(("method", "words"), [(9, "Deflate64, as Windows Explorer"), (98, "ppmd"), (93, "method 93")])
def test_what_cannot_be_unpacked_is_known_from_the_directory(pack, tmp_path, method, words):
    archive = pack({"a.png": picture(), "notes.txt": b"x"})
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):  # local and central header of the first member
        at = data.index(signature) + offset
        data[at : at + 2] = method.to_bytes(2, "little")
    archive.write_bytes(data)
    with pytest.raises(UserError) as error:
        unpack_images(archive, tmp_path / "images")
    assert words in str(error.value) and "nothing was unpacked" in str(error.value) and "copy" not in str(error.value)
    assert not (tmp_path / "images").exists()


def test_what_is_left_out_of_an_archive_is_told(pack, tmp_path, capsys):
    assert unpack_images(pack({"a.jfif": picture(), "b.heic": b"x", "c.txt": b"x"}), tmp_path / "images") == 1
    assert (
        "note: 2 files left out, no images by their suffix: 1 .heic (b.heic), 1 .txt (c.txt)" in capsys.readouterr().out
    )


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


HOSTILE = {
    "up": ({"../evil.png": b"x"}, "lead out of the archive"),
    "up within": ({"a/../../evil.png": b"x"}, "lead out of the archive"),
    "absolute": ({"/tmp/evil.png": b"x"}, "absolute paths"),
    "drive": ({"C:/evil.png": b"x"}, "absolute paths"),
    "backslash": ({"..\\evil.png": b"x"}, "lead out of the archive"),
    "another system": ({"\\evil.png": b"x"}, "absolute paths, or paths of another system"),
    "folder by backslash": ({"a\\b.png": b"x", "a/b.png": b"y"}, "or occur twice"),
    "symbolic link": ({link("evil.png"): b"/etc/passwd"}, "links or devices"),
    "link to a folder": ({link("folder"): b"/tmp", "folder/evil.png": b"x"}, "links or devices"),
    "control character": ({"a\nb.png": b"x"}, "control characters"),
    "long": ({"a" * 300 + ".png": b"x"}, "too long"),
    "case": ({"A.png": b"x", "a.png": b"y"}, "differ in case"),
    "unicode forms": ({"\u00e9.png": b"x", "e\u0301.png": b"y"}, "differ in case"),
    "bomb": ({"bomb.png": bytes(200 << 20)}, "out of proportion"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused_before_anything_is_written(pack, tmp_path, name):
    members, message = HOSTILE[name]
    archive = pack({"good.png": picture(), **members})
    before = everything_below(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        unpack_images(archive, tmp_path / "out" / "images")
    assert "refused, nothing was unpacked" in str(caught.value)
    assert everything_below(tmp_path) == before


def test_a_nul_in_a_name_is_seen(pack, tmp_path):
    archive = pack({"good.pngX.png": picture()})
    archive.write_bytes(archive.read_bytes().replace(b"good.pngX", b"good.png\0"))
    with pytest.raises(UserError, match="control characters"):
        unpack_images(archive, tmp_path / "images")


def test_encrypted_archives_are_refused(pack, tmp_path):
    archive = pack({"a.png": picture()})
    data = bytearray(archive.read_bytes())
    directory = data.index(b"PK\1\2")
    data[6] |= 1
    data[directory + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(UserError, match="encrypted"):
        unpack_images(archive, tmp_path / "images")


def test_a_member_that_lies_about_its_size_is_damage(pack, tmp_path):
    archive = pack({"a.png": bytes(1 << 20)})
    data = bytearray(archive.read_bytes())
    for place in (data.index(b"PK\3\4") + 22, data.index(b"PK\1\2") + 24):
        data[place : place + 4] = (1000).to_bytes(4, "little")
    archive.write_bytes(data)
    with pytest.raises(UserError, match="'a.png' is damaged"):
        unpack_images(archive, tmp_path / "images")
    assert not (tmp_path / "images").exists()


def test_a_damaged_member_is_named(pack, tmp_path):
    archive = pack({"a.png": os.urandom(5000)}, zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    data[2000] ^= 1
    archive.write_bytes(data)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "old.png").write_bytes(b"old")
    with pytest.raises(UserError, match="'a.png' is damaged .*copy the archive again"):
        unpack_images(archive, tmp_path / "images")
    assert everything_below(tmp_path / "images") == {"old.png"}, "what was there stays until all is well"


def test_no_space_is_said_before_it_is_missed(pack, tmp_path, monkeypatch):
    archive = pack({"a.png": picture()})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(UserError, match="10 are free; make room"):
        unpack_images(archive, tmp_path / "images")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"no zip", "no zip file that can be read"), (None, "no zip file that can be read")],
)
def test_no_archive(tmp_path, content, message):
    archive = tmp_path / "photos.zip"
    if content is not None:
        archive.write_bytes(content)
    with pytest.raises(UserError, match=message):
        unpack_images(archive, tmp_path / "images")


def test_names_in_utf8_that_do_not_say_so(pack, tmp_path):
    """As zip on Linux and macOS writes them: without the flag, letters of old PCs are meant."""
    archive = pack({"cafe1.png": picture()})
    archive.write_bytes(archive.read_bytes().replace(b"cafe1", "café".encode()))
    unpack_images(archive, tmp_path / "images")
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["café.png"]


def test_a_file_and_a_folder_of_one_name(pack, tmp_path):
    with pytest.raises(UserError, match="called as a file: 'A.png/b.png'"):
        unpack_images(pack({"A.png/b.png": picture(), "a.png": picture()}), tmp_path / "images")


def test_an_archive_without_images(pack, tmp_path):
    with pytest.raises(UserError, match="no images in"):
        unpack_images(pack({"a.txt": b"x"}), tmp_path / "images")


def test_backslashes_of_older_programs_are_folders(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for name in ("a\\b.png", "a\\c\\d.jpg"):
            file.writestr(name, b"x")
    assert unpack_images(tmp_path / "photos.zip", tmp_path / "out") == 2
    assert (tmp_path / "out/a/b.png").is_file() and (tmp_path / "out/a/c/d.jpg").is_file()


@pytest.mark.parametrize(
    ("encoding", "names", "noted"),
    [
        ("gb18030", ["一只狗在跑", "海滩"], "taken for gb18030"), ("shift_jis", ["犬がビーチ", "走る人"], "taken for cp932"),
        ("cp866", ["собака", "пляж"], "taken for cp866"), ("cp437", ["café", "über"], ""), ("utf-8", ["犬", "é"], ""),
    ],
)  # fmt: skip
def test_names_in_what_a_country_uses(tmp_path, capsys, encoding, names, noted):
    """Windows' own zip folders say no encoding."""
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for k in range(len(names)):
            file.writestr(f"{k}" * 20 + ".jpg", b"x")
    content = (tmp_path / "photos.zip").read_bytes()
    for k, name in enumerate(names):
        content = content.replace(f"{k}".encode() * 20, name.encode(encoding).ljust(20, b"_"))
    (tmp_path / "photos.zip").write_bytes(content)
    unpack_images(tmp_path / "photos.zip", tmp_path / "out")
    assert sorted(path.stem.strip("_") for path in (tmp_path / "out").iterdir()) == sorted(names)
    printed = capsys.readouterr().out
    assert (noted in printed) if noted else "encoding" not in printed
