from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from bs4 import BeautifulSoup

from core.console import UserError
from evaluation.embeddings import read_embeddings
from reporting.artefacts import Artefacts
from reporting.report import build, render
from reporting.words import duration, shorten


def make_page(root, config, *, queries=3, seed=0):
    text = render(build(Artefacts(root, config), queries=queries, seed=seed))
    return text, BeautifulSoup(text, "html.parser")


@pytest.fixture(scope="module")
def page(tree):
    return make_page(*tree)


def row_of(soup, testset, label):
    table = soup.find("div", attrs={"aria-label": f"Results on {testset}"})
    return next(row for row in table.find_all("tr") if row.th and row.th.get_text(" ", strip=True).startswith(label))


def numbers(row):
    return [next(cell.stripped_strings, "") for cell in row.find_all("td")]


def test_the_page_needs_nothing_else(page):
    text, soup = page
    assert len(text.encode()) < 3e6
    assert not soup.find_all(["iframe", "object", "embed"])
    addresses = [
        tag.get(name) for tag in soup.find_all() for name in ("src", "href", "srcset", "action") if tag.get(name)
    ]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "url(" not in text and "@import" not in text
    assert not [name for tag in soup.find_all() for name in tag.attrs if name.startswith("on")]
    policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert "default-src 'none'" in policy
    # The one script that may run is the one that is there.
    (script,) = soup.find_all("script")
    digest = base64.b64encode(hashlib.sha256(script.string.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and not script.attrs


def test_references_resolve_and_images_are_described(page):
    _, soup = page
    ids = [tag["id"] for tag in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    links = [tag["href"][1:] for tag in soup.find_all(["use", "a"], href=True)]
    assert len(links) > 50
    assert set(links) <= set(ids)
    assert {label["for"] for label in soup.find_all("label")} <= set(ids)
    assert all(image.get("alt") for image in soup.find_all("img"))
    pictures = soup.find_all("svg", role="img")
    assert pictures
    assert all(picture.get("aria-label") or picture.title for picture in pictures)
    assert soup.html["lang"] == "en"


def test_results_table_shows_the_metrics(page, tree):
    root, _ = tree
    _, soup = page
    for system, folder in (("region", "evaluation/region"), ("region_grid", "ensembles/region_grid")):
        metrics = json.loads((root / folder / "scenes_test" / "metrics.json").read_text())
        shown = numbers(row_of(soup, "scenes_test", system))
        assert shown[0] == f"{metrics['i2t']['r1']:.1f}"
        assert shown[4] == f"{metrics['i2t']['meanr']:.1f}" and shown[9] == f"{metrics['t2i']['meanr']:.1f}"
        assert shown[7] == f"{metrics['t2i']['r10']:.1f}"
        assert shown[-1] == f"{metrics['rsum']:.1f}"
        cells, bounds = row_of(soup, "scenes_test", system).find_all("td"), metrics["intervals"]
        assert cells[-1].small.text == "{:.1f} – {:.1f}".format(*bounds["rsum"])
        assert cells[7]["title"] == "95 % interval: {:.1f} – {:.1f}".format(*bounds["t2i"]["r10"])
    kinds = {row["class"][0] for row in soup.find_all("tr", class_=True)}
    assert {"run", "ensemble", "folds", "control", "chance"} <= kinds
    control = soup.find("tr", class_="control")
    assert [control.th.contents[0].strip(), control.find(class_="tag").text] == ["region", "control: images shuffled"]
    assert "trained on scenes" in row_of(soup, "scenes_dusk", "region").text
    assert "trained on" not in row_of(soup, "scenes_test", "region").text


def test_further_protocols_have_tables_of_their_own(small_config, build_results, tmp_path):
    config = build_results(tmp_path, small_config)
    path = tmp_path / "evaluation" / "region" / "scenes_test" / "metrics.json"
    metrics = json.loads(path.read_text())
    eccv = {
        d: {"queries": 9, "map_at_r": 30.04 + k, "r_precision": 40.0 + k, "r1": 50.0 + k}
        for k, d in enumerate(("i2t", "t2i"))
    }
    within = {
        d: {"queries": 9, "r1": 61.0 + k, "r5": 71.0, "r10": 81.0, "medr": 1, "meanr": 2}
        for k, d in enumerate(("i2i", "t2t"))
    }
    cxc = within | {d: metrics[d] for d in ("i2t", "t2i")} | {"rsum": metrics["rsum"]}
    spans = {"r1": [58.0, 64.0], "r5": [68.0, 74.0], "r10": [78.0, 84.0]}
    cxc["intervals"] = metrics["intervals"] | {"i2i": spans, "t2t": spans}
    path.write_text(json.dumps(metrics | {"protocols": {"cxc": cxc, "eccv": eccv}}))
    _, soup = make_page(tmp_path, config)
    tables = {
        label: soup.find("div", attrs={"aria-label": f"{label} on scenes_test"})
        for label in ("Crisscrossed Captions, within images and within texts", "ECCV Caption")
    }
    rows = [[cell.text for cell in table.tbody.find_all("td")] for table in tables.values()]
    assert rows == [["61.0", "71.0", "81.0", "62.0", "71.0", "81.0"], ["30.0", "40.0", "50.0", "31.0", "41.0", "51.0"]]
    headings = [[cell.text for cell in table.thead.find_all("th")] for table in tables.values()]
    assert headings[0] == ["System", "Image → image", "Text → text"] + ["R@1", "R@5", "R@10"] * 2
    assert headings[1] == ["System", "Image → text", "Text → image"] + ["mAP@R", "R-P", "R@1"] * 2
    cells = tables["Crisscrossed Captions, within images and within texts"].tbody.find_all("td")
    assert cells[0]["title"] == "95 % interval: 58.0 – 64.0"
    assert "title" not in tables["ECCV Caption"].tbody.find("td").attrs


def test_the_best_value_is_marked_once(page):
    _, soup = page
    systems = [row_of(soup, "scenes_test", name) for name in ("region", "grid", "region_grid")]
    values = [float(numbers(row)[-1]) for row in systems]
    marked = ["best" in row.find_all("td")[-1]["class"] for row in systems]
    assert marked == [value == max(values) for value in values]


def test_gallery_agrees_with_the_embeddings(page, tree):
    root, _ = tree
    _, soup = page
    embeddings = read_embeddings(root / "evaluation" / "grid" / "scenes_test" / "embeddings.zarr")
    scores = embeddings.captions @ embeddings.images.T
    panel = soup.find(class_="panel t0s1")
    assert "found by grid" in panel.h4.text
    articles = panel.find_all("article", class_="to-images")
    assert len(articles) == 3
    texts = caption_texts(root)
    for article in articles:
        shown = article.blockquote.text
        row = next(
            row
            for row in range(len(scores))
            if texts[str(embeddings.caption_ids[row])] == shown and top_scores(scores[row]) == figures(article)
        )
        own = embeddings.caption_image[row]
        rank = 1 + int((np.delete(scores[row], own) >= scores[row, own]).sum())
        assert re.search(rf"\b{rank}$", article.find(class_="verdict").text.strip())
        right = [place for place, hit in enumerate(article.find_all("li", class_="hit"), 1) if "right" in hit["class"]]
        assert right == [min(rank, 6)]
        marks = [mark.text for mark in article.find_all(class_="mark")]
        assert marks[right[0] - 1] == "✓ right"
        assert marks.count("✗ wrong") == len(marks) - 1
    for article in panel.find_all("article", class_="to-captions"):
        row = [str(image_id) for image_id in embeddings.image_ids].index(article.header.span.text.split()[-1])
        ranking = np.argsort(-scores[:, row])[:5]
        found = [entry.find(class_="text").text for entry in article.find_all("li") if entry.find(class_="text")]
        assert found[:5] == [texts[str(embeddings.caption_ids[caption])] for caption in ranking]


def caption_texts(root):
    from catalog.index import read_index

    captions = read_index(root / "scenes" / "index").captions
    return dict(zip(captions["caption_id"].to_pylist(), captions["text"].to_pylist(), strict=True))


def top_scores(scores):
    return [f"{score:.3f}" for score in np.sort(scores)[::-1][:5]]


def figures(article):
    return [tag.text for tag in article.find_all("span", title="similarity")][:5]


def test_boxes_and_maps_are_drawn_over_the_image(page):
    _, soup = page
    views = soup.find("article", class_="to-captions").find(class_="views").find_all("svg")
    uses = [[use["href"][1:] for use in view.find_all("use")] for view in views]
    key = uses[0][0]
    assert uses == [[key], [key, f"{key}b"], [key, f"{key}m"]]
    assert len(soup.find(id=f"{key}b").find_all("rect", class_="box")) == 10
    layer = soup.find(id=f"{key}m")
    image = soup.find(id=key)
    assert layer["href"].startswith("data:image/png") and image["href"].startswith("data:image/jpeg")
    assert (layer["width"], layer["height"]) == (image["width"], image["height"])
    legend = soup.find("article", class_="to-captions").find("ul", class_="legend")
    assert "sky" in legend.text


def test_curves_stages_and_data(page):
    _, soup = page
    charts = soup.find(id="training").find_all("svg")
    assert len(charts) == 3  # loss, rSum, learning rate
    assert len(charts[0].find_all("polyline")) == 2
    stages = soup.find(id="features").tbody.find_all("tr")
    assert [(row.th.text, row.td.text) for row in stages] == [
        (dataset, feature) for dataset in ("scenes", "scenes_dusk") for feature in ("regions", "grids", "panoptic")
    ]
    assert "80" in numbers(stages[0])
    data = soup.find(id="data")
    assert [cell.text for cell in data.find_all("tr")[3].find_all(["th", "td"])] == ["test", "40", "120"]
    assert len(data.find("ul", class_="sheet").find_all("img")) == 12
    assert "scenes_regions" in soup.find(id="configuration").pre.text
    assert "python" in soup.find(id="configuration").text


def test_captions_cannot_inject_anything(tmp_path, small_config, build_results):
    attack = '"><script>alert(1)</script><img src=x onerror=alert(2)> \' onload="alert(3)" {{ 7*7 }} </style></svg>&lt;'
    text, soup = make_page(tmp_path, build_results(tmp_path, small_config, poison=attack))
    assert len(soup.find_all("script")) == 1
    assert not [name for tag in soup.find_all() for name in tag.attrs if name.startswith("on")]
    assert text.count("<script") == 1 and "<img src=x" not in text
    shown = [tag.text for tag in soup.find(id="gallery").find_all(["blockquote", "span"])]
    assert attack in shown
    assert any(image["alt"] == f"Example image: {attack}" for image in soup.find_all("img"))
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in soup.find_all("img"))


def test_settings_and_names_are_escaped(tmp_path, small_config, build_results):
    config = build_results(tmp_path, small_config)
    config["datasets"]["scenes"]["source"] = "<b id=x>bold</b>"
    config["testsets"]["scenes_test"]["split"] = '"><i id=y>'
    _, soup = make_page(tmp_path, config)
    assert not soup.find(id="x") and not soup.find(id="y")
    assert "<b id=x>bold</b>" in soup.text


def test_bad_images_are_listed(tmp_path, small_config, build_results):
    config = build_results(tmp_path, small_config, bad_image=True)
    _, soup = make_page(tmp_path, config)
    failed = soup.find(id="data").find("details")
    assert failed.summary.text == "1 image could not be read"
    assert "scenes-0015" in failed.text and "cannot identify image file" in failed.text
    assert [tag.text for tag in failed.find_all(class_="tag")] == ["no regions, grids, panoptic", "dropped"]
    told = soup.find(id="features").tbody.find_all("a")
    assert {(link.text, link["href"]) for link in told} == {("✗ 1", f"#{failed['id']}")}


def test_receipts_of_other_settings_are_not_counted(tmp_path, small_config, build_results):
    config = build_results(tmp_path, small_config)
    stale = json.loads((tmp_path / "scenes" / "features" / "grids.receipts" / "1.json").read_text())
    path = tmp_path / "scenes" / "features" / "grids.receipts" / "2.json"
    path.write_text(json.dumps(stale | {"fingerprint": "old", "images": 1000}))
    stage = Artefacts(tmp_path, config).stage("scenes", "grids")
    assert (stage.images, stage.shards) == (16, 2)


def test_an_image_deleted_since_is_no_error(tmp_path, small_config, build_results):
    config = build_results(tmp_path, small_config)
    shutil.rmtree(tmp_path / "scenes" / "scenes")
    _, soup = make_page(tmp_path, config)
    assert "unreadable" in soup.find(id="gallery").text
    assert not soup.find_all("img")


def test_missing_parts_become_notes(tmp_path, small_config, build_results):
    config = build_results(tmp_path, small_config)
    shutil.rmtree(tmp_path / "scenes" / "features" / "panoptic.zarr")
    (tmp_path / "runs" / "region" / "history.csv").unlink()
    config["runs"]["later"] = {"dataset": "scenes", "visual": "regions"}
    config["datasets"]["other"] = {"source": "folder"}
    _, soup = make_page(tmp_path, config)
    notes = soup.find(class_="notes").text
    for part in (
        "no panoptic features",
        "region has no training history",
        "later has no metrics",
        "other has no index",
    ):
        assert part in notes
    assert "panoptic map" not in soup.find("article", class_="to-captions").text
    assert not soup.find(id="training")
    assert "not sealed" in soup.find(id="features").text


def test_without_captions_or_test_sets(tmp_path, small_config, build_results):
    small_config |= {"runs": {}, "testsets": {}}
    config = build_results(tmp_path, small_config)
    _, soup = make_page(tmp_path, config)
    assert not soup.find(id="gallery")
    assert "names no test sets" in soup.find(id="results").text
    assert soup.find(id="features")


def test_an_empty_results_folder(tmp_path, small_config):
    _, soup = make_page(tmp_path, small_config)
    assert "Not scored yet" in soup.text


def test_equal_input_gives_equal_bytes_and_the_seed_matters(page, tree):
    text, _ = page
    assert make_page(*tree)[0] == text
    assert make_page(*tree, seed=1)[0] != text


def test_broken_artefacts_are_user_errors(tmp_path, small_config, build_results):
    config = build_results(tmp_path, small_config)
    metrics = tmp_path / "evaluation" / "region" / "scenes_test" / "metrics.json"
    metrics.write_text("{}")
    with pytest.raises(UserError, match="is not a metrics file"):
        make_page(tmp_path, config)
    metrics.write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        make_page(tmp_path, config)


def test_command_line_without_torch(tmp_path, small_config, build_results):
    config = build_results(tmp_path / "results", small_config)
    output = tmp_path / "page" / "index.html"
    code = (
        "import sys\nfrom reporting.run import main\nmain()\n"
        "loaded = {'torch', 'matplotlib', 'transformers', 'model', 'extractors'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    flags = ["--results", str(tmp_path / "results"), "--config", json.dumps(config), "--output", str(output)]
    done = subprocess.run([sys.executable, "-c", code, *flags], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"report: {output}" in done.stdout
    assert BeautifulSoup(output.read_text(), "html.parser").find(id="gallery")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--results", "missing", "--config", "{}"], "missing is not a folder"),
        (["--results", ".", "--config", "{"], "cannot be parsed"),
        (["--results", ".", "--config", "{}", "--queries", "99"], "--queries must be 0 to 24"),
    ],
)
def test_wrong_flags(monkeypatch, tmp_path, flags, message):
    from reporting.run import main

    monkeypatch.setattr(sys, "argv", ["prog", "--output", str(tmp_path / "x.html"), *flags])
    with pytest.raises(UserError, match=message):
        main()


def test_small_texts():
    assert [duration(seconds) for seconds in (8.26, 250, 7500)] == ["8.3 s", "4 min 10 s", "2 h 5 min"]
    assert shorten("a\n b   c", 10) == "a b c"
    assert shorten("x" * 20, 10) == "x" * 9 + "…"
