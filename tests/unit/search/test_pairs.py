"""Runs that score pairs (SCAN) in a search: alone, and together with runs that have vectors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

import search.vectors
from model.data import Features, image_tensors
from model.embed import embed_captions, embed_images, score_pairs
from model.runs import load_run
from search.__main__ import main
from search.ask import Search
from search.serve import make_app
from stores import open_store
from tests.unit.search.conftest import make_searchable

BOTH_WAYS = {"t2i": {}, "i2t": {"cross_attn": "i2t", "agg_func": "Mean", "lambda_softmax": 4}}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    made = make_searchable(tmp_path_factory.mktemp("pairs"), runs=("first",), scan=BOTH_WAYS)
    made.build()
    return made


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(search.vectors, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(search.vectors, "_ROWS_AT_LEAST", 7)


class Whole:
    """The scores of a run by its network as it evaluates: nothing stored, nothing in blocks."""

    def __init__(self, made, run: str) -> None:
        self.network, _, self.tokenizer = load_run(made.runs[run]["folder"])
        stores = [open_store(made.runs[run][kind]) for kind in ("visual", "panoptic") if kind in made.runs[run]]
        self.features = Features(stores[0], stores[1] if stores[1:] else None)
        self.rows = np.arange(len(made.world.ids))

    def of(self, sentences: list[str]) -> np.ndarray:
        if self.network.scores == "pairs":
            return score_pairs(self.network, self.features, self.rows, self.tokenizer, sentences)
        images = embed_images(self.network, self.features, self.rows)
        return images @ embed_captions(self.network, self.tokenizer, sentences).T

    def pooled(self) -> np.ndarray:
        """(N, E): the mean of each image's regions, normalised."""
        with torch.no_grad():
            images = image_tensors(self.features.rows(self.rows))
            found = [
                own[:count].mean(0) for own, count in zip(self.network.encode_images(*images), images[1], strict=True)
            ]
        return torch.nn.functional.normalize(torch.stack(found)).numpy()


@pytest.mark.parametrize("run", [None, "t2i", "i2t"])
def test_a_sentence_finds_what_the_network_says(mixed, small_blocks, run):
    found = Search(mixed.output)
    own = np.mean([Whole(mixed, one).of(["a red dog"])[:, 0] for one in found.chosen(run)], axis=0)
    hits = found.find("a red dog", run=run, top=36)
    assert sorted(hit.row for hit in hits) == list(range(36))
    np.testing.assert_allclose([hit.score for hit in hits], own[[hit.row for hit in hits]], atol=1e-3)  # half precision
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert np.ptp(own) > 0.01, "of scores that are all alike any order is right"


@pytest.mark.parametrize("run", ["t2i", "i2t"])
def test_an_image_finds_sentences_and_others(mixed, small_blocks, run):
    found, whole = Search(mixed.output), Whole(mixed, run)
    own = whole.of([caption["text"] for caption in found.captions])[3]
    hits = found.sentences(3, run=run, top=9)
    np.testing.assert_allclose([hit.score for hit in hits], own[[hit.row for hit in hits]], atol=1e-3)
    best = sorted({round(float(score), 4) for score in own}, reverse=True)
    assert hits[0].score == pytest.approx(best[0], abs=1e-3)
    others = whole.pooled() @ whole.pooled()[3]
    hits = found.similar(3, run=run, top=36)
    assert sorted(hit.row for hit in hits) == [row for row in range(36) if row != 3]
    np.testing.assert_allclose([hit.score for hit in hits], others[[hit.row for hit in hits]], atol=1e-3)


def test_what_is_kept_is_small_and_taken_over(mixed, capsys):
    for run in BOTH_WAYS:
        vectors = search.vectors.read_vectors(mixed.output.parent / f"{run}.images.safetensors")
        counts = mixed.world.visual.arrays["counts"]
        assert vectors.lengths.tolist() == counts.tolist() and vectors.embeddings.dtype == np.float16
        assert vectors.embeddings.shape == (counts.sum(), 8)
    mixed.build()
    assert capsys.readouterr().out.count("embedded 0 of 36 images and 0 captions anew") == 3


def test_the_command_and_the_page_answer(mixed, capsys):
    given = ["--dataset", "mine", "--results", str(mixed.results), "--json"]
    main(["ask", "--image", mixed.world.ids[7], *given])
    answer = json.loads(capsys.readouterr().out)
    assert answer["runs"] == ["first", "t2i", "i2t"] and len(answer["images"]) == len(answer["sentences"]) == 5
    found = Search(mixed.output)
    explained = found.explain("a blue bus", [4], run="i2t")[0]
    with TestClient(make_app(found), base_url="http://localhost") as client:
        for address in ("/?q=a+blue+bus&why=1&run=t2i", "/?q=a+blue+bus&why=1", "/?image=4&run=i2t"):
            page = client.get(address)
            assert page.status_code == 200 and page.text.count("<figure>") > 20
        assert client.get("/why/4?q=a+blue+bus&run=i2t").headers["content-type"] == "image/png"
    (hit,) = (hit for hit in found.find("a blue bus", run="i2t", top=36) if hit.row == 4)
    assert explained.score == pytest.approx(hit.score, abs=1e-3)
