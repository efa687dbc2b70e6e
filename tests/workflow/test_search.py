"""The branch `search` of the workflow, run by Snakemake, and asked."""

import copy
import json

import pytest

from search.__main__ import main

from .conftest import TINY

pytestmark = pytest.mark.workflow


def test_the_reports_gallery_says_why(finished):
    """Every image that is shown for a sentence, and every sentence for an image, has its explanation."""
    page = (finished.results / "report" / "index.html").read_text()
    why = json.loads((finished.results / "report" / "why.json").read_text())
    assert {run for run, pairs in why["testsets"]["tiny_test"].items() if pairs} == {"region", "grid"}
    assert 'id="show-why"' in page and page.count('<div class="layer-why">') == page.count('<li class="hit ')
    sentences = page.count('<li class="right') + page.count('<li class="wrong')
    assert page.count('<div class="because layer-why">') == sentences > 0


def test_a_finished_workflow_becomes_searchable(finished, capsys, monkeypatch):
    config = copy.deepcopy(TINY) | {"search": {"all": {"dataset": "tiny", "runs": ["region", "grid"]}}}
    result = finished.run("search", config=config)
    assert result.returncode == 0, result.stderr
    log = (finished.results / "logs" / "build_search" / "all.log").read_text()
    assert "region: embedded 44 of 44 images" in log and "thumbnails: 44 made" in log
    monkeypatch.chdir(finished.folder)
    main(["ask", "two dogs on the grass", "--dataset", "tiny", "--top", "3", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["runs"] == ["region", "grid"] and len(answer["images"]) == 3
