"""Why an image was found: what is written by the networks' job is what the page shows."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from model.explain import Explanation, cells
from reporting.artefacts import WHY_VERSION, Artefacts
from reporting.painted import SIDE, overlay, pair
from reporting.report import build, render
from reporting.sections.gallery import find, matches
from reporting.why import _record

HOSTILE = '"><script>alert(1)</script>'


def explanation(seed: int, words=("[CLS]", "a", "dog", "[SEP]")) -> Explanation:
    generator = np.random.default_rng(seed)
    shares = generator.normal(scale=0.02, size=(9, len(words)))
    return Explanation(float(shares.sum()), tuple(words), ("cell",) * 9, shares, np.zeros(9), cells(3, 3), None, None)


def pixels(shown: dict) -> np.ndarray:
    data = base64.b64decode(shown["png"].partition("base64,")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


def test_of_several_runs_the_mean_is_painted():
    one, two = _record(explanation(1)), _record(explanation(2))
    json.dumps([one, two])
    heat = [np.array(record["heat"].split(), float) for record in (one, two)]
    opposite = one | {"heat": " ".join(str(int(-v)) for v in heat[0])}
    assert pixels(overlay([one])).shape == (SIDE, SIDE, 4)
    assert pixels(overlay([one]))[..., 3].max() > 0 == pixels(overlay([one, opposite]))[..., 3].max()
    total = sum(share for _, share in one["words"])
    assert heat[0].sum() * 1e-6 == pytest.approx(total, abs=1e-3), "all parts have a place here"
    shown = overlay([one, two])
    expected = [(a + b) / 2 for (_, a), (_, b) in zip(one["words"], two["words"], strict=True)]
    assert [share for _, share, _ in shown["words"]] == pytest.approx(expected)
    assert max(abs(level) for *_, level in shown["words"]) == 4


def test_runs_that_cut_words_otherwise_are_painted_together_but_name_the_first_ones_words():
    one, two = _record(explanation(1)), _record(explanation(2, words=("<start>", "dog")))
    shown = overlay([one, two])
    assert [(word, share) for word, share, _ in shown["words"]] == [tuple(word) for word in one["words"]]


def test_the_page_shows_it_and_escapes_it(tmp_path, small_config, build_results):
    build_results(tmp_path, small_config)
    artefacts = Artefacts(tmp_path, small_config)
    without = render(build(artefacts, queries=3, seed=0))
    assert "show-why" not in without.partition("<body>")[2]
    found = find(artefacts, "scenes_test", small_config["testsets"]["scenes_test"], 3, 0)
    (_, _, members), answers = found.systems[0], found.answers[0]
    words = ("[CLS]", HOSTILE, "[SEP]")
    shown = list(matches(members[0], *answers))
    told = {pair(*match): _record(explanation(number, words)) for number, match in enumerate(shown)}
    path = Path(tmp_path, "report", "why.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"why_version": WHY_VERSION, "testsets": {"scenes_test": {"region": told}}}))
    page = BeautifulSoup(render(build(Artefacts(tmp_path, small_config), queries=3, seed=0)), "html.parser")
    assert page.select_one("#show-why") and len(page.select("script")) == 1
    layers = page.select(".layer-why image")
    assert len(layers) == len(shown)
    # Whoever cannot point reads below what is framed, with the words that speak for it.
    listed = page.select(".framed li")
    assert sorted(one["title"] for one in listed) == sorted(title.text for title in page.select(".frame title")) != []
    assert all(one.b.text == "cell" and "-" not in one.text for one in listed)
    # Of an image's sentences each has its own, over that image.
    own = [entry.select(".because .layer-why image") for entry in page.select(".captions > li")]
    assert own and all(len(one) == 1 for one in own)
    assert all(one["href"].startswith("data:image/png;base64,") for one in layers)
    assert HOSTILE in page.select_one(".words li:nth-of-type(2)").text
    assert all(HOSTILE in title.text for title in page.select(".frame title"))
    # Of another version nothing is shown.
    path.write_text(json.dumps({"why_version": 99, "testsets": {"scenes_test": {"region": told}}}))
    assert Artefacts(tmp_path, small_config).why("scenes_test") == {}
