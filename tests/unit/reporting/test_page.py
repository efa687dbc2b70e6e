"""What the page says beside its numbers: images left out, reused rows, comparisons, long captions, detectors of drawings."""

from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pytest
import zarr
from bs4 import BeautifulSoup

from catalog.index import read_index, write_index
from core.embedded import knows_drawings_only
from core.files import digest_file
from evaluation.compare import compare
from evaluation.ranks import read_ranks
from reporting.artefacts import Artefacts
from reporting.left_out import unreadable_images, why_fewer
from reporting.report import build, render


def make_page(root, config, **options):
    return BeautifulSoup(render(build(Artefacts(root, config), **{"queries": 3, "seed": 0} | options)), "html.parser")


def size_of(soup):
    return soup.find(id="results").find(class_="card").find(class_="hint").text


def change_index(root, dataset="scenes", *, images=lambda table: table, captions=lambda table: table):
    index = read_index(root / dataset / "index")
    parts = images(index.images), captions(index.captions)
    folder = root / dataset / "index"
    tables = [part.replace_schema_metadata(None) for part in parts]
    write_index(folder / "images.parquet", folder / "captions.parquet", *tables)


def test_fewer_images_than_the_split_has_are_explained(small_config, build_results, tmp_path):
    config = build_results(tmp_path, small_config, bad_image=True)
    assert size_of(make_page(tmp_path, config)) == (
        "11 images, 33 captions (of the 12 of the split, 1 image could not be read)."
    )
    # Two more images without a caption: as if the scores had been made without them.
    silent = {"scenes-0005", "scenes-0006"}
    change_index(
        tmp_path,
        captions=lambda table: table.filter(pa.array([image not in silent for image in table["image_id"].to_pylist()])),
    )
    artefacts, testset = Artefacts(tmp_path, config), config["testsets"]["scenes_test"]
    assert why_fewer(artefacts, testset, "regions", 9) == (
        "of the 12 of the split, 1 image could not be read and 2 images have no caption"
    )
    assert why_fewer(artefacts, testset, "regions", 12) == ""
    assert "the split has 12 now" in why_fewer(artefacts, testset, "regions", 11)


def test_an_image_that_one_feature_lacks_is_left_out_where_that_is_read(small_config, build_results, tmp_path):
    config = build_results(tmp_path, small_config, bad_image=True)
    zarr.open_group(str(tmp_path / "scenes/features/grids.zarr")).attrs["dropped"] = []
    for path in (tmp_path / "scenes/features/grids.receipts").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"failures": []}))
    zarr.open_group(str(tmp_path / "scenes/features/panoptic.zarr")).attrs["dropped"] = []
    artefacts, testset = Artefacts(tmp_path, config), config["testsets"]["scenes_test"]
    (one,) = unreadable_images(artefacts, "scenes")
    assert one.features == ("regions", "panoptic") and one.dropped
    assert "1 image could not be read" in why_fewer(artefacts, testset, "regions", 11)
    assert "changed since" in why_fewer(artefacts, testset, "grids", 10)
    rows = make_page(tmp_path, config).find(id="features").tbody.find_all("tr")
    assert [row.find_all("td")[-1].text for row in rows] == ["✗ 1", "✓ none", "✗ 1"]


def receipts(root, feature, **content):
    for path in sorted((root / "scenes/features" / f"{feature}.receipts").glob("*.json")):
        path.write_text(json.dumps(json.loads(path.read_text()) | content))


def test_rows_that_no_network_has_seen_have_no_rate(small_config, build_results, tmp_path):
    config = build_results(tmp_path, small_config)
    receipts(tmp_path, "grids", taken_over=8, extracted=0, device="none")
    receipts(tmp_path, "panoptic", device="import")
    path = tmp_path / "scenes/features/regions.receipts/0.json"
    one = json.loads(path.read_text())
    path.write_text(json.dumps(one | {"taken_over": 5, "extracted": 3}))
    stages = {name: Artefacts(tmp_path, config).stage("scenes", name) for name in ("regions", "grids", "panoptic")}
    assert [stages[name].images_per_second for name in ("grids", "panoptic")] == [None, None]
    assert (stages["regions"].images, stages["regions"].reused, stages["regions"].extracted) == (16, 5, 11)
    seconds = [json.loads((path.parent / f"{n}.json").read_text())["seconds"] for n in (0, 1)]
    working = sum(one["total"] - one["startup"] for one in seconds)
    assert stages["regions"].images_per_second == pytest.approx(11 / working)
    soup = make_page(tmp_path, config)
    assert "11 image passes" in soup.find(class_="tiles").text
    rows = soup.find(id="features").tbody.find_all("tr")
    assert [row.find_all("td")[1].text for row in rows] == ["165 reused", "1616 reused", "16"]
    assert [row.find_all("td")[4].text for row in rows][1:] == ["–", "–"]


def test_systems_are_compared_in_pairs(tree):
    root, config = tree
    soup = make_page(root, config, queries=0)
    shown = soup.find("div", attrs={"aria-label": "Comparisons on scenes_test"}).tbody.find_all("tr")
    folders = {"region": "evaluation/region", "grid": "evaluation/grid", "region_grid": "ensembles/region_grid"}
    ranked = {name: read_ranks(root / at / "scenes_test/ranks.safetensors") for name, at in folders.items()}
    expected = compare(ranked)
    assert len(expected) == 3
    for one, row in zip(expected, shown, strict=True):
        cells = [cell.text for cell in row.find_all(["th", "td"])]
        assert cells[:2] == [one.better, one.other]
        assert cells[2:] == [f"{one.rsum:.1f}{one.low:.1f} to {one.high:.1f}", "✓ yes" if one.told_apart else "no"]


def test_without_ranks_nothing_is_compared_and_the_rest_is_there(small_config, build_results, tmp_path):
    small_config["runs"] |= {name: {"dataset": "scenes", "visual": "grids"} for name in ("grid", "third")}
    config = build_results(tmp_path, small_config)
    (tmp_path / "evaluation/third/scenes_test/ranks.safetensors").unlink()
    compared = make_page(tmp_path, config).find(class_="compared")
    assert len(compared.tbody.find_all("tr")) == 1 and compared.find_all("p")[-1].text.endswith("ranks: third.")
    (tmp_path / "evaluation/grid/scenes_test/ranks.safetensors").unlink()
    soup = make_page(tmp_path, config)
    assert soup.find(class_="compared") is None and len(soup.find(class_="results").tbody.find_all("tr")) > 3


def test_a_tables_latex_is_in_the_page(tree):
    root, config = tree
    card = make_page(root, config, queries=0).find(id="results").find(class_="card")
    text = card.find(class_="latex").pre.text
    assert text.count(r"\begin{tabular}") == 2 and r"region\_grid (ensemble) &" in text and "scenes\\_dusk" not in text
    assert card.find("button", class_="copy").has_attr("hidden"), "without scripts it could not be pressed"


def test_long_captions_are_folded_and_whole(small_config, build_results, tmp_path):
    long = "a dog " * 250
    soup = make_page(tmp_path, build_results(tmp_path, small_config, poison=long), queries=6)
    folded = soup.select("#gallery .long, #failures .long")
    assert folded and all(one.summary.text == long.strip() for one in folded)
    assert soup.select("#gallery blockquote .long") and soup.select("#gallery .captions .long")
    short = [one.text for one in soup.select("#gallery .text") if not one.find("details")]
    assert short and all(len(text) <= 240 for text in short)


def test_detectors_of_drawings_are_told_on_other_pictures(small_config, build_results, tmp_path, repository):
    config = build_results(tmp_path, small_config)
    weights = digest_file(repository / "weights" / "scenes_regions.safetensors")
    assert knows_drawings_only(weights) and not knows_drawings_only("d" * 64) and not knows_drawings_only(None)
    zarr.open_group(str(tmp_path / "scenes/features/regions.zarr")).attrs["weights_digest"] = weights
    drawn = make_page(tmp_path, config)
    assert not drawn.find(role="note") and "not meaningful" not in drawn.text
    config["datasets"]["scenes"]["source"] = "folder"
    photographs = make_page(tmp_path, config)
    assert "The regions of scenes were made by the embedded detectors" in photographs.find(role="note").text
    assert all("not meaningful here" in line.text for line in photographs.select(".regions"))
    assert not [line for line in photographs.select(".legend") if "not meaningful" in line.text], (
        "panoptic is another's"
    )


def test_a_failed_extraction_that_is_not_sealed_is_counted_once(small_config, build_results, tmp_path):
    config = build_results(tmp_path, small_config, bad_image=True)
    config["features"]["on_bad_image"] = "fail"
    for feature in ("regions", "grids", "panoptic"):
        shutil.rmtree(tmp_path / "scenes/features" / f"{feature}.zarr")
    (one,) = unreadable_images(Artefacts(tmp_path, config), "scenes")
    assert one.image_id == "scenes-0015" and not one.dropped and one.error == "cannot identify image file"
    data = make_page(tmp_path, config).find(id="data")
    assert data.find("details").summary.text == "1 image could not be read"
    assert "finished only when all its images can be read" in data.text
