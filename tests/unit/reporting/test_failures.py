"""The mistakes that the report shows, and how the runs differ."""

from __future__ import annotations

import numpy as np
import pytest
from bs4 import BeautifulSoup

from evaluation.embeddings import Embeddings
from reporting.artefacts import Artefacts
from reporting.report import build, render
from reporting.sections.configuration import differing
from reporting.sections.failures import most_confident


def embeddings(images: int, captions: int, seed: int = 0) -> Embeddings:
    generator = np.random.default_rng(seed)
    floats = [generator.normal(size=(n, 6)).astype(np.float32) for n in (images, captions)]
    ids = [np.array([f"{kind}{n}" for n in range(count)]) for kind, count in (("i", images), ("c", captions))]
    return Embeddings(*floats, (np.arange(captions) % images).astype(np.int32), *ids)


def test_the_most_confident_mistakes_are_those_of_the_largest_margin():
    members = [embeddings(12, 40, seed) for seed in (1, 2)]
    scores = sum(one.captions @ one.images.T for one in members) / 2
    owner = members[0].caption_image
    expected = []
    for row, line in enumerate(scores):
        others = np.delete(line, owner[row])
        if others.max() >= line[owner[row]]:
            expected.append((float(others.max() - line[owner[row]]), row))
    found, tried, wrong = most_confident(members, 3, seed=5)
    assert tried == 40 and wrong == len(expected) > 10
    assert found[0].margin == pytest.approx(max(expected)[0], abs=1e-5) and found[0].caption == max(expected)[1]
    assert [one.margin for one in found] == sorted((one.margin for one in found), reverse=True)
    shown = [row for one in found for row in (one.wrong, one.right)]
    assert len(set(shown)) == len(shown) == 6, "each image once"
    for one in found:
        assert one.rank == 1 + (np.delete(scores[one.caption], one.right) >= scores[one.caption][one.right]).sum()


def test_without_a_mistake_there_is_none():
    ids = embeddings(4, 4)
    images = np.eye(4, 6, dtype=np.float32)
    perfect = Embeddings(images, images, ids.caption_image, ids.image_ids, ids.caption_ids)
    assert most_confident([perfect], 3, 0) == ([], 4, 0)
    alone = embeddings(1, 3)
    assert most_confident([alone], 3, 0)[2] == 0


def test_settings_that_differ_are_listed_and_no_other():
    runs = {
        "a": {"visual": "regions", "training": {"epochs": 3, "lr": 0.1}, "val_split": None},
        "b": {"visual": "grids", "training": {"epochs": 3, "lr": 0.2}, "val_split": None, "seed": 4},
    }
    assert differing(runs) == [("visual", ["regions", "grids"]), ("training.lr", ["0.1", "0.2"]), ("seed", ["", "4"])]
    assert differing({"a": runs["a"]}) == [] == differing({})


def test_the_page_shows_both(tree):
    root, config = tree
    page = BeautifulSoup(render(build(Artefacts(root, config), queries=4, seed=0)), "html.parser")
    section = page.find(id="failures")
    assert 1 <= len(section.select(".mistake")) <= 8 and section.select(".wrong use") and section.select(".right use")
    keys = {use["href"].removeprefix("#") for use in section.select("use")}
    assert keys <= {tag["id"] for tag in page.select("defs [id]")}
    table = page.find(id="configuration").find(class_="differs")
    assert [cell.text for cell in table.thead.find_all("th")] == ["setting", "region", "grid"]
    assert "visual" in table.tbody.text
    without = BeautifulSoup(render(build(Artefacts(root, config), queries=0, seed=0)), "html.parser")
    assert without.find(id="failures") is None
