"""Sealing: all that is wrong at once, or a store that is the same bytes every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

import stores.places
from catalog.index import CAPTIONS_SCHEMA, IMAGES_SCHEMA, write_index
from core.console import UserError
from stores import open_store
from stores.seal import main


def test_sealed_store_says_where_it_comes_from(parts):
    made = parts().write()
    attributes = made.seal()
    store = open_store(made.store)
    assert store.attributes == attributes
    assert len(attributes.pop("fingerprint")) == 64
    assert attributes.pop("arrays")["features"]["shape"] == [3, 200]
    assert attributes.pop("plan") == {"images": 21, "shards": 2, "shard_rows": 6}
    assert attributes == {
        "schema_version": 1,
        "feature": "regions",
        "extractor": {"architecture": "tiny", "recipe": 1},
        "weights_digest": "weights",
        "index_digest": "index",
        "dropped": [],
        "failures": [],
        "class_names": ["cat", "dog"],
    }


def test_redone_shards_and_seals_give_the_same_bytes(parts):
    made = parts(21, 3).write()
    made.seal()
    first = made.digests()
    made.seal()
    assert made.digests() == first
    (made.store / "boxes/c/1/0/0").write_bytes(b"damage")
    made.write(1)
    with pytest.raises(UserError, match="not a finished store"):
        open_store(made.store)
    made.seal()
    assert made.digests() == first


def test_more_shards_than_images(parts):
    made = parts(3, 5).write()
    made.seal()
    np.testing.assert_array_equal(open_store(made.store).rows("counts", range(3)), made.values["counts"])
    assert json.loads(made.receipts[4].read_text())["rows"] == [3, 3]


def test_everything_wrong_is_listed_at_once_with_its_cure(parts):
    made = parts(40, 7).write()
    made.seal()
    made.receipts[0].unlink()
    (made.store / "features/c/1/0/0").write_bytes(b"damage")
    (made.store / "counts/c/2").unlink()
    made.receipts[3].write_text("{")
    made.fail(26)
    made.write(4)
    newer = json.loads(made.receipts[5].read_text()) | {"receipt_version": 2}
    made.receipts[5].write_text(json.dumps(newer))
    with pytest.raises(UserError) as caught:
        made.seal(redo_command="redo --shard {shard} {receipt}")
    lines = str(caught.value).splitlines()[1:]
    for shard, words in {
        0: "is missing",
        1: "features/c/1/0/0 is not what was written",
        2: "counts/c/2 is missing",
        3: "is not JSON",
        5: "has receipt version 2, this program reads 1",
    }.items():
        (line,) = [line for line in lines if line.startswith(f"  - shard {shard}: ")]
        assert words in line
        assert line.endswith(f"make it again with: redo --shard {shard} {made.receipts[shard]}")
    assert "  - image 'image 26 é' (photos/26.jpg): is damaged" in lines
    assert "set features.on_bad_image: drop" in lines[-1]
    assert len(lines) == 7
    assert not (made.store / "zarr.json").exists()


@pytest.mark.parametrize(
    "change, differing",
    [
        ({"extractor": {"architecture": "tiny", "recipe": 2}}, "extractor"),
        ({"weights_digest": "other"}, "weights_digest"),
    ],
)
def test_shards_of_other_settings_or_weights_are_never_mixed(parts, change, differing):
    made = parts(21, 3).write()
    for receipt in made.receipts:
        os.utime(receipt, (1, 1))
    parts(21, 3, **change).write(1)
    with pytest.raises(UserError) as caught:
        made.seal()
    for shard in (0, 2):
        assert f"shard {shard}: made with other {differing} than shard 1, the newest" in str(caught.value)
        assert f"snakemake --cores all --force {made.receipts[shard]}" in str(caught.value)
    assert "shard 1: " not in str(caught.value)


def test_shards_of_another_index_or_plan_are_refused(parts):
    made = parts(21, 3).write()
    with pytest.raises(UserError) as caught:
        made.seal(images=replace(made.rows, digest="new"))
    assert str(caught.value).count("was made from another version of the index") == 3
    with pytest.raises(UserError, match="is of shard 0 of 3, not 0 of 2"):
        made.seal(receipts=made.receipts[:2])
    with pytest.raises(UserError, match="is of shard 1 of 3, not 0 of 3"):
        made.seal(receipts=[made.receipts[1], made.receipts[0], made.receipts[2]])
    with pytest.raises(UserError, match=r"has rows \[0, 7\], not \[0, 8\]"):
        made.seal(images=replace(made.rows, ids=[*made.ids, "one", "more"]))


def test_an_edited_receipt_is_found(parts):
    made = parts().write()
    path = made.receipts[0]
    content = json.loads(path.read_text())
    for changed, message in [
        (content | {"store": content["store"] | {"weights_digest": "mine"}}, "was edited"),
        (content | {"files": {"../../secret": "0"}}, "names other files than the plan"),
        ({key: value for key, value in content.items() if key != "files"}, "lacks files"),
        ([1], "has receipt version None"),
    ]:
        path.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message):
            made.seal()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not text"):
        made.seal()


def test_bad_images_are_dropped_on_request_in_row_order(parts):
    made = parts()
    for row in (17, 2, 9):
        made.fail(row)
    made.write()
    made.seal(on_bad_image="drop")
    store = open_store(made.store)
    assert store.attributes["dropped"] == [made.ids[row] for row in (2, 9, 17)]
    assert store.dropped == {made.ids[row] for row in (2, 9, 17)}
    assert [failure["path"] for failure in store.attributes["failures"]] == [f"photos/{i}.jpg" for i in (2, 9, 17)]
    assert (store.rows("seg_maps", [9]) == 255).all() and store.rows("counts", [9]) == 0


def test_a_store_of_bad_images_only_is_refused_even_if_they_may_be_dropped(parts):
    made = parts(3, 1)
    for row in range(3):
        made.fail(row)
    made.write()
    with pytest.raises(UserError, match="none of the 3 images could be read, the first because: is damaged"):
        made.seal(on_bad_image="drop")


def test_foreign_files_are_removed_but_nothing_outside(parts, tmp_path):
    made = parts().write()
    made.seal()
    clean = made.digests()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (made.store / "old_array/c/0").mkdir(parents=True)
    (made.store / "old_array/c/0/0").write_text("left by other settings")
    (made.store / "features/c/1/0/.0.x.tmp").write_text("left by a killed job")
    (made.store / "link").symlink_to(outside)
    made.seal()
    assert made.digests() == clean
    assert not (made.store / "old_array").exists() and not (made.store / "link").is_symlink()
    assert (outside / "kept").read_text() == "kept"


def test_only_a_store_folder_is_cleaned(parts, tmp_path):
    made = parts().write()
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="ends in .zarr"):
        made.seal(store=precious)
    assert (precious / "thesis.tex").exists()


def test_nothing_is_removed_from_a_store_that_cannot_be_sealed(parts):
    made = parts().write()
    (made.store / "note").write_text("")
    made.receipts[1].unlink()
    with pytest.raises(UserError):
        made.seal()
    assert (made.store / "note").exists()


def test_a_seal_that_dies_leaves_the_store_unsealed_and_repeatable(parts, monkeypatch):
    made = parts().write()
    made.seal()
    wanted = made.digests()
    real = stores.places.atomic_path

    def die_at_the_root(path):
        if path == made.store / "zarr.json":
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(stores.places, "atomic_path", die_at_the_root)
    with pytest.raises(KeyboardInterrupt):
        made.seal()
    with pytest.raises(UserError, match="not a finished store"):
        open_store(made.store)
    monkeypatch.undo()
    monkeypatch.setattr("stores.plan.MAX_SHARD_ROWS", 8)
    made.seal()
    assert made.digests() == wanted


@pytest.fixture
def command(parts, tmp_path):
    """Sealable parts and the command's arguments."""
    made = parts(16, 2)  # 8 rows per Zarr shard for the command's own process too
    rows = [
        {"image_id": name, "path": f"{i}.jpg", "width": 4, "height": 4, "split": "test", "content_hash": f"{i:064x}"}
        for i, name in enumerate(made.ids)
    ]
    images = pa.Table.from_pylist(rows, schema=IMAGES_SCHEMA)
    made.index_digest = write_index(
        tmp_path / "images.parquet", tmp_path / "captions.parquet", images, CAPTIONS_SCHEMA.empty_table()
    )
    made.fail(4)
    made.write()
    receipts = [str(path) for path in made.receipts]
    images_path = str(tmp_path / "images.parquet")
    return made, ["--store", str(made.store), "--receipts", *receipts, "--images", images_path]


def test_command_seals(command, capsys):
    made, arguments = command
    main([*arguments, "--on-bad-image", "drop"])
    told = capsys.readouterr().out
    assert "16 images, 1 of them dropped" in told and "note: 1 images dropped from " in told
    assert open_store(made.store).image_ids.tolist() == made.ids


def test_command_fails_with_a_message_and_no_traceback(command):
    made, arguments = command
    made.receipts[1].unlink()
    arguments += ["--redo-command-template", "make {receipt}"]
    done = subprocess.run([sys.executable, "-m", "stores.seal", *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"make it again with: make {made.receipts[1]}" in done.stderr
    assert "image 'image 4 é' (photos/4.jpg): is damaged" in done.stderr
    assert "Traceback" not in done.stderr
