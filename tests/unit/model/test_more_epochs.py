"""A training that has ended goes on when `epochs` is raised, or says why it starts afresh."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

from catalog.index import read_captions, read_images, write_index
from model.training import state
from tests.unit.model.helpers import equal, prepare, run, weights


def goes_on(world, folder, capsys, **numbers):
    """What a start says of the state that it finds."""
    capsys.readouterr()
    run(world, folder, **numbers)
    return next((line for line in capsys.readouterr().err.splitlines() if "going on" in line or "afresh" in line), "")


def rows_of(folder):
    with open(folder / "run/history.csv") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_more_epochs_go_on_from_a_training_that_has_ended(world, tmp_path, capsys):
    schedule = {"lr_warmup_steps": 7, "lr_decay_epochs": [1, 3], "lr_decay_factor": 0.5, "all_negatives_epochs": 3}
    run(world, tmp_path / "whole", epochs=5, **schedule)
    for epochs, said in ((2, ""), (4, "going on from epoch 3, step 10"), (5, "going on from epoch 5, step 20")):
        assert said in goes_on(world, tmp_path / "parts", capsys, epochs=epochs, **schedule)
        for file in (tmp_path / "parts/run").glob("*.*"):  # as Snakemake does before a job
            if epochs < 5:
                file.unlink()
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parts")
    configs = [json.loads((tmp_path / name / "run/config.json").read_text())["kept"] for name in ("whole", "parts")]
    assert configs[0] | {"seconds": 0} == configs[1] | {"seconds": 0}


def test_with_more_epochs_the_rate_may_fall_once_more(world, tmp_path, capsys):
    """A fall that is yet to come is no other training, one that came or should have come is."""
    run(world, tmp_path / "whole", epochs=2, lr_decay_epochs=[1])
    run(world, tmp_path / "parts", epochs=1, lr_decay_epochs=[9])
    shutil.copytree(tmp_path / "whole", tmp_path / "other")
    assert "going on from epoch 2" in goes_on(world, tmp_path / "parts", capsys, epochs=2, lr_decay_epochs=[1])
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    said = goes_on(world, tmp_path / "other", capsys, epochs=3, lr_decay_epochs=[2])
    assert "(lr_decay_epochs was [1], is [2]); starting afresh" in said


def test_a_state_of_before_facts_were_kept_is_gone_on_from(world, tmp_path, capsys):
    run(world, tmp_path, epochs=1)
    content = torch.load(tmp_path / "state/state.pt", weights_only=True)
    del content["facts"]
    torch.save(content, tmp_path / "state/state.pt")
    assert "going on from epoch 2" in goes_on(world, tmp_path, capsys, epochs=2)
    content = torch.load(tmp_path / "state/state.pt", weights_only=True)
    del content["facts"]
    torch.save(content, tmp_path / "state/state.pt")
    assert "of other settings or data; starting" in goes_on(world, tmp_path, capsys, epochs=3, margin=0.3)


def test_where_more_or_fewer_epochs_start_afresh(world, tmp_path, capsys):
    run(world, tmp_path, epochs=3, validate=False)
    whole = weights(tmp_path)
    assert "is of a finished training of epochs: 3; starting afresh" in goes_on(
        world, tmp_path, capsys, epochs=3, validate=False
    )
    assert equal(weights(tmp_path), whole)
    assert "has gone beyond epochs: 2; starting afresh" in goes_on(world, tmp_path, capsys, epochs=2, validate=False)
    said = goes_on(world, tmp_path, capsys, epochs=3, margin=0.3)
    assert "is of other settings or data (margin was 0.2, is 0.3); starting afresh" in said
    world.visual.arrays["features"] = world.visual.arrays["features"] * 2  # imported features have no other digest
    said = goes_on(world, tmp_path, capsys, epochs=4, margin=0.3)
    assert "is of other settings or data (the features); starting afresh" in said
    # Validated out of turn, as its last: with more epochs that one would not be among the best.
    goes_on(world, tmp_path, capsys, epochs=1, margin=0.3, validate_every=2)
    said = goes_on(world, tmp_path, capsys, epochs=2, margin=0.3, validate_every=2)
    assert "was validated after epoch 1, as a training of epochs: 2 with validate_every: 2 does not;" in said


def test_a_state_without_its_best_weights_is_not_gone_on_from(world, tmp_path, capsys):
    run(world, tmp_path, epochs=2)
    (best,) = (tmp_path / "state").glob("best-*.safetensors")
    best.write_bytes(best.read_bytes()[:-5])
    assert f"has lost its best weights ({best.name}: " in goes_on(world, tmp_path, capsys, epochs=3)
    run(world, tmp_path / "whole", epochs=3)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path))


def test_killed_after_the_last_step_of_more_epochs(world, tmp_path, monkeypatch):
    """It had ended once: what is left then is no finished training."""
    run(world, tmp_path, epochs=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(state, "save_run", lambda *given, **options: (_ for _ in ()).throw(KeyboardInterrupt))
        run(world, tmp_path, epochs=2)
    run(world, tmp_path, epochs=2, stop_after=0)  # nothing is left to train
    run(world, tmp_path / "whole", epochs=2)
    assert equal(weights(tmp_path), weights(tmp_path / "whole"))


def test_a_finished_training_is_not_repeated_where_the_workflow_asks_for_the_very_same(
    world, tmp_path, capsys, monkeypatch
):
    """Its inputs may have been written anew with the content of before."""
    run(world, tmp_path, epochs=1, contents="of all features")
    whole, rows = weights(tmp_path), rows_of(tmp_path)
    for reuse, contents, said in (
        ("yes", "of all features", "run: is trained already, on the very data"),
        ("yes", "of others", "afresh"),  # the same in the few rows that the fingerprint looks at
        ("", "of all features", "afresh"),
        ("yes", "of all features", "trained already"),
    ):
        for file in (tmp_path / "run").glob("*.*"):
            file.unlink()
        monkeypatch.setenv("THREESHNET_REUSE", reuse)
        capsys.readouterr()
        run(world, tmp_path, epochs=1, contents=contents)
        assert said in capsys.readouterr().err
        assert equal(weights(tmp_path), whole) and rows_of(tmp_path) == rows


def test_as_many_captions_as_before_are_no_other_training(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("THREESHNET_REUSE", "yes")
    run(world, tmp_path, epochs=1, contents="same")
    capsys.readouterr()
    run(world, tmp_path, epochs=1, contents="same", captions_per_image=9)  # which read the same ones
    assert "trained already" in capsys.readouterr().err
    _, pairs = prepare(world)
    pairs.split.captions[0] = "another caption"
    assert "(the images or captions of a split); starting afresh" in goes_on(
        world, tmp_path, capsys, epochs=1, contents="same", prepared=(prepare(world)[0], pairs)
    )


def test_images_beside_the_splits_change_no_training(world, tmp_path, capsys, monkeypatch):
    """Photos that are added to be searched: rows move, what is trained on does not."""
    monkeypatch.setenv("THREESHNET_REUSE", "yes")
    run(world, tmp_path, epochs=1, contents="of the splits")
    whole = weights(tmp_path)

    def written(images):
        captions = read_captions(world.captions).replace_schema_metadata(None)
        world.digest = write_index(world.images, world.captions, images.replace_schema_metadata(None), captions)
        for store in (world.visual, world.panoptic):
            store.attributes["index_digest"] = world.digest

    images, _ = read_images(world.images)
    added = {
        "image_id": "added",
        "split": "unlisted",
        "content_hash": "f" * 64,
        "path": "added.jpg",
        "width": 64,
        "height": 64,
    }
    written(pa.concat_tables([pa.Table.from_pylist([added], schema=images.schema), images]))
    for store in (world.visual, world.panoptic):
        store.image_ids = np.concatenate((["added"], store.image_ids))
        store.arrays = {name: np.concatenate((values[-1:], values)) for name, values in store.arrays.items()}
    capsys.readouterr()
    run(world, tmp_path, epochs=1, contents="of the splits")
    assert "is trained already, on the very data" in capsys.readouterr().err and equal(weights(tmp_path), whole)
    # Another picture of a split's image is other data.
    row = read_images(world.images)[0]["split"].to_pylist().index("train")
    images = read_images(world.images)[0]
    hashes = images["content_hash"].to_pylist()
    hashes[row] = "e" * 64
    written(images.set_column(images.column_names.index("content_hash"), "content_hash", pa.array(hashes)))
    run(world, tmp_path, epochs=1, contents="of the splits")
    assert "(the images or captions of a split); starting afresh" in capsys.readouterr().err
