"""The registry is consistent, and every architecture it names exists."""

import re

import pytest

from core.console import UserError
from published.registry import ENTRIES, by_hand, entry_at, lookup, resolve


def test_every_entry_is_complete():
    for name, entry in ENTRIES.items():
        assert name == entry.name and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
        assert entry.what and entry.licence and entry.page.startswith("https://")
        assert len(entry.files) == 1 or entry.in_folder
        cnn = entry.kind == "checkpoint" and entry.name.startswith("vse") and entry.reads == "grids"
        assert (entry.architecture is not None) == (entry.kind == "detector" or cnn)
        assert (entry.reads is not None) == (entry.kind == "checkpoint")
        for file in entry.files:
            assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", file.name)
            assert (
                file.address is None
                or file.address.startswith(("https://", "http://"))
                and file.address.endswith(file.name)
            )
            assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
            assert file.md5_prefix is None or f"_{file.md5_prefix}." in file.name
            assert (file.size is None) == (file.sha256 is None)


def test_no_two_files_share_a_place_or_an_address():
    """Neither in the folder, on file systems that ignore case too, nor on a mirror."""
    files = [(entry, file) for entry in ENTRIES.values() for file in entry.files]
    assert len({f"{entry.name}/{file.name}".lower() for entry, file in files}) == len(files)
    assert len({entry.address(file, "http://mirror") for entry, file in files}) == len(files)


def test_the_architectures_exist():
    from extractors.networks.architectures import ARCHITECTURES

    named = {entry.architecture for entry in ENTRIES.values() if entry.architecture}
    assert len(named) == 21 and named <= ARCHITECTURES.keys()


def test_the_text_encoder_has_what_the_model_reads():
    assert {file.name for file in ENTRIES["bert-base-uncased"].files} >= {
        "config.json",
        "vocab.txt",
        "model.safetensors",
    }
    assert ENTRIES["bert-base-uncased"].size == 440449768 + 231508 + 570


def test_names_resolve_to_paths():
    zoo = "published:panoptic_fpn_R_50_3x"
    assert resolve(zoo, "w", {}) == "w/panoptic_fpn_R_50_3x/model_final_c10459.pkl"
    assert resolve("published:bert-base-uncased", "w", {}) == "w/bert-base-uncased"
    assert resolve(zoo, "w", {"panoptic_fpn_R_50_3x": "mine.pkl"}) == "mine.pkl"
    assert resolve("bert-base-uncased", "w", {}) == "bert-base-uncased"
    assert entry_at(resolve(zoo, "w", {}), "w") is ENTRIES["panoptic_fpn_R_50_3x"]
    assert entry_at("mine.pkl", "w") is None
    names = "published:visual-genome-names/objects_vocab.txt"
    assert resolve(names, "w", {}) == "w/visual-genome-names/objects_vocab.txt"
    assert resolve(names, "w", {"visual-genome-names": "mine"}) == "mine/objects_vocab.txt"
    assert entry_at(resolve(names, "w", {}), "w") is ENTRIES["visual-genome-names"]
    with pytest.raises(UserError, match="did you mean 'panoptic_fpn_R_50_3x'"):
        lookup("panoptic_fpn_r50_3x")


def test_it_imports_neither_side(repository):
    for path in (repository / "published").glob("*.py"):
        assert not re.search(r"^\s*(from|import) (extractors|model|torch)\b", path.read_text(), re.M), path


def test_upsnets_licence_is_told():
    for name in ("upsnet_resnet_50_coco_90000", "upsnet_resnet_101_dcn_coco_270000"):
        entry = ENTRIES[name]
        assert "Non-Commercial" in entry.licence and entry.files[0].name == f"{name}.pth"
        message = by_hand(entry, entry.files[0], "w")
        assert "non-commercial use only" in message and f"w/{name}/{name}.pth" in message and entry.page in message
