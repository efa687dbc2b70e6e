"""What each rule needs of networks of other kinds, and of checkpoints of authors."""

import json
import re
from pathlib import Path
from types import SimpleNamespace as W

import pytest

from core.console import UserError
from tests.unit.rules.test_plan import SCENES, plan

pytestmark = pytest.mark.usefixtures("working_folder")


@pytest.fixture
def kinds(tmp_path, any_checkpoint):
    """A trained SCAN beside two checkpoints."""
    for name in ("paper.pth", "paper_vocab.json"):
        Path(name).write_bytes(b"x")
    runs = {
        "t2i": {"model": {"kind": "scan"}},
        "vse": {"model": {"kind": "vse_infinity"}, "checkpoint": "paper.pth", "vocabulary": "paper_vocab.json"},
        "paper": {"checkpoint": "paper.pth"},
    }
    return {
        "datasets": {"d": SCENES},
        "runs": {name: {"dataset": "d", "visual": "regions"} | run for name, run in runs.items()},
        "testsets": {"t": {"dataset": "d"}},
        "ensembles": {"both": {"runs": ["t2i", "vse"]}},
    }


def test_a_network_that_scores_pairs_is_scored_by_its_scores(kinds):
    asked = plan(kinds)
    inputs = asked.ensemble_inputs(W(ensemble="both", testset="t"))
    assert inputs == ["results/evaluation/t2i/t/scores.zarr", "results/evaluation/vse/t/embeddings.zarr"]
    assert asked.scored(W(run="t2i", testset="t")) == inputs[0]
    without = {key: value for key, value in kinds.items() if key != "ensembles"}
    del without["runs"]["paper"]
    assert plan(without).needed_features("d") == ["regions"]  # no panoptic store is made


def test_a_checkpoint_is_imported_and_not_trained(kinds):
    asked = plan(kinds)
    assert asked.trained == "t2i" and asked.imported_runs == "vse|paper"
    assert asked.checkpoint_inputs(W(run="vse")) == {"checkpoint": "paper.pth", "words": "paper_vocab.json"}
    assert asked.checkpoint_flags(W(run="vse")) == ["--kind", "vse_infinity", "--vocabulary", "paper_vocab.json"]
    assert asked.checkpoint_flags(W(run="paper"))[2:4] == ["--class-order", "upsnet"]  # as its authors have it
    assert asked.checkpoint_reads(W(run="vse"), None) == ["--visual", "regions"] and not list(asked.pooled_cells())
    cells = {"architecture": "vse_grid_detector", "weights": "paper.pth"}
    on_grids = {
        "runs": {"vse": kinds["runs"]["vse"] | {"visual": "grids"}},
        "features": {"grids": cells},
        "ensembles": {},
    }
    asked_of_grids = plan(kinds | on_grids)
    flags = asked_of_grids.checkpoint_reads(W(run="vse"), None)
    assert flags[:3] == ["--visual", "grids", "--grids"] and cells.items() <= json.loads(flags[3]).items()
    assert list(asked_of_grids.pooled_cells()) == ["vse"]  # the default pools the map to 7 x 7
    histories = [file for file in asked.report_inputs(W()) if file.endswith("history.csv")]
    assert histories == ["results/runs/t2i/history.csv"]
    Path("paper.pth").unlink()
    with pytest.raises(UserError, match=r"runs.vse.checkpoint: file 'paper.pth' does not exist"):
        plan(kinds)


def test_what_somebody_imported_is_made_by_no_job(kinds):
    for run in ("t2i", "vse"):
        folder = Path("results/runs", run)
        folder.mkdir(parents=True)
        content = {"format_version": 2, "kind": kinds["runs"][run]["model"]["kind"], "source": {"imported": "x.pth"}}
        (folder / "config.json").write_text(json.dumps(content))
    asked = plan(kinds)
    assert asked.kept_runs() == ["t2i", "vse"] and asked.trained == "(?!)" and asked.imported_runs == "paper"
    content["kind"] = "scan"
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="runs.vse.model.kind: 'vse_infinity', but .* of kind 'scan'"):
        plan(kinds).kept_runs()
    content["source"]["by_workflow"] = True
    (folder / "config.json").write_text(json.dumps(content))
    assert plan(kinds).imported_runs == "vse|paper"
    # What somebody copied there: weights, configuration and vocabulary are all it takes.
    (folder / "config.json").write_text(json.dumps({"format_version": 2, "kind": "vse_infinity", "training": {}}))
    (folder / "model.safetensors").touch()
    assert plan(kinds).kept_runs() == ["t2i", "vse"]
    state = folder.with_name("vse.state")
    state.mkdir()
    (state / "state.pt").touch()
    # Of a training of ours the history was lost: nobody put it there, but it must not be removed for a checkpoint either.
    told = "runs.vse.checkpoint: results/runs/vse holds a run that was trained here, which the import would remove"
    with pytest.raises(UserError, match=told):
        plan(kinds).kept_runs()
    (state / "state.pt").unlink()
    (folder / "history.csv").touch()
    with pytest.raises(UserError, match=told):
        plan(kinds).kept_runs()
    del kinds["runs"]["vse"]["checkpoint"], kinds["runs"]["vse"]["vocabulary"]
    assert plan(kinds).kept_runs() == ["t2i"]


@pytest.mark.parametrize(
    "run, message",
    [
        ({"model": {"kind": "scna"}}, "'scna' is no kind of network; did you mean 'scan'"),
        ({"model": {"kind": "scan", "spatial_size": 8}}, "spatial_size"),
        ({"model": {"kind": "scan", "cross_attn": "both"}}, "cross_attn"),
        ({"text": {"kind": "bigru", "heads": 2}}, "heads"),
        ({"text": {"kind": "bigru", "vocabulary": "none.json"}}, "file 'none.json' does not exist"),
        ({"vocabulary": "x.json"}, "write text.vocabulary"),
    ],
)
def test_mistakes_in_a_kind_are_told(kinds, run, message):
    kinds["runs"]["t2i"] = {"dataset": "d", "visual": "regions"} | run
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        plan(kinds)
    assert "runs.t2i" in str(caught.value)
