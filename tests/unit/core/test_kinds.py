"""Files that are not what their names say are told apart by their first bytes."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from catalog.archives import unpack_images
from catalog.index import ImageRows, describe_images
from catalog.karpathy import read_karpathy
from catalog.precomputed import open_array
from catalog.tables import read_table
from core.console import UserError
from core.kinds import other_kind, why_missing, wrong_file
from exchange.importing import open_reader
from extractors.networks.checkpoint import read_state
from model.settings import Text
from settings import load_settings

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 440449768\n"
SAVED = {
    "git-lfs pointer": POINTER,
    "a web page": b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>",
    "a server's message": b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
    "an archive (gzip)": gzip.compress(b"weights"),
    "text, it begins with": b'{"error": "Repository not found"}',
    "empty (0 bytes)": b"",
}


def tar() -> bytes:
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("weights"))
        return file.getvalue()


@pytest.mark.parametrize(("what", "content"), [*SAVED.items(), ("an archive (tar)", tar())])
@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pkl", ".safetensors", ".npy", ".npz"])
def test_what_was_saved_in_place_of_numbers(tmp_path, what, content, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    assert what in other_kind(path)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.npz"])
def test_half_of_a_download(tmp_path, name):
    path = tmp_path / name
    if name.endswith("pth"):
        torch.save({"a": torch.ones(2000)}, path)
    elif name.endswith("npz"):
        np.savez(path, x=np.ones(2000))
    else:
        save_file({"a": torch.ones(2000)}, path)
    assert other_kind(path) == ""
    content = path.read_bytes()
    for part in (len(content) - 1000, 40):
        path.write_bytes(content[:part])
        assert other_kind(path) == "cut off: its end is missing; download the file itself again"


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("c.csv", b"PK\x03\x04", "a workbook"),
        ("c.json", b"\xd0\xcf\x11\xe0", "a workbook"),
        ("c.tsv", b"PAR1", "a Parquet file"),
        ("c.npy", None, "a folder; name the file itself"),
        ("c.zip", b"", "empty (0 bytes)"),
        ("c.jpg", b"\0\0\0\x18ftypheic", "a HEIC photograph, whatever its name says"),
        ("c.png", b"<svg xmlns='", "a drawing (SVG)"),
        ("c.jpg", b"%PDF-1.4", "a PDF document"),
    ],
)
def test_what_was_given_in_place_of_text_or_a_file(tmp_path, name, content, what):
    path = tmp_path / name
    path.mkdir() if content is None else path.write_bytes(content)
    assert other_kind(path).startswith(what)


def test_what_is_right_is_no_other_kind(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    np.save(tmp_path / "a.npy", np.ones(2))
    np.savez(tmp_path / "a.npz", x=np.ones(2))
    (tmp_path / "config.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir() if other_kind(path)] == []
    assert other_kind(tmp_path / "none") == ""


@pytest.mark.parametrize("what", SAVED)
def test_every_reader_says_it_without_the_librarys_advice(tmp_path, what):
    for suffix in (".pth", ".pkl", ".safetensors"):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(SAVED[what])
        with pytest.raises(ValueError) as error:
            read_state(path)
        assert what in str(error.value) and "weights_only" not in str(error.value)
    (tmp_path / "dev_ims.npy").write_bytes(SAVED[what])
    with pytest.raises(UserError) as error:
        open_array(tmp_path / "dev_ims.npy")
    assert what in str(error.value)
    for kind, feature in (("npz", "regions"), ("pth", "grids"), ("h5", "regions")):
        (tmp_path / f"a.{kind}").write_bytes(SAVED[what])
        images = ImageRows(["a"], "x", ["a.jpg"], [(1, 1)])
        with pytest.raises(UserError) as error:
            open_reader(feature, {"format": kind, "path": str(tmp_path)}, images)
        assert what in str(error.value)


def test_so_do_readers_of_images_and_captions(tmp_path):
    for what, content in list(SAVED.items())[:2]:
        (tmp_path / "images").mkdir(exist_ok=True)
        for name in ("images/a.jpg", "c.csv", "c.jsonl", "c.parquet", "k.json", "i.zip"):
            (tmp_path / name).write_bytes(content)
        assert what in describe_images(["a"], [str(tmp_path / "images/a.jpg")], ["all"])["error"][0].as_py()
        for read in (
            *(lambda name=name: read_table(tmp_path / name) for name in ("c.csv", "c.jsonl", "c.parquet")),
            lambda: read_karpathy(str(tmp_path / "k.json"), str(tmp_path / "images")),
            lambda: unpack_images(tmp_path / "i.zip", tmp_path / "out"),
        ):
            with pytest.raises(UserError, match=what):
                read()
    (tmp_path / "c.csv").write_text("BZh,image,caption\n,a,x\n")
    assert read_table(tmp_path / "c.csv").rows == [{"image": "a", "caption": "x"}]


def test_weights_that_hold_code_are_refused_without_advice_to_run_it(tmp_path):
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "module.pth")
    with pytest.raises(ValueError, match="holds more than weights") as error:
        read_state(tmp_path / "module.pth")
    assert "weights_only" not in str(error.value) and "torch.load" not in str(error.value)


@pytest.mark.parametrize("what", SAVED)
def test_files_of_other_kinds_are_known_before_any_job(tmp_path, what):
    config = {
        "datasets": {"a": {"source": "scenes", "splits": {"train": 2, "val": 2}}},
        "features": {"regions": {"weights": str(tmp_path / "w.pth")}},
        "runs": {
            "r": {"dataset": "a", "visual": "regions", "text": {"pretrained": str(tmp_path)}},
            "c": {"dataset": "a", "visual": "regions", "checkpoint": str(tmp_path / "w.pth")},
        },
    }
    (tmp_path / "w.pth").write_bytes(SAVED[what])
    (tmp_path / "model.safetensors").write_bytes(SAVED[what])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    with pytest.raises(UserError) as error:
        load_settings(config)
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    for key in ("features.regions.weights: file", "runs.r.text.pretrained: ", "runs.c.checkpoint: file"):
        assert any(line.startswith(key) and what in line for line in lines), (key, lines)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "folder './nowhere' does not exist"),
        ("a/b/c", "folder 'a/b/c' does not exist"),
        ("FILE", "is a file; name the folder"),
    ],
)
def test_paths_of_encoders_are_no_names_on_a_hub(tmp_path, name, message):
    (tmp_path / "FILE").write_bytes(b"x")
    (line,) = Text(pretrained=str(tmp_path / name) if name == "FILE" else name).missing()
    assert line.startswith("pretrained: ") and message in line


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("https://x.y/photos.zip", "an address: download"),
        ("$HOME/photos", "variables are not filled in"),
        ("photos\u200b", "characters that cannot be seen"),
        ("photos ", "there is one without the blanks around it"),
        ("data\\photos.csv", "there is one with / between folders"),
        ("Photos", "did you mean 'photos'?"),
        ("data/photo.csv", "did you mean 'data/photos.csv'?"),
        ("elsewhere", ""),
        ("nowhere/photos", ""),
    ],
)
def test_why_a_path_leads_nowhere(tmp_path, monkeypatch, path, why):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/photos.csv").touch()
    assert why in why_missing(path) and bool(why) == bool(why_missing(path))
    (line,) = wrong_file("captions", path)
    assert why in line and line.startswith(f"captions: file {path!r} does not exist")
