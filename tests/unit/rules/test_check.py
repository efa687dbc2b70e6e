"""Target `check` finds before the first job what jobs would find hours later."""

import errno
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from core.console import UserError
from core.kinds import stated_architecture
from model.words import write_word_vocabulary
from rules import check as module
from rules.check import Check, engine_faults, how_long, leaks, main, notes
from rules.plan import Plan
from settings import load_settings
from settings.checks import unwritable
from tests.unit.model.test_checkpoint_kinds import grid_cnn, region, words, write

pytestmark = pytest.mark.usefixtures("working_folder")


@pytest.fixture
def config(tmp_path):
    """Two images of two splits with captions, npz files of regions, and what is trained and tested on them."""
    (tmp_path / "images").mkdir()
    (tmp_path / "npz").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (20, 10)).save(tmp_path / "images" / f"{name}.png")
        np.savez(
            tmp_path / "npz" / f"{name}.npz",
            x=np.ones((3, 8), "f4"),
            bbox=np.tile(np.array([0, 0, 5, 5], "f4"), (3, 1)),
            num_bbox=3,
            image_h=10,
            image_w=20,
        )
    (tmp_path / "captions.csv").write_text("image,caption,split\na,one,train\na,another,train\nb,two,val\n")
    dataset = {"source": "folder", "images": "images", "captions": "captions.csv"}
    dataset["imports"] = {"regions": {"format": "npz", "path": "npz"}}
    run = {"dataset": "mine", "visual": "regions", "text": {"pretrained": None}, "training": {"batch_size": 2}}
    return {"datasets": {"mine": dataset}, "runs": {"r": run}, "testsets": {"t": {"dataset": "mine", "split": "val"}}}


def faults(config, **options) -> list[str]:
    check = Check(load_settings(config, **options))
    check.run()
    return check.faults


def test_a_configuration_in_order_has_no_faults(config, capsys, monkeypatch):
    monkeypatch.setattr(module, "what_would_run", lambda: "job count")
    main(["--config", json.dumps(config), "--plan"])
    printed = capsys.readouterr().out
    assert "datasets.mine: 2 images (train 1, val 1), 3 captions" in printed
    assert "datasets.mine: regions of files: features (36, 8)" in printed
    assert "features.panoptic: weights/scenes_panoptic.safetensors fits scenes_panoptic" in printed
    assert printed.endswith("Nothing stands in the way. What would run:\njob count\n")


def test_all_faults_come_at_once(config, tmp_path):
    (tmp_path / "captions.csv").write_text("image,caption,split\na,one,train\na,another,train\nc,two,val\n")
    shutil.copy("weights/scenes_grids.safetensors", "w.safetensors")
    config["features"] = {"panoptic": {"weights": "w.safetensors"}}
    found = faults(config, check_files=False)
    assert len(found) == 2
    assert found[0].startswith("datasets.mine: ") and "'c'" in found[0] and "images without a caption" in found[0]
    assert found[1].startswith("features.panoptic: ") and "scenes_grids, not scenes_panoptic" in found[1]


def test_checkpoints_are_looked_into_and_not_trained(config, tmp_path, capsys):
    write(tmp_path / "grid.pth", grid_cnn(), words(pooled=True))
    known = ["<pad>", "<start>", "<end>", "<unk>", "a", "b", "c", "d"]
    write_word_vocabulary(tmp_path / "vocab.json", known)
    paper = {"dataset": "mine", "visual": "regions", "model": {"kind": "vse_infinity"}, "checkpoint": "grid.pth"}
    config["runs"] = {"paper": paper | {"train_split": "nowhere"}}
    (line,) = faults(config, check_files=False)
    assert line.startswith("runs.paper.visual: 'regions', but grid.pth is a grid checkpoint")
    paper = config["runs"]["paper"] = paper | {"visual": "grids"}
    (line,) = faults(config, check_files=False)
    assert line.startswith("runs.paper.checkpoint: grid.pth reads the cells") and "those of scenes_grids" in line
    config["runs"]["paper"] = paper | {"model": {"kind": "scan"}}
    (line,) = faults(config, check_files=False)
    assert "is a checkpoint of kind vse_infinity, not scan" in line
    with pytest.raises(
        UserError, match=r"runs\.paper\.checkpoint: grid\.pth is a checkpoint of kind vse_infinity, not scan"
    ):
        faults(config)
    config["runs"], config["testsets"] = {"paper": paper}, {}
    assert faults(config) == []
    assert "runs.paper: grid.pth is a checkpoint of kind vse_infinity" in capsys.readouterr().out


def test_imported_files_of_another_width_than_a_checkpoints_are_met(config, tmp_path):
    vocabulary = ["<pad>", "<start>", "<end>", "<unk>", "a", "b", "c", "d"]
    write_word_vocabulary(tmp_path / "vocab.json", vocabulary)
    write(tmp_path / "vse.pth", region(), words(pooled=True))
    paper = {"dataset": "mine", "visual": "regions", "model": {"kind": "vse_infinity"}, "checkpoint": "vse.pth"}
    config["runs"] = {"paper": paper}
    (line,) = faults(config)  # what lies in the files only reading them tells
    assert line.startswith(
        "runs.paper.checkpoint: vse.pth takes visual tokens of 7 numbers, but testsets.t has regions of"
    )
    assert "of 8; set datasets.mine to" in line


def test_broken_images_and_files_are_met(config, tmp_path, capsys):
    (tmp_path / "images" / "b.png").write_bytes(b"\x89PNG broken")
    (line,) = faults(config)
    assert "1 images that cannot be read: " in line and "b.png" in line and "on_bad_image: drop" in line
    (tmp_path / "images" / "a.png").write_bytes(b"no picture")
    (line,) = faults(config)
    assert "2 images that cannot be read: " in line and "a.png" in line and "b.png" in line
    capsys.readouterr()
    config["features"] = {"on_bad_image": "drop"}
    assert faults(config) == []
    assert "2 images that cannot be read: " in capsys.readouterr().out
    del config["features"]
    for name in ("a", "b"):
        (tmp_path / "npz" / f"{name}.npz").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    images, files = faults(config)
    assert "2 images" in images and "no usable .npz file" in files and "git-lfs pointer" in files


def test_an_archive_is_looked_into(config, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        file.write(tmp_path / "images" / "a.png", "../a.png")
    config["datasets"]["mine"] |= {"images": "images.zip", "imports": {}}
    (line,) = faults(config)
    assert "lead out of the archive" in line


def test_captions_of_images_in_an_archive_are_looked_into(config, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for name in ("a", "b"):
            file.write(tmp_path / "images" / f"{name}.png", f"sub/{name}.png")
    config["datasets"]["mine"]["images"] = "images.zip"
    assert faults(config) == []
    printed = capsys.readouterr().out
    assert "datasets.mine: 2 images (train 1, val 1), 3 captions" in printed and "regions of files" in printed
    (tmp_path / "captions.csv").write_text("image,caption,split\na,one,train\na,another,train\nc,two,val\n")
    (line,) = faults(config)
    assert line.startswith("datasets.mine: dataset in images.zip with captions captions.csv:") and "'c'" in line


def test_precomputed_files_are_compared_by_their_heads(tmp_path):
    np.save(tmp_path / "test_ims.npy", np.ones((2, 3, 8), "f4"))
    (tmp_path / "test_caps.txt").write_text("text\n" * 5)
    dataset = {"source": "precomputed", "folder": str(tmp_path), "splits": {"test": "test"}, "features": ["regions"]}
    (line,) = faults({"datasets": {"p": dataset}})
    assert "has 2 rows" in line
    (tmp_path / "test_caps.txt").write_text("text\n" * 10)
    assert faults({"datasets": {"p": dataset}}) == []


def test_an_engine_that_is_not_there(config, monkeypatch):
    config["features"] = {"panoptic": {"engine": "transformers", "weights": "a/b"}}
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    (line,) = engine_faults(load_settings(config))
    assert line.startswith("features.panoptic.engine: transformers is not installed here; pip install")
    config["features"]["regions"] = {"engine": "detectron2", "config": "x"}
    assert len(list(engine_faults(load_settings(config)))) == 1, "imported regions need no engine"
    config["features"]["panoptic"] = {
        "engine": "detectron2",
        "config": "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml",
    }
    (line,) = engine_faults(load_settings(config))
    assert "detectron2 is not installed here; pip install --no-build-isolation 'setuptools<82'" in line


def test_a_run_scored_on_what_it_learns_from_is_told(repository):
    config = yaml.safe_load((repository / "config.yaml").read_text())
    assert list(leaks(load_settings(config))) == []
    config["runs"]["grid"] = config["runs"]["grid"] | {"train_split": "test", "val_split": None}
    config["runs"]["region"] = config["runs"]["region"] | {"val_split": "test"}
    region, grid = sorted(leaks(load_settings(config)), reverse=True)
    assert region.startswith("runs.region.val_split: chooses its best epoch on split 'test' of scenes, which testsets.")
    assert grid.startswith("runs.grid.train_split: trains on split 'test' of scenes, which testsets.")


def test_weights_of_another_architecture_are_told_before_any_job(config):
    config["features"] = {"grids": {"weights": "weights/scenes_regions.safetensors"}}
    with pytest.raises(UserError, match="features.grids.weights: .* are of scenes_regions, not scenes_grids; write"):
        load_settings(config)
    Path("some.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0[]")
    assert stated_architecture("some.safetensors") is None


def test_a_rate_that_never_falls_is_told(repository):
    config = yaml.safe_load((repository / "config.yaml").read_text())
    assert list(notes(load_settings(config))) == []
    config["runs"]["grid"]["training"] = config["runs"]["grid"]["training"] | {"epochs": 4, "lr_decay_epochs": [6]}
    (note,) = notes(load_settings(config))
    assert note.startswith("runs.grid.training.lr_decay_epochs: [6] lie beyond the last epoch")


def test_how_long_jobs_take_is_what_they_took(tmp_path):
    table = "job              count\n---------------  -----\nextract_shard        4\nseal_store           1\n"
    table += "train_model          1\ntotal                6\n"
    (line,) = how_long(table, "results")
    assert line.startswith(
        "How long extract_shard, train_model will take shows once a job runs: python -m core.progress"
    )
    for name, seconds in (("a_regions_0", "10.0"), ("a_grids_0", "20.0"), ("broken", "x")):
        path = tmp_path / f"results/benchmarks/extract_shard/{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\th:m:s\n{seconds}\t0:00:10\n")
    before, new = how_long(table, "results")
    assert before.endswith("those of before, 1 min 0 s one after another: 4 of extract_shard at 15.0 s.")
    assert new.startswith("How long train_model will")
    assert list(how_long("nothing: all is there", "results")) == []


def test_a_results_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert list(unwritable(str(tmp_path / "new" / "deep"))) == [] == list(unwritable("s3://bucket/x"))
    (line,) = unwritable(str(tmp_path / "file" / "below"))
    assert "is a file, not a folder" in line
    (line,) = unwritable(str(tmp_path / ("a" * 300) / "below"))
    assert "(File name too long)" in line

    def refuse(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    (line,) = unwritable(str(tmp_path / "new"))
    assert f"nothing can be written to {str(tmp_path)!r} (Read-only file system)" in line
    with pytest.raises(UserError, match="results: nothing can be written"):
        load_settings({"datasets": {"s": {"source": "scenes", "splits": {"test": 1}}}})
    assert Path.cwd() == tmp_path


def test_features_of_photographs_by_detectors_of_drawings_are_told_at_the_start(config, working_folder, repository):
    def told(**features):
        return Plan(load_settings(config | {"features": features})).unfamiliar()

    (note,) = told()
    assert note.startswith(
        "datasets.mine: weights/ has seen nothing but the renderer's drawings, so its panoptic of other pictures"
    )
    shutil.copy(repository / "weights/scenes_panoptic.safetensors", working_folder / "mine.safetensors")
    assert told(panoptic={"engine": "native", "architecture": "scenes_panoptic", "weights": "mine.safetensors"}) == []
    config["datasets"]["mine"].pop("imports")
    assert "so its regions and panoptic of" in told()[0]
    config["datasets"]["mine"] = {"source": "scenes", "splits": {"train": 2, "val": 2}}
    assert told() == []


def test_models_of_the_library_are_tried(config, tmp_path, capsys):
    from tests.unit.extractors.test_grids_transformers import make_checkpoint
    from tests.unit.model.test_library_families import FAMILIES, SIZES, folder

    for name in ("vit", "encoder"):
        (tmp_path / name).mkdir()
    make_checkpoint(tmp_path / "vit", "vit")
    config["datasets"]["s"] = {"source": "scenes", "splits": {"train": 4}}
    config["features"] = {"grids": {"engine": "transformers", "weights": "vit"}}
    kind, sizes, most = FAMILIES["roberta"]
    config["runs"]["r"]["text"] = {"pretrained": folder(tmp_path / "encoder", kind, **sizes)}
    config["runs"]["s"] = config["runs"]["r"]
    assert not [line for line in faults(config) if "grids" in line or "runs.r" in line]
    del config["runs"]["s"]
    printed = capsys.readouterr().out
    assert printed.count("tokens at most") == 1
    assert "vit is a vit model that can be run" in printed and f"reads {most} tokens at most, packed" in printed
    (tmp_path / "encoder/tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert any("neither a mask nor an unknown token" in line for line in faults(config))
    folder(tmp_path / "encoder", "BigBirdConfig", **SIZES, block_size=4, num_random_blocks=1)
    content = json.loads((tmp_path / "vit/preprocessor_config.json").read_text())
    (tmp_path / "vit/preprocessor_config.json").write_text(json.dumps(content | {"resample": 9}))
    grids, text = (line for line in faults(config) if "vit" in line or "runs.r" in line)
    assert grids.startswith("features.grids.weights: the processor of vit cannot do what its preprocessor_config.json")
    assert text.startswith("runs.r: text.pretrained: what the 'big_bird' model")
