"""VSE-infinity's grid checkpoints: the head becomes a run that reads the cells of the file's own CNN, and goes back with it."""

import json

import pytest
import torch

from core.console import UserError
from core.files import digest_file
from model.checkpoint import export_checkpoint, import_checkpoint, main
from model.runs import check_same_extractor
from model.words import write_word_vocabulary

from .test_checkpoint_kinds import grid_cnn, region, same_states, words, write


@pytest.fixture
def grid(tmp_path):
    """A grid checkpoint and its words beside it."""
    torch.manual_seed(0)
    head = {f"image_encoder.{key}": value for key, value in region().items() if not key.startswith("mlp.")}
    write_word_vocabulary(tmp_path / "some_vocab.json", ["<pad>", "<start>", "<end>", "<unk>", "a", "b", "c", "d"])
    options = {"backbone_source": "detector", "input_scale_factor": 2.0, "precomp_enc_type": "backbone"}
    return write(tmp_path / "grid.pth", head | grid_cnn(), words(pooled=True), "module.", **options)


def recorded(run):
    return json.loads((run / "config.json").read_text())["features"]


def test_a_head_knows_whose_cells_it_reads(tmp_path, grid, capsys):
    import_checkpoint(grid, tmp_path / "head", visual="grids", by_workflow=True)
    trained, digest = recorded(tmp_path / "head"), digest_file(grid)
    assert trained["visual"]["weights_digest"] == digest
    settings = {"engine": "native", "architecture": "vse_grid_detector", "grid": "native", "recipe": 3}
    given = {"feature": "grids", "weights_digest": digest, "extractor": settings, "index_digest": "i"}
    check_same_extractor(trained, {"visual": given}, run="head")
    assert "warning" not in capsys.readouterr().err
    for changed, told in (
        ({"weights_digest": "e" * 64}, f"visual weights digest: '{digest}' in the run, '{'e' * 64}' in the store"),
        ({"feature": "regions", "weights_digest": None}, "visual feature: 'grids' in the run, 'regions' in the store"),
    ):
        with pytest.raises(UserError) as caught:
            check_same_extractor(trained, {"visual": given | changed}, run="head")
        fix = "write features.grids: {architecture: vse_grid_detector, weights: FILE, grid: native} with FILE the checkpoint"
        assert told in str(caught.value) and fix in str(caught.value) and "grid.pth" in str(caught.value)
    check_same_extractor(trained, {"visual": given | {"weights_digest": None}}, run="head")  # cells of files
    assert "could not be checked" in capsys.readouterr().err


def test_what_a_head_cannot_read_is_told_at_its_import(tmp_path, grid):
    own = {"engine": "native", "architecture": "vse_grid_detector", "weights": str(grid), "grid": "native"}
    import_checkpoint(grid, tmp_path / "paper", visual="grids", grids=own)
    copy, other = tmp_path / "copy.pth", tmp_path / "other.pth"
    copy.write_bytes(grid.read_bytes())
    other.write_bytes(b"another checkpoint")
    import_checkpoint(grid, tmp_path / "paper", visual="grids", grids=own | {"weights": str(copy)})
    import_checkpoint(
        grid, tmp_path / "paper", visual="grids", grids=own | {"weights": str(tmp_path / "to/be/fetched")}
    )
    section = f"features.grids: {{architecture: vse_grid_detector, weights: {grid}, grid: native}}"
    for options, told in (
        ({"visual": "regions"}, "runs.paper.visual: 'regions', but "),
        (
            {"visual": "grids", "grids": own | {"weights": str(other)}},
            f"those of vse_grid_detector with weights {other}",
        ),
        ({"visual": "grids", "grids": own | {"architecture": "grid_x101"}}, "those of grid_x101 with weights"),
        (
            {"visual": "grids", "grids": {"engine": "detectron2", "config": "x", "weights": None}},
            "those of detectron2 ",
        ),
    ):
        with pytest.raises(UserError) as caught:
            import_checkpoint(grid, tmp_path / "paper", **options)
        assert told in str(caught.value) and section in str(caught.value)
    # Without a CNN nothing is known of its features.
    path = write(tmp_path / "region.pth", region(), words(pooled=True))
    import_checkpoint(path, tmp_path / "region", visual="grids", grids=own | {"architecture": "grid_x101"})
    assert recorded(tmp_path / "region") is None


def test_a_head_goes_back_with_its_cnn(tmp_path, grid):
    main(["import", str(grid), str(tmp_path / "head")])
    with pytest.raises(
        UserError, match="theirs without an MLP holds its CNN: name the checkpoint of which it is, --cnn FILE"
    ):
        main(["export", str(tmp_path / "head"), str(tmp_path / "again.pth")])
    export_checkpoint(tmp_path / "head", tmp_path / "again.pth", cnn=grid, check=False)
    same_states(grid, tmp_path / "again.pth")
    before, after = (torch.load(path, weights_only=False) for path in (grid, tmp_path / "again.pth"))
    assert all(key.startswith("module.") for state in after["model"] for key in state)
    assert vars(before["opt"]).items() <= vars(after["opt"]).items()
    import_checkpoint(tmp_path / "again.pth", tmp_path / "twice", vocabulary=tmp_path / "again_precomp_vocab.json")


def test_a_cnn_that_is_not_the_heads_is_not_written_with_it(tmp_path, grid):
    other = write(tmp_path / "other.pth", {"image_encoder.fc.weight": torch.ones(1)} | grid_cnn(), words(pooled=True))
    regions = write(tmp_path / "region.pth", region(), words(pooled=True))
    import_checkpoint(grid, tmp_path / "head")
    import_checkpoint(regions, tmp_path / "region")
    for run, cnn, check, told in (
        ("head", other, False, f"reads the cells of {digest_file(grid)}"),
        ("head", regions, False, "holds no CNN"),
        ("region", grid, True, "model.mlp is True; theirs with a CNN"),
    ):
        with pytest.raises(UserError, match=told):
            export_checkpoint(tmp_path / run, tmp_path / "no.pth", cnn=cnn, check=check)
    assert not (tmp_path / "no.pth").exists()
