"""A search is built, brought up to date, and asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from core.console import UserError
from model.data import Features
from model.embed import embed_captions, embed_images
from model.runs import load_run
from search.__main__ import main
from search.ask import Search, open_search
from search.serve import make_app
from search.vectors import read_vectors
from stores import open_store
from stores.places import place_of
from stores.schema import SCHEMA_VERSION
from tests.unit.model.helpers import prepare, write_store
from tests.unit.search.conftest import HOSTILE, make_searchable, write_stores


def expected_images(made, run: str) -> np.ndarray:
    network, _, _ = load_run(made.runs[run]["folder"])
    features = Features(open_store(made.runs[run]["visual"]), open_store(made.runs[run]["panoptic"]))
    return embed_images(network, features, np.arange(len(features.stores["visual"])))


def test_all_images_are_found_whatever_their_split(built):
    search = Search(built.output)
    assert [record["image_id"] for record in search.images] == built.world.ids
    assert search.dataset == "photos" and search.runs == ["first", "second"]
    for run in search.runs:
        found = read_vectors(built.output.parent / f"{run}.images.safetensors").embeddings
        np.testing.assert_allclose(found, expected_images(built, run), atol=1e-5)


def test_a_sentence_finds_by_the_mean_of_the_runs_or_by_one(built):
    search = Search(built.output)
    scores = {}
    for run in search.runs:
        network, _, tokenizer = load_run(built.runs[run]["folder"])
        scores[run] = expected_images(built, run) @ embed_captions(network, tokenizer, ["a red dog"])[0]
    for run, own in [(None, sum(scores.values()) / 2), *scores.items()]:
        hits = search.find("a red dog", run=run, top=4)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(own)[::-1][:4], atol=1e-5)
        np.testing.assert_allclose([own[hit.row] for hit in hits], [hit.score for hit in hits], atol=1e-5)


def test_an_image_finds_others_and_sentences(built):
    search = Search(built.output)
    similar = search.similar(3, top=5)
    assert 3 not in [hit.row for hit in similar] and len(similar) == 5
    images = [expected_images(built, run) for run in search.runs]
    np.testing.assert_allclose(
        [hit.score for hit in similar], [sum(e[3] @ e[hit.row] for e in images) / 2 for hit in similar], atol=1e-5
    )
    assert len(search.captions) == 6 * len(search.images)
    for top in (7, 500):  # what several captions say is said once, by the first of them
        sentences = search.sentences(3, top=top)
        texts = [search.captions[hit.row]["text"] for hit in sentences]
        assert len(set(texts)) == len(texts) == min(top, len({caption["text"] for caption in search.captions}))
        assert [hit.score for hit in sentences] == sorted((hit.score for hit in sentences), reverse=True)
    assert search.own_captions(0)[0] == HOSTILE == search.alt(0)


def test_explanations_add_up_to_what_was_found(built):
    search = Search(built.output)
    hits = search.find("a blue bus", run="first", top=3)
    for hit, explanation in zip(hits, search.explain("a blue bus", [h.row for h in hits], run="first"), strict=True):
        assert explanation.score == pytest.approx(hit.score, abs=1e-5)
        assert np.isfinite(explanation.places[0]).all(), "regions have their boxes"


def test_only_new_photos_are_embedded_and_shrunk(searchable, capsys, monkeypatch):
    searchable.build()
    assert "first: embedded 36 of 36 images" in capsys.readouterr().out
    folder = searchable.output.parent
    assert len(list(folder.glob("thumbnails/*/*.jpg"))) == 36
    before = read_vectors(folder / "first.images.safetensors").embeddings.copy()
    # One photo changes, in index and features; the rest stays what it was, to the bit.
    world, root = searchable.world, searchable.output.parents[3]
    world.hashes[5] = f"{5:064x}"
    import pyarrow as pa

    from catalog.index import read_captions, read_images, write_index

    table = read_images(world.images)[0]
    place = table.column_names.index("content_hash")
    table = table.set_column(place, table.schema.field(place), pa.array(world.hashes)).replace_schema_metadata(None)
    world.digest = write_index(world.images, world.captions, table, read_captions(world.captions))
    for name in ("visual", "panoptic"):
        shutil.rmtree(root / f"{name}.zarr")
    world.visual.arrays["features"][5] += 1
    write_stores(world, root)
    searchable.build()
    out = capsys.readouterr().out
    assert "first: embedded 1 of 36 images and 0 captions anew" in out and "thumbnails: 1 made" in out
    after = read_vectors(folder / "first.images.safetensors").embeddings
    others = np.arange(36) != 5
    assert np.array_equal(after[others], before[others]) and not np.array_equal(after[5], before[5])
    np.testing.assert_allclose(after, expected_images(searchable, "first"), atol=1e-5)
    assert len(list(folder.glob("thumbnails/*/*.jpg"))) == 36, "the small picture of what is gone is gone"


def test_a_search_in_a_bucket_is_that_of_a_folder(searchable, make_bucket, tmp_path, monkeypatch, capsys):
    """Built there, asked from there, brought up to date there; photos and an imported run stay where they are."""
    monkeypatch.chdir(tmp_path)
    searchable.build()
    here = Search(searchable.output)
    results = f"{make_bucket()}/lab/mine"
    place = place_of(results)
    for path in ("first.zarr", "runs/first"):  # as in results: what moves with them
        source = tmp_path / path.replace("first.zarr", "visual.zarr")
        for file in source.rglob("*"):
            if file.is_file():
                place.write(f"{path}/{file.relative_to(source).as_posix()}", file.read_bytes())
    searchable.runs["first"] |= {"folder": f"{results}/runs/first", "visual": f"{results}/first.zarr"}
    marker = tmp_path / "marker" / "search.json"
    options = {"place": f"{results}/search/mine", "output": marker}
    searchable.build(**options)
    assert place.read("search/mine/search.json") == marker.read_bytes()
    runs = json.loads(marker.read_bytes())["runs"]
    assert (
        runs["first"]["folder"] == "../../runs/first"
        and runs["second"]["folder"] == searchable.runs["second"]["folder"]
    )
    shutil.rmtree(tmp_path / "results" / results.removeprefix("s3://"))  # asked from another machine

    there = open_search(results, "photos")
    assert there.images == here.images and there.thumbnail(3) == here.thumbnail(3)
    for run in (None, "first", "second"):
        assert there.find("a red dog", run=run) == here.find("a red dog", run=run)
    assert there.explain("a dog", [2], run="first")[0].score == here.explain("a dog", [2], run="first")[0].score
    asked = ["ask", "a red dog", "--results", results, "--dataset"]
    capsys.readouterr()
    main([*asked, "mine", "--top", "1"])
    assert capsys.readouterr().out.split()[2].startswith(str(tmp_path / "photos"))
    with pytest.raises(UserError, match="no search 'mime' below 's3://.*did you mean 'mine'"):
        main([*asked, "mime"])

    searchable.build(**options)
    assert "first: embedded 0 of 36 images and 0 captions anew" in capsys.readouterr().out
    # A copy of an older state is told from what is there now; a file that is not what was built, too.
    copy = tmp_path / "results" / f"{results}/search/mine/first.images.safetensors".removeprefix("s3://")
    copy.write_bytes(b"older")
    assert open_search(results, "mine").find("a dog") == here.find("a dog")
    place.write("search/mine/first.images.safetensors", b"other")
    copy.unlink()
    with pytest.raises(UserError, match="first.images.safetensors is missing or has changed since; make it again"):
        open_search(results, "mine")


def test_imported_features_are_compared_by_their_values(tmp_path, capsys):
    made = make_searchable(tmp_path, runs=("only",))
    for name in ("visual", "panoptic"):
        shutil.rmtree(tmp_path / f"{name}.zarr")
    write_stores(made.world, tmp_path, hashes=False)
    made.build()
    capsys.readouterr()
    for name in ("visual", "panoptic"):
        shutil.rmtree(tmp_path / f"{name}.zarr")
    made.world.panoptic.arrays["seg_features"][[2, 9]] += 1
    write_stores(made.world, tmp_path, hashes=False)
    made.build()
    assert "only: embedded 2 of 36 images" in capsys.readouterr().out


def test_a_run_that_is_published_again_is_not_embedded_again(searchable, capsys):
    """Photos were added beside its splits: it has been trained already, and says of which index that was."""
    path = Path(searchable.runs["first"]["folder"], "config.json")
    stores = Features(*(open_store(searchable.runs["first"][kind]) for kind in ("visual", "panoptic"))).describe()
    for digest, said in (("of before", "36 of 36"), ("of now", "0 of 36")):
        features = {kind: one | {"index_digest": digest} for kind, one in stores.items()}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"features": features}))
        capsys.readouterr()
        searchable.build()
        assert f"first: embedded {said} images" in capsys.readouterr().out


def test_a_run_trained_again_is_embedded_again_and_told_until_then(searchable, capsys):
    searchable.build(without_captions=True)
    search = Search(searchable.output)
    assert search.captions == [] and search.sentences(0) == [] and search.alt(1) == f"image {searchable.world.ids[1]}"
    from model.runs import save_run

    network, pairs = prepare(searchable.world, seed=9)
    save_run(searchable.runs["second"]["folder"], network, pairs.tokenizer, config={"run": "second"})
    with pytest.raises(UserError, match="run second has been trained again"):
        search.find("a dog")
    assert search.find("a dog", run="first")
    capsys.readouterr()
    searchable.build()
    out = capsys.readouterr().out
    assert "first: embedded 0 of 36" in out and "second: embedded 36 of 36" in out


def test_a_file_that_cannot_be_read_has_no_thumbnail(searchable):
    broken = sorted((searchable.output.parents[3] / "photos").iterdir())[2]
    broken.write_bytes(b"not an image")
    searchable.build()
    search = Search(searchable.output)
    assert [row for row in range(36) if search.thumbnail(row) is None] == [2]


def test_images_are_known_by_file_copy_and_id(built, tmp_path, monkeypatch):
    search = Search(built.output)
    path = Path(search.images[4]["path"])
    copy = tmp_path / "copy of it.png"
    shutil.copy(path, copy)
    monkeypatch.chdir(path.parent)
    assert {search.row_of(one) for one in (str(path), path.name, str(copy), search.images[4]["image_id"])} == {4}
    (tmp_path / "other.png").write_bytes(b"other")
    for one in (str(tmp_path / "other.png"), "nowhere.jpg"):
        with pytest.raises(UserError, match="is not indexed; .*run the target `search`"):
            search.row_of(one)


def test_the_command_prints_rank_score_and_file(built, capsys):
    given = ["--dataset", "mine", "--results", str(built.results)]
    main(["ask", "a green cat", *given, "--top", "2"])
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["1", "2"] and all(Path(line[2]).is_file() for line in lines)
    # By the name of the dataset, too.
    main(["ask", "--image", built.world.ids[7], "--dataset", "photos", *given[2:], "--json", "--run", "second"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["image"] == built.world.ids[7] and answer["runs"] == ["second"]
    assert len(answer["images"]) == len(answer["sentences"]) == 5
    assert answer["images"][0].keys() == {"rank", "score", "image_id", "path"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a dog", "--dataset", "mime"], "no search 'mime' below .*did you mean 'mine'"),
        (["a dog", "--dataset", "mine", "--run", "frist"], "--run: 'frist' .*did you mean 'first'"),
        (["a dog", "--dataset", "mine", "--top", "0"], "--top must be at least 1"),
        (["--dataset", "mine"], "give a sentence, or --image FILE"),
        ([" ", "--dataset", "mine"], "the sentence is empty"),
        (["\u200b\t", "--dataset", "mine"], "the sentence is empty"),
        (["a \udcff dog", "--dataset", "mine"], "is not UTF-8"),
        (["--image", "nowhere.jpg", "--dataset", "mine"], "--image: 'nowhere.jpg' is not indexed"),
    ],
)
def test_mistakes_name_the_flag_and_the_fix(built, arguments, message):
    with pytest.raises(UserError, match=message):
        main(["ask", *arguments, "--results", str(built.results)])


def test_what_runs_make_nothing_of_is_noted(built, capsys):
    given = ["--dataset", "mine", "--results", str(built.results), "--json"]
    main(["ask", "a green cat", *given])
    assert json.loads(capsys.readouterr().out)["notes"] == []
    main(["ask", "a ☃ cat ☢" + "☢" * 50 + " a cat" * 400, *given, "--run", "first"])
    known, *cut = json.loads(capsys.readouterr().out)["notes"]
    assert known == f"first: does not know ☃, {'☢' * 30}..." and len(cut) == 2
    main(["ask", "a ☃ cat", *given[:-1]])
    assert capsys.readouterr().err == "note: first, second: does not know ☃\n"


@pytest.mark.parametrize("name", ["images.parquet", "captions.parquet", "first.images.safetensors", "search.json"])
def test_files_that_are_damaged_or_gone_are_told(searchable, name):
    searchable.build()
    path = searchable.output.parent / name
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"\xff" * 40 + content[40:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{name} .*make it again: snakemake .*--forcerun build_search"):
            Search(searchable.output)
    path.unlink()
    with pytest.raises(UserError, match=f"{name} .*make it again: snakemake .*--forcerun build_search"):
        Search(searchable.output)


def test_features_that_were_made_anew_explain_nothing(searchable, tmp_path):
    searchable.build()
    search = Search(searchable.output)
    assert search.explain("a dog", [3], run="first")
    for change in ({"index_digest": "of other rows"}, {"weights_digest": "of another detector"}):
        shutil.rmtree(tmp_path / "visual.zarr")
        store = searchable.world.visual
        write_store(
            tmp_path / "visual.zarr",
            type(store)(store.arrays, store.image_ids, store.attributes | change),
            SCHEMA_VERSION,
        )
        with pytest.raises(UserError, match="made anew since its images were embedded; run the target `search`"):
            Search(searchable.output).explain("a dog", [3], run="first")
    client = TestClient(make_app(Search(searchable.output)), base_url="http://localhost")
    assert client.get("/?q=a+dog").status_code == 200
    answer = client.get("/?q=a+dog&why=1")
    assert answer.status_code == 409 and "made anew" in answer.text


def test_where_nothing_was_built_yet(tmp_path):
    with pytest.raises(UserError, match="there is none there yet.*snakemake --cores N search"):
        open_search(tmp_path, "mine")


def test_files_that_do_not_fit_together_are_told(searchable):
    searchable.build()
    folder = searchable.output.parent
    shutil.copy(folder / "first.captions.safetensors", folder / "first.images.safetensors")
    with pytest.raises(UserError, match="run first has 216 images for 36"):
        Search(searchable.output)
    about = json.loads(searchable.output.read_text())
    searchable.output.write_text(json.dumps(about | {"search_version": 99}))
    with pytest.raises(UserError, match="version 99"):
        Search(searchable.output)
