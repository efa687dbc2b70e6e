"""Published weights in the configuration: names become paths, and mistakes are found before anything is fetched."""

import pytest
import yaml

from core.console import UserError
from settings import load_settings


@pytest.fixture
def config(repository):
    return yaml.safe_load((repository / "config.yaml").read_text())


def test_published_weights_become_paths(config, tmp_path):
    config["features"]["regions"] = {
        "architecture": "faster_rcnn_r101_c4",
        "weights": "published:faster_rcnn_R_101_C4_3x",
    }
    config["features"]["panoptic"] = {"architecture": "panoptic_fpn_r50", "weights": "published:panoptic_fpn_R_50_3x"}
    config["runs"]["region"]["text"] = {"pretrained": "published:bert-base-uncased"}
    (tmp_path / "mine.pkl").write_bytes(b"x")
    config["published"] = {"folder": "kept/", "files": {"panoptic_fpn_R_50_3x": str(tmp_path / "mine.pkl")}}
    settings = load_settings(config)
    assert settings.features.regions.weights == "kept/faster_rcnn_R_101_C4_3x/model_final_298dad.pkl"
    assert settings.features.panoptic.weights == str(tmp_path / "mine.pkl")
    assert settings.runs["region"].text.pretrained == "kept/bert-base-uncased"
    assert settings.runs["grid"].text.pretrained is None


def test_mistakes_in_published_weights(config, tmp_path, monkeypatch, repository):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(repository / "weights")
    config["features"]["regions"] = {
        "architecture": "vg_r101_c4_caffe_milvlg",
        "weights": "published:bua-caffe-frcn-r101-k36",
    }
    config["features"]["grids"]["weights"] = "published:grid-feats-vqa-X-101"
    config["features"]["panoptic"]["weights"] = "published:panoptic_fpn_r50_3x"
    config["runs"]["region"]["text"] = {"pretrained": "published:MSRA-R-50"}
    config["published"] = {"files": {"bert": "bert", "bert-base-uncased": "no/folder"}, "mirrors": "x"}
    with pytest.raises(UserError) as error:
        load_settings(config)
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert lines == [
        "published.mirrors: unknown key; did you mean 'mirror'?",
        "published.files.bert: no published weights; `python -m published list` shows all",
        "published.files.bert-base-uncased: folder 'no/folder' does not exist; correct the path, or remove the key to download it",
        "features.regions.weights: bua-caffe-frcn-r101-k36 is published on a share page only, without an address to fetch it "
        "from; download it by hand (https://github.com/MILVLG/bottom-up-attention.pytorch#pre-trained-models) and put it at "
        "published_weights/bua-caffe-frcn-r101-k36/bua-caffe-frcn-r101-k36.pth, or name your copy: "
        "published.files.bua-caffe-frcn-r101-k36 in the configuration",
        "features.grids.architecture: 'scenes_grids' does not fit 'published:grid-feats-vqa-X-101'; "
        "write architecture: grid_x101",
        "features.panoptic.weights: 'published:panoptic_fpn_r50_3x' - no published weights; "
        "did you mean 'panoptic_fpn_R_50_3x'?",
        "runs.region.text.pretrained: 'published:MSRA-R-50' is ImageNet ResNet-50, stride in 1x1, no text encoder; "
        "`python -m published list` shows what there is",
    ]
    config["published"] = {"mirror": "mirror.example.org"}
    with pytest.raises(UserError, match="published.mirror: 'mirror.example.org' - "):
        load_settings(config)


def test_a_run_names_a_published_checkpoint(config, tmp_path, monkeypatch, repository):
    """Downloaded by hand or a file of the user's own; neither is any job's to make."""
    from rules.plan import Plan

    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(repository / "weights")
    run, name = config["runs"]["region"], "vse-infinity-coco_butd_region_bert"
    paper = {key: run[key] for key in ("dataset", "visual")} | {"model": {"kind": "vse_infinity"}}
    config["runs"], config["ensembles"], config["search"] = {"paper": paper}, {}, {}
    paper["checkpoint"] = "published:vse"
    with pytest.raises(
        UserError, match=f"'published:vse' - no published weights; choose one of 3shnet-region.*, {name}"
    ):
        load_settings(config)
    paper["checkpoint"] = f"published:{name}"
    with pytest.raises(UserError, match=f"runs.paper.checkpoint: {name} is published on a share page only"):
        load_settings(config)
    (tmp_path / "mine.pth").write_bytes(b"x")
    monkeypatch.setattr("settings.checks.checkpoint_faults", lambda *_: ())
    assert load_settings(config | {"published": {"files": {name: "mine.pth"}}}).runs["paper"].checkpoint == "mine.pth"
    mirrored = config | {"published": {"mirror": "https://mirror.example.org"}}
    assert f"{name}/model_best.pth" in Plan(load_settings(mirrored)).published.replace("\\", "")
    file = tmp_path / "published_weights" / name / "model_best.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    for content in (config, mirrored):
        settings = load_settings(content)
        assert settings.runs["paper"].checkpoint == f"published_weights/{name}/model_best.pth"
        assert name not in Plan(settings).published.replace("\\", "")


def test_a_published_checkpoint_reads_what_it_was_trained_on(config, tmp_path, monkeypatch, repository):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(repository / "weights")
    paper = {"dataset": config["runs"]["region"]["dataset"], "visual": "regions", "model": {"kind": "vse_infinity"}}
    config["runs"], config["ensembles"], config["search"] = {"paper": paper}, {}, {}
    name = "published:vse-infinity-coco_wsl_grid_bert"
    paper["checkpoint"] = name

    def mistakes():
        with pytest.raises(UserError) as error:
            load_settings(config, check_files=False)
        return [line.strip() for line in str(error.value).splitlines()[1:]]

    assert mistakes() == [f"runs.paper.visual: 'regions', but {name!r} reads grids; write visual: grids"]
    paper["visual"] = "grids"
    fix = f"write features.grids: {{architecture: vse_grid_wsl, weights: {name}, grid: native}}"
    (told,) = mistakes()
    assert told.startswith(f"runs.paper.checkpoint: {name!r} reads the cells of its own CNN") and told.endswith(fix)
    config["features"]["grids"] = {"architecture": "vse_grid_detector", "weights": name, "grid": "native"}
    (told,) = mistakes()
    assert told.endswith(f"does not fit {name!r}; write architecture: vse_grid_wsl")
    config["features"]["grids"]["architecture"] = "vse_grid_wsl"
    settings = load_settings(config, check_files=False)
    assert settings.features.grids.weights == settings.runs["paper"].checkpoint
    config["features"]["grids"]["weights"] = "published:vse-infinity-coco_butd_region_bert"
    assert "is VSE-infinity, coco, butd_region, BERT, no detector" in mistakes()[0]


def test_a_file_that_the_import_would_remove_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "results/runs/paper/vocab.txt"
    file.parent.mkdir(parents=True)
    file.write_text("word\n")
    (tmp_path / "mine.pth").write_bytes(b"x")
    monkeypatch.setattr("settings.checks.checkpoint_faults", lambda *_: ())
    run = {key: config["runs"]["region"][key] for key in ("dataset", "visual")}
    config["runs"] = {"paper": run | {"checkpoint": "mine.pth", "vocabulary": str(file)}}
    config["ensembles"] = {}
    with pytest.raises(UserError, match="runs.paper.vocabulary: .* is a file that the workflow writes"):
        load_settings(config)
