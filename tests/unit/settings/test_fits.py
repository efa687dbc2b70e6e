"""What a checkpoint, or a file's head, says against the configuration is known before any job, and without torch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from catalog.index import ImageRows
from core.console import UserError
from model.build import network_class, new_image_encoder
from model.checkpoint import load_reference, main
from model.runs import load_run
from model.words import write_word_vocabulary
from rules.check import notes
from rules.plan import Plan
from settings import load_settings
from stores.features import region_arrays
from stores.job import ShardJob
from stores.schema import Source
from tests.unit.model.test_checkpoint import reference_checkpoint
from tests.unit.model.test_checkpoint_kinds import SCORE, Exploit, grid_cnn, region, words, write

#: A run on the few rows of `config`.
TRAINED = {
    "dataset": "seven",
    "visual": "regions",
    "train_split": "test",
    "val_split": None,
    "training": {"batch_size": 2},
}
WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "b", "c", "d"]


pytestmark = pytest.mark.usefixtures("working_folder")


@pytest.fixture
def config(tmp_path):
    """Precomputed regions of 7 numbers, which the checkpoints `vse.pth` and `scan.pth` read, and of 9."""
    for name, width in (("seven", 7), ("nine", 9)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "test_ims.npy", np.ones((2, 3, width), "f4"))
        (tmp_path / name / "test_caps.txt").write_text("text\n" * 10)
    torch.manual_seed(0)
    write("vse.pth", region(), words(pooled=True), "module.", no_txtnorm=True)
    write("scan.pth", {"fc.weight": torch.randn(6, 7), "fc.bias": torch.randn(6)}, words(8, pooled=False), **SCORE)
    write_word_vocabulary("vse_words.json", WORDS)
    write_word_vocabulary("scan_words.json", WORDS)
    dataset = {"source": "precomputed", "splits": {"test": "test"}, "features": ["regions"]}
    run = {"dataset": "seven", "visual": "regions"}
    return {
        "datasets": {name: dataset | {"folder": name} for name in ("seven", "nine")},
        "runs": {
            "vse": run | {"model": {"kind": "vse_infinity"}, "checkpoint": "vse.pth", "vocabulary": "vse_words.json"},
            "scan": run | {"model": {"kind": "scan"}, "checkpoint": "scan.pth", "vocabulary": "scan_words.json"},
        },
        "testsets": {"t": {"dataset": "seven"}},
    }


def mistakes(config):
    with pytest.raises(UserError) as error:
        load_settings(config)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def test_what_fits_is_loaded_without_torch(config, repository):
    load_settings(config)
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[2]); from settings import load_settings; "
        "load_settings(json.loads(sys.argv[1])); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, json.dumps(config), str(repository)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_features_of_another_width_are_known_before_any_job(config):
    config["testsets"]["other"] = {"dataset": "nine"}
    vse, scan = mistakes(config)
    assert vse.startswith(
        "runs.vse.checkpoint: vse.pth takes visual tokens of 7 numbers, but testsets.other has regions of dataset 'nine'"
    )
    assert "(files) of 9; set datasets.nine to what" in vse and scan.startswith("runs.scan.checkpoint: scan.pth takes")
    # Of images the extractor says it, and of one whose network nobody knows here the store that it made.
    config["testsets"]["other"]["dataset"] = "scenes"
    config["datasets"]["scenes"] = {"source": "scenes", "splits": {"test": 2}}
    assert (
        "regions of dataset 'scenes' (architecture scenes_regions) of 512; set features.regions to"
        in mistakes(config)[0]
    )
    config["features"] = {"regions": {"engine": "detectron2", "config": "some.yaml", "weights": "vse.pth"}}
    load_settings(config)


def test_where_only_the_network_tells_its_width_the_first_job_does(config):
    config["features"] = {"regions": {"engine": "detectron2", "config": "some.yaml", "weights": "vse.pth"}}
    config["datasets"]["scenes"] = {"source": "scenes", "splits": {"test": 2}}
    config["testsets"]["other"] = {"dataset": "scenes"}
    plan = Plan(load_settings(config))
    flag, widths = plan.wanted(SimpleNamespace(dataset="scenes", feature="regions"), None)
    assert flag == "--wanted" and json.loads(widths) == {
        "runs.vse.checkpoint vse.pth": 7,
        "runs.scan.checkpoint scan.pth": 7,
    }
    for dataset, feature in (("seven", "regions"), ("scenes", "panoptic"), ("scenes", "grids")):
        assert plan.wanted(SimpleNamespace(dataset=dataset, feature=feature), None) == []
    images = ImageRows(["a"], "digest", ["a.jpg"], [(1, 1)])
    source = Source("regions", region_arrays(3, 9, ()), {}, "digest", {})
    place = {"store": Path("regions.zarr"), "receipt": Path("0.json"), "shard": 0, "shards": 1}
    ShardJob(source, images, **place, wanted={"runs.a": 9})
    with pytest.raises(
        UserError, match="regions have 9 numbers a visual token, but runs.vse.checkpoint vse.pth takes 7; name"
    ):
        ShardJob(source, images, **place, wanted=json.loads(widths))
    assert not Path("regions.zarr").exists()


@pytest.mark.parametrize(("width", "told"), [(512, True), (7, False)])
def test_a_store_that_is_there_says_its_width(config, tmp_path, width, told):
    section = {"engine": "detectron2", "config": "some.yaml", "weights": "vse.pth"}
    config["features"] = {"regions": section}
    config["datasets"]["scenes"] = {"source": "scenes", "splits": {"test": 2}}
    config["testsets"]["t"]["dataset"] = "scenes"
    store = tmp_path / "results/scenes/features/regions.zarr"
    store.mkdir(parents=True)
    for engine in ("detectron2", "native"):  # a store of another extractor says nothing
        found = {"extractor": section | {"engine": engine, "recipe": 1}, "arrays": {"features": {"shape": [36, width]}}}
        (store / "zarr.json").write_text(json.dumps({"attributes": found}))
        if told and engine == "detectron2":
            assert "(detectron2's some.yaml) of 512" in mistakes(config)[0]
            later = (store / "zarr.json").stat().st_mtime + 9
            os.utime("vse.pth", (later, later))  # whose weights were replaced since, so that it will be made again
            load_settings(config)
        else:
            load_settings(config)


def test_a_run_is_not_trained_on_what_its_test_sets_do_not_have(config):
    config["datasets"]["seven"]["splits"] = {"train": "test", "test": "test2"}
    recipe = {"train_split": "train", "val_split": None, "training": {"batch_size": 2}}
    config["runs"] = {"mine": {"dataset": "seven", "visual": "regions", "model": {"kind": "vse_infinity"}} | recipe}
    config["testsets"]["t"]["dataset"] = "nine"
    (line,) = mistakes(config)
    assert line.startswith("testsets.t.dataset: 'nine' cannot be read by run 'mine'") and "7 and 9 numbers wide" in line
    config["datasets"]["nine"] |= {"folder": "seven", "provenance": "another detector"}
    (line,) = mistakes(config)
    assert "imported, provenance 'unknown' and imported, provenance 'another detector'; give both" in line
    del config["datasets"]["nine"]["provenance"]
    load_settings(config)


def test_whose_a_checkpoint_is(config, tmp_path):
    config["runs"]["vse"]["checkpoint"], config["runs"]["scan"]["checkpoint"] = "scan.pth", "vse.pth"
    assert [line.partition(";")[0] for line in mistakes(config)] == [
        "runs.vse.checkpoint: scan.pth is a checkpoint of kind scan, not vse_infinity",
        "runs.scan.checkpoint: vse.pth is a checkpoint of kind vse_infinity, not scan",
    ]
    reference_checkpoint(tmp_path / "region.pth")
    config["runs"] = {"scan": config["runs"]["scan"] | {"checkpoint": "region.pth"}}
    assert mistakes(config)[0].startswith("runs.scan.checkpoint: region.pth is a checkpoint of kind 3shnet, not scan")
    for content, told in (
        (
            {"model": [region(), words(pooled=True)], "opt": Exploit()},
            "holds more than weights: it asks for builtins.print",
        ),
        (
            {"model": [region(), words(pooled=True)], "hub": Download()},
            "holds more than weights: it asks for torch.hub.download_url_to_file",
        ),
        ({"state_dict": {}}, "is no checkpoint of 3SHNet's, VSE-infinity's or SCAN's authors"),
        ({"model": [{"conv.weight": torch.ones(1)}, {}]}, "its image encoder is of no kind that is known"),
    ):
        for whole in (True, False):
            torch.save(content, "odd.pth", _use_new_zipfile_serialization=whole)
            config["runs"] = {"scan": config["runs"]["scan"] | {"checkpoint": "odd.pth"}}
            (line,) = mistakes(config)
            assert line.startswith("runs.scan.checkpoint: odd.pth") and told in line
    (line,) = mistakes(config | {"runs": {"scan": config["runs"]["scan"] | {"checkpoint": "scan_words.json"}}})
    assert "scan_words.json is no file that PyTorch wrote" in line


def test_settings_that_contradict_a_checkpoint_are_mistakes_and_defaults_are_none(config):
    vse, scan = config["runs"]["vse"], config["runs"]["scan"]
    vse["model"] |= {"embed_size": 8, "mlp": True, "normalise_captions": True}
    scan["model"] |= {"cross_attn": "t2i", "lambda_lse": 5, "weight_norm": True}
    scan["text"] = {"kind": "bigru", "word_size": 300, "vocabulary": "scan_words.json", "lowercase": "text"}
    decides = "which decides; write that, or leave it out"
    assert mistakes(config) == [
        f"runs.vse.model.embed_size: 8, but vse.pth was trained with 6, {decides}",
        f"runs.vse.model.normalise_captions: True, but vse.pth was trained with False, {decides}",
        f"runs.scan.text.word_size: 300, but scan.pth was trained with 5, {decides}",
        f"runs.scan.model.weight_norm: True, but scan.pth was trained with False, {decides}",
        f"runs.scan.model.cross_attn: 't2i', but scan.pth was trained with 'i2t', {decides}",
        "runs.scan.text.vocabulary: is that of a run that is trained; of a checkpoint write vocabulary beside it",
    ]
    vse["model"], scan["model"] = {"kind": "vse_infinity", "embed_size": 6}, {"kind": "scan", "agg_func": "Max"}
    vse["text"], scan["text"] = {"pretrained": None, "layers": 2}, {"kind": "bigru", "bidirectional": True}
    assert mistakes(config) == [
        "runs.vse.text.kind: 'bert', but the text encoder in vse.pth is of kind bigru; write that, or leave text out"
    ]
    vse["text"] = {"kind": "bigru"}
    load_settings(config)


def test_what_a_checkpoint_does_not_hold_goes_on_to_work(config, tmp_path):
    scan = config["runs"]["scan"]
    write("scan.pth", {"fc.weight": torch.randn(6, 7), "fc.bias": torch.randn(6)}, words(8, pooled=False))
    assert (
        "scan.pth does not say how SCAN scores pairs: name model.cross_attn, model.raw_feature_norm"
        in mistakes(config)[0]
    )
    by_numpy = SCORE | {"lambda_lse": np.float64(5), "lambda_softmax": np.int64(4)}
    write("numpy.pth", {"fc.weight": torch.randn(6, 7), "fc.bias": torch.randn(6)}, words(8, pooled=False), **by_numpy)
    load_settings(config | {"runs": {"scan": scan | {"checkpoint": "numpy.pth"}}})
    scan["model"] |= SCORE | {"lambda_lse": 5.0}
    config["runs"]["vse"]["model"]["normalise_images"] = False
    scan["text"] = {"kind": "bigru", "lowercase": "text", "max_tokens": 9}
    reference_checkpoint(tmp_path / "region.pth", bert_width=96)
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")))
    region_run = {"dataset": "seven", "visual": "regions", "checkpoint": "region.pth", "vocabulary": "vocab.txt"}
    config["runs"]["region"] = region_run | {"model": {"void_value": 0}, "text": {"heads": 7}}
    lines = mistakes(config)
    assert any(
        line.startswith("runs.region.text.heads: 7, but the BERT in region.pth is 96 wide, which is no multiple")
        for line in lines
    )
    config["runs"]["region"]["text"] = {"heads": 3}
    config["testsets"] = {}
    settings = load_settings(config, check_files=False)
    flags = {run: Plan(settings).checkpoint_flags(SimpleNamespace(run=run)) for run in ("vse", "scan", "region")}
    assert flags["vse"][:4] == ["--kind", "vse_infinity", "--vocabulary", "vse_words.json"]
    assert flags["vse"][4:] == ["--options", '{"no_imgnorm": true}']
    assert flags["scan"][4:9] == ["--max-tokens", "9", "--lowercase", "text", "--options"]
    assert json.loads(flags["scan"][9]) == SCORE | {"lambda_lse": 5.0}
    assert flags["region"][-4:] == ["--void-value", "0", "--heads", "3"]
    main(["import", "scan.pth", "run", *flags["scan"], "--by-workflow"])
    main(["import", "vse.pth", "other", *flags["vse"], "--by-workflow"])
    assert not load_run("other")[0].image.sizes.normalise_images
    network, _, tokenizer = load_run("run")
    assert network.image.sizes.agg_func == "Max" and (tokenizer.lowercase, tokenizer.max_tokens) == ("text", 9)
    assert load_reference("region.pth", void_value=0).image.sizes.void_value == 0


def test_settings_of_a_training_beside_a_checkpoint_are_noted_once(config):
    settings = load_settings(config)
    assert not list(notes(settings))
    config["runs"]["scan"] |= {"val_images": 5, "training": {"epochs": 3}, "text": {"kind": "bigru", "min_count": 2}}
    (note,) = notes(load_settings(config))
    assert note.startswith(
        "runs.scan: training, val_images, text.min_count: without effect, as a checkpoint is not trained"
    )


def test_a_vocabulary_that_does_not_fit(config):
    write_word_vocabulary("more.json", [*WORDS, "e"])
    config["runs"]["vse"]["vocabulary"] = config["runs"]["scan"]["vocabulary"] = "more.json"
    assert mistakes(config) == [
        "runs.vse.vocabulary: more.json has 10 words with <mask>, but the text encoder in vse.pth has 9; name the one it was trained with",
        "runs.scan.vocabulary: more.json has 9 words, but the text encoder in scan.pth has 8; name the one it was trained with",
    ]
    for run in config["runs"].values():
        del run["vocabulary"]
    assert mistakes(config)[0].startswith("runs.vse.vocabulary: missing; the text encoder in vse.pth knows 9 words")
    write_word_vocabulary("coco_precomp_vocab.json", WORDS)
    load_settings(config)
    config["runs"]["scan"]["vocabulary"] = "scan.pth"
    assert mistakes(config)[0].startswith("runs.scan.vocabulary: cannot read the vocabulary scan.pth")


def test_a_vocabulary_that_is_none_is_known_before_a_training(config):
    Path("words.pkl").write_bytes(b"\x80\x02}q\x00.")
    Path("words.txt").write_text("a\nb\n")
    for name, file in (("pickle", "words.pkl"), ("lines", "words.txt"), ("right", "vse_words.json")):
        text = {"kind": "bigru", "vocabulary": file}
        config["runs"][name] = TRAINED | {"model": {"kind": "scan"}, "text": text}
    pickled, lines = mistakes(config)
    assert pickled.startswith("runs.pickle.text.vocabulary: cannot read the vocabulary words.pkl")
    assert lines.startswith("runs.lines.text.vocabulary: words.txt: the vocabulary has 'a' where '<pad>' is expected")


class Download:
    def __reduce__(self):
        return torch.hub.download_url_to_file, ("http://127.0.0.1:9/x", "x")


OWN = """
from dataclasses import dataclass
from torch import nn
from model.network import RetrievalNetwork

@dataclass(frozen=True)
class Sizes:
    img_dim: int
    embed_size: int
    depth: int
    slope: float = 0.1

class Encoder(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes

class Own(RetrievalNetwork):
    needs = ("visual",)
    Sizes, ImageEncoder = Sizes, Encoder
"""


def test_sizes_that_a_network_of_ones_own_does_not_have_are_known_before_any_job(config):
    Path("own.py").write_text(OWN)
    config["runs"] = {
        "own": TRAINED | {"model": {"kind": "own.py", "options": {"img_dim": 9, "slop": 1.0, "embed_size": 4}}}
    }
    told = [
        "model.options.img_dim: img_dim follows from the stores; remove it from the options",
        "model.options.slop: no size of the network in own.py; did you mean 'slope'?",
        "model.options.embed_size: embed_size has a key of its own; remove it from the options",
        "model.options.depth: missing; the Sizes in own.py give it no default",
    ]
    assert mistakes(config) == [f"runs.own.{line}" for line in told]
    # The job says the same of a file that does not write its sizes out.
    model = load_settings(config, check_files=False).runs["own"].model
    with pytest.raises(UserError) as error:
        new_image_encoder(network_class("own.py"), model, img_dim=7)
    assert str(error.value) == told[0]
    config["runs"]["own"]["model"]["options"] = {"depth": 2}
    model = load_settings(config).runs["own"].model
    assert new_image_encoder(network_class("own.py"), model, img_dim=7).sizes.depth == 2
    Path("own.py").write_text(OWN.replace("class Sizes:", "class Sizes(Other):"))
    config["runs"]["own"]["model"]["options"] = {"whatever": 2}
    load_settings(config)


def test_precomputed_arrays_that_no_store_holds_are_known_before_any_job(config):
    for prefix, width, classes in (("test", 7, 133), ("dev", 8, 80)):
        np.save(f"seven/{prefix}_ims.npy", np.ones((2, 3, width), "f4"))
        np.save(f"seven/{prefix}_cat_onehots.npy", np.ones((2, classes), "u1"))
    config["datasets"]["seven"] |= {"splits": {"test": "test", "val": "dev"}, "features": ["regions", "panoptic"]}
    assert mistakes(config) == [
        "datasets.seven.folder: seven/dev_ims.npy has arrays of shape (3, 8) for an image, seven/test_ims.npy has (3, 7); correct the files",
        "datasets.seven.folder: seven/dev_cat_onehots.npy has arrays of shape (80,) for an image, panoptic stores have (133,); correct the files",
    ]


def test_cells_of_another_network(config):
    head = {f"image_encoder.{key}": value for key, value in region().items() if not key.startswith("mlp.")}
    write("grid.pth", head | grid_cnn(), words(pooled=True))
    config["runs"]["vse"]["checkpoint"] = "grid.pth"
    assert mistakes(config)[0].startswith("runs.vse.visual: 'regions', but grid.pth is a grid checkpoint")
    config["datasets"]["scenes"] = {"source": "scenes", "splits": {"test": 2}}
    config["testsets"]["t"]["dataset"], config["runs"]["vse"]["visual"] = "scenes", "grids"
    assert (
        "features.grids are those of architecture scenes_grids; write features.grids: {architecture: vse_grid_d"
        in mistakes(config)[0]
    )
    write("other.pth", head | grid_cnn(), words(pooled=True))
    config["features"] = {"grids": {"architecture": "vse_grid_detector", "weights": "other.pth"}}
    assert "those of architecture vse_grid_detector with weights other.pth; write" in mistakes(config)[0]
    config["features"]["grids"] |= {"architecture": "vse_grid_wsl", "weights": "grid.pth"}
    assert (
        "those of architecture vse_grid_wsl; write features.grids: {architecture: vse_grid_detector, weights: grid.pth"
        in mistakes(config)[0]
    )
    config["features"]["grids"]["architecture"] = "vse_grid_detector"
    Path("copy.pth").write_bytes(Path("grid.pth").read_bytes())
    config["features"]["grids"]["weights"] = "copy.pth"
    assert "takes visual tokens of 7 numbers" in mistakes(config)[0], "of its own CNN they have 2,048"


def test_a_checkpoint_of_images_alone_is_told(config):
    write("vse.pth", region(), {})
    assert mistakes(config) == [
        "runs.vse.checkpoint: vse.pth holds no text encoder, which could read captions; get the checkpoint of both encoders"
    ]
    config["runs"]["vse"]["model"] = {"kind": "vsee"}
    assert len(mistakes(config)) == 2, "of an unknown kind nothing else is said"


def test_a_run_that_somebody_put_there(config, tmp_path):
    run = tmp_path / "results/runs/kept"
    run.mkdir(parents=True)
    (run / "model.safetensors").touch()
    content = {"format_version": 2, "kind": "vse_infinity", "image": {"img_dim": 9}}
    (run / "config.json").write_text(json.dumps(content))
    kept = {
        "dataset": "seven",
        "visual": "regions",
        "train_split": "test",
        "val_split": None,
        "model": {"kind": "vse_infinity"},
    }
    config["runs"] = {"kept": kept | {"training": {"batch_size": 2}}}
    with pytest.raises(
        UserError,
        match="runs.kept.visual: the run in results/runs/kept takes visual tokens of 9 numbers, but testsets.t has",
    ):
        Plan(load_settings(config)).kept_runs()
    content["image"] |= {"embed_size": 6, "mlp": False}
    (run / "config.json").write_text(json.dumps(content))
    config["runs"]["kept"]["model"] = {"kind": "vse_infinity", "mlp": True}
    with pytest.raises(
        UserError, match="runs.kept.model.mlp: True, but the run in results/runs/kept has False; write that, or"
    ):
        Plan(load_settings(config)).kept_runs()
    config["runs"]["kept"]["model"] = {"kind": "vse_infinity", "embed_size": 6}
    search = {"dataset": "seven", "imported": {"other": {"folder": "results/runs/kept", "visual": "regions"}}}
    config |= {"search": {"mine": search}, "testsets": {}}
    assert mistakes(config)[0].startswith(
        "search.mine.imported.other.visual: the run in results/runs/kept takes visual tokens of 9 numbers"
    )
    content |= {"image": {"img_dim": 7}, "features": {"visual": {"feature": "grids"}}}
    (run / "config.json").write_text(json.dumps(content))
    assert "reads grids; write visual: grids" in mistakes(config)[0]
    content |= {"image": {"img_dim": 7, "num_categories": 100}, "features": None}
    (run / "config.json").write_text(json.dumps(content))
    assert (
        "imported.other.model: the run in results/runs/kept reads 100 classes, but panoptic stores have 133"
        in mistakes(config)[0]
    )
    content["image"] = {"img_dim": 7}
    (run / "config.json").write_text(json.dumps(content))
    assert Plan(load_settings(config)).kept_runs() == ["kept"]
