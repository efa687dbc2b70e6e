from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pytest
import zarr

from catalog.index import CAPTIONS_SCHEMA, IMAGES_SCHEMA, write_index
from core.console import UserError
from evaluation import encode as module
from evaluation.embeddings import read_embeddings
from evaluation.encode import check_same_extractor, encode

torch = pytest.importorskip("torch")

WIDTH, TOKENS, EMBED = 10, 6, 16
EXTRACTORS = {
    "visual": {"architecture": "scenes_regions", "num_regions": TOKENS, "batch_size": 8, "weights": "a/w.safetensors"},
    "panoptic": {"architecture": "scenes_panoptic", "batch_size": 8},
}


def write_store(path, digest, ids, arrays, feature, kind, dropped=()):
    group = zarr.create_group(str(path))
    for name, values in arrays.items():
        group.create_array(name, data=values)
    group.create_array("image_ids", shape=(len(ids),), dtype=str)[:] = np.array(ids, dtype=np.dtypes.StringDType())
    group.attrs.update(
        {
            "schema_version": 1,
            "feature": feature,
            "extractor": EXTRACTORS[kind],
            "weights_digest": feature[0] * 64,
            "index_digest": digest,
            "dropped": list(dropped),
        }
    )


@pytest.fixture
def world(tmp_path):
    """A tiny index, both stores and a run; paths as `encode` takes them."""
    from model.runs import save_run
    from model.small_encoder import SmallConfig, SmallEncoder
    from model.three_shnet import ThreeSHNet
    from model.tokenizer import CaptionTokenizer, train_vocabulary
    from tests.unit.model.helpers import image_encoder, text_encoder

    generator = np.random.default_rng(0)
    ids = [f"im{row}" for row in range(9)]
    splits = ["train", "test", "train", "test", "test", "test", "test", "test", "train"]
    texts = {
        image_id: [f"{image_id} caption {'long ' * n}{n}" for n in range(1 + row)] for row, image_id in enumerate(ids)
    }
    texts["im4"] = []
    images = pa.Table.from_pylist(
        [
            {"image_id": i, "path": i, "width": 4, "height": 3, "split": split, "content_hash": i, "error": None}
            for i, split in zip(ids, splits, strict=True)
        ],
        schema=IMAGES_SCHEMA,
    )
    captions = pa.Table.from_pylist(
        [{"caption_id": f"{i}#{n}", "image_id": i, "text": text} for i in ids for n, text in enumerate(texts[i])],
        schema=CAPTIONS_SCHEMA,
    )
    digest = write_index(tmp_path / "images.parquet", tmp_path / "captions.parquet", images, captions)
    counts = np.array([6, 1, 3, 6, 2, 5, 4, 6, 6], np.int16)
    features = generator.normal(size=(9, TOKENS, WIDTH)).astype(np.float16)
    features[np.arange(TOKENS) >= counts[:, None]] = 0
    visual = {"features": features, "counts": counts}
    panoptic = {
        "seg_maps": generator.choice(np.array([0, 5, 90, 132, 255], np.uint8), (9, 64, 64)),
        "category_onehots": generator.integers(0, 2, (9, 133), dtype=np.uint8),
        "seg_features": generator.random((9, 133, 7, 7)).astype(np.float16),
    }
    write_store(tmp_path / "regions.zarr", digest, ids, visual, "regions", "visual", dropped=["im7"])
    write_store(tmp_path / "panoptic.zarr", digest, ids, panoptic, "panoptic", "panoptic")
    torch.manual_seed(0)
    tokenizer = CaptionTokenizer(train_vocabulary(captions["text"].to_pylist(), vocabulary_size=60))
    bert = SmallEncoder(SmallConfig(len(tokenizer.vocabulary), 12, 1, 2, 16, 512))
    network = ThreeSHNet(image_encoder(WIDTH, EMBED, 8), text_encoder(bert, EMBED)).eval()
    described = {
        kind: {
            "feature": feature,
            "extractor": EXTRACTORS[kind],
            "weights_digest": feature[0] * 64,
            "index_digest": "x",
        }
        for kind, feature in (("visual", "regions"), ("panoptic", "panoptic"))
    }
    save_run(tmp_path / "run", network, tokenizer, config={"run": "tiny", "features": described})
    return {
        "paths": {
            "run_dir": tmp_path / "run",
            "images": tmp_path / "images.parquet",
            "captions": tmp_path / "captions.parquet",
            "visual": tmp_path / "regions.zarr",
            "panoptic": tmp_path / "panoptic.zarr",
        },
        "network": network,
        "tokenizer": tokenizer,
        "arrays": visual | panoptic,
        "texts": texts,
        "described": described,
    }


def one_image(world, row):
    arrays = world["arrays"]
    n = int(arrays["counts"][row])
    with torch.inference_mode():
        return world["network"].encode_images(
            torch.from_numpy(arrays["features"][row : row + 1, :n].astype(np.float32)),
            torch.tensor([n]),
            torch.from_numpy(arrays["seg_maps"][row : row + 1]),
            torch.from_numpy(arrays["category_onehots"][row : row + 1].astype(np.float32)),
            torch.from_numpy(arrays["seg_features"][row : row + 1].astype(np.float32)),
        )[0]


def one_caption(world, text):
    tokens, lengths = world["tokenizer"].encode([text])
    with torch.inference_mode():
        return world["network"].encode_captions(torch.from_numpy(tokens), torch.from_numpy(lengths))[0]


def test_embeddings_equal_those_of_one_at_a_time(world):
    found = encode(**world["paths"], split="test", batch_size=3)
    # im7 was dropped from the regions store, im4 has no caption.
    assert list(found.image_ids) == ["im1", "im3", "im5", "im6"]
    expected = [f"{i}#{n}" for i in found.image_ids for n in range(min(5, len(world["texts"][i])))]
    assert list(found.caption_ids) == expected
    assert [found.image_ids[row] for row in found.caption_image] == [name.split("#")[0] for name in expected]
    assert found.attributes["skipped_images"] == 2
    for embedding, row in zip(found.images, (1, 3, 5, 6), strict=True):
        np.testing.assert_allclose(embedding, one_image(world, row), atol=1e-5)
    for embedding, name in zip(found.captions, expected, strict=True):
        image_id, n = name.split("#")
        np.testing.assert_allclose(embedding, one_caption(world, world["texts"][image_id][int(n)]), atol=1e-5)
    assert np.linalg.norm(found.images[0] - found.images[1]) > 1e-3, "the case must tell images apart"


def test_bf16_embeddings_are_near_those_of_fp32(world):
    exact = encode(**world["paths"], split="test", batch_size=3)
    found = encode(**world["paths"], split="test", batch_size=3, precision="bf16")
    assert (exact.attributes["precision"], found.attributes["precision"]) == ("fp32", "bf16")
    for name in ("images", "captions"):
        a, b = getattr(exact, name), getattr(found, name)
        assert b.dtype == np.float32 and not np.array_equal(a, b)
        np.testing.assert_allclose((a * b).sum(1), 1, atol=5e-3)


def test_each_image_and_caption_is_encoded_once(world, monkeypatch):
    from model.three_shnet import ThreeSHNet

    seen = {"encode_images": [], "encode_captions": []}
    for name in seen:
        original = getattr(ThreeSHNet, name)

        def counting(self, first, *rest, _name=name, _original=original):
            seen[_name].append(len(first))
            return _original(self, first, *rest)

        monkeypatch.setattr(ThreeSHNet, name, counting)
    found = encode(**world["paths"], split="test", batch_size=2)
    assert {name: sum(counts) for name, counts in seen.items()} == {
        "encode_images": len(found.images),
        "encode_captions": len(found.captions),
    }


def test_command_line(world, tmp_path, monkeypatch, capsys):
    names = {"run_dir": "--run"}
    flags = [str(part) for key, path in world["paths"].items() for part in (names.get(key, f"--{key}"), path)]
    outputs = [tmp_path / name for name in ("a.zarr", "b.zarr")]
    for output in outputs:
        more = ["--split", "test", "--output", str(output), "--device", "cpu", "--batch-size", "2"]
        monkeypatch.setattr(sys, "argv", ["prog", *flags, *more])
        module.main()
    assert "4 images, 16 captions; 2 images left out" in capsys.readouterr().out
    read = read_embeddings(outputs[0])
    assert read.attributes["run"] == "tiny"
    assert read.attributes["features"]["visual"]["feature"] == "regions"
    files = [
        {path.relative_to(output): path.read_bytes() for path in output.rglob("*") if path.is_file()}
        for output in outputs
    ]
    assert files[0] == files[1]


def test_a_missing_split_names_those_that_exist(world):
    with pytest.raises(UserError, match=r"'testall' has no images.*test, train"):
        encode(**world["paths"], split="testall")


def test_an_unsealed_store_is_an_error(world):
    (world["paths"]["visual"] / "zarr.json").unlink()
    with pytest.raises(UserError, match="not a finished store"):
        encode(**world["paths"], split="test")


def test_stores_of_another_index_are_an_error(world):
    group = zarr.open_group(str(world["paths"]["panoptic"]))
    group.attrs["index_digest"] = "other"
    with pytest.raises(UserError, match="another index"):
        encode(**world["paths"], split="test")


def test_another_extractor_is_an_error_that_lists_both_values(world):
    group = zarr.open_group(str(world["paths"]["visual"]))
    group.attrs["weights_digest"] = "z" * 64
    group.attrs["extractor"] = EXTRACTORS["visual"] | {
        "num_regions": 10,
        "batch_size": 99,
        "weights": "b/w.safetensors",
    }
    with pytest.raises(UserError) as caught:
        encode(**world["paths"], split="test")
    message = str(caught.value)
    assert "run tiny" in message
    assert f"visual weights digest: '{'r' * 64}' in the run, '{'z' * 64}' in the store" in message
    assert "visual num_regions: 6 in the run, 10 in the store" in message
    # How fast it ran and where the weights lay have no effect on the features.
    assert "batch_size" not in message and "safetensors" not in message


def test_a_run_is_scored_on_another_data_set_of_the_same_extractor(world, tmp_path):
    """Other images, another index: fine as long as extractor, its settings and its weights are the run's."""
    other = tmp_path / "other"
    other.mkdir()
    ids = ["x0", "x1", "x2"]
    images = [
        {"image_id": i, "path": i, "width": 4, "height": 3, "split": "test", "content_hash": f"h{i}", "error": None}
        for i in ids
    ]
    captions = [{"caption_id": f"{i}#{n}", "image_id": i, "text": f"{i} and {n}"} for i in ids for n in range(2)]
    tables = pa.Table.from_pylist(images, schema=IMAGES_SCHEMA), pa.Table.from_pylist(captions, schema=CAPTIONS_SCHEMA)
    paths = {"images": other / "images.parquet", "captions": other / "captions.parquet"}
    digest = write_index(*paths.values(), *tables)
    assert digest != zarr.open_group(str(world["paths"]["visual"])).attrs["index_digest"]
    for kind, feature in (("visual", "regions"), ("panoptic", "panoptic")):
        names = ("features", "counts") if kind == "visual" else ("seg_maps", "category_onehots", "seg_features")
        paths[kind] = other / f"{feature}.zarr"
        write_store(paths[kind], digest, ids, {n: world["arrays"][n][:3] for n in names}, feature, kind)
    found = encode(run_dir=world["paths"]["run_dir"], **paths, split="test")
    assert list(found.image_ids) == ids
    np.testing.assert_allclose(found.images[1], one_image(world, 1), atol=1e-5)
    np.testing.assert_allclose(found.captions[5], one_caption(world, "x2 and 1"), atol=1e-5)

    # A store of new code or with other weights has other features under the same settings.
    for attribute, value, message in (
        ("extractor", EXTRACTORS["panoptic"] | {"recipe": 2}, "panoptic recipe: None in the run, 2 in the store"),
        ("weights_digest", "q" * 64, f"panoptic weights digest: '{'p' * 64}' in the run, '{'q' * 64}' in the store"),
    ):
        group = zarr.open_group(str(paths["panoptic"]))
        before = group.attrs[attribute]
        group.attrs[attribute] = value
        with pytest.raises(UserError, match=message):
            encode(run_dir=world["paths"]["run_dir"], **paths, split="test")
        group.attrs[attribute] = before


def test_the_kind_of_features_is_checked_and_imported_runs_pass(world):
    given = {kind: dict(described) for kind, described in world["described"].items()}
    given["visual"]["feature"] = "grids"
    with pytest.raises(UserError, match="visual feature: 'regions' in the run, 'grids' in the store"):
        check_same_extractor(world["described"], given, run="tiny")
    check_same_extractor(world["described"], world["described"], run="tiny")
    check_same_extractor(None, given, run="imported")


def test_features_of_another_width_are_an_error(world):
    from dataclasses import replace

    from model.data import Features
    from model.runs import load_run, save_run
    from stores import open_store

    network, _, tokenizer = load_run(world["paths"]["run_dir"])
    save_run(world["paths"]["run_dir"], network, tokenizer, config={"run": "imported", "features": None})
    path = world["paths"]["visual"]
    ids, attributes = [f"im{row}" for row in range(9)], dict(zarr.open_group(str(path)).attrs)
    wide = {"features": np.zeros((9, TOKENS, WIDTH + 2), np.float16), "counts": world["arrays"]["counts"]}
    other = path.with_name("wide.zarr")
    write_store(other, attributes["index_digest"], ids, wide, "regions", "visual")
    with pytest.raises(UserError, match=r"takes features of width 10, but .*wide\.zarr holds features of width 12"):
        encode(**world["paths"] | {"visual": other}, split="test")
    network.image.sizes = replace(network.image.sizes, num_categories=100)
    features = Features(open_store(path), open_store(world["paths"]["panoptic"]))
    told = "takes panoptic features of 100 classes, but .* holds panoptic features of .* classes"
    with pytest.raises(UserError, match=told):
        features.check_network(network, "tiny")


def test_diverged_weights_are_an_error(world):
    from model.runs import save_run

    network = world["network"]
    with torch.no_grad():
        network.image.token_projection.weight[0, 0] = float("nan")
    save_run(world["paths"]["run_dir"], network, world["tokenizer"], config={"run": "tiny", "features": None})
    with pytest.raises(UserError, match=r"not finite for 4 images, the first is 'im1'"):
        encode(**world["paths"], split="test")


def test_a_run_without_vocabulary_is_an_error(world):
    from model.runs import save_run

    (world["paths"]["run_dir"] / "vocab.txt").unlink()
    save_run(world["paths"]["run_dir"], world["network"], None, config={"run": "tiny", "features": None})
    with pytest.raises(UserError, match="has no vocabulary"):
        encode(**world["paths"], split="test")


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--batch-size", "0", "at least 1"),
        ("--device", "cuda:9", "cuda:9"),
        ("--run", "nowhere", "nowhere is not a run folder"),
    ],
)
def test_wrong_flags(world, tmp_path, monkeypatch, flag, value, message):
    if flag == "--device" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    required = ["--images", "--captions", "--split", "--visual", "--panoptic", "--output"]
    flags = [part for name in required for part in (name, str(tmp_path / "x"))]
    flags += ["--run", str(world["paths"]["run_dir"])]
    monkeypatch.setattr(sys, "argv", ["prog", *flags, flag, value])
    with pytest.raises(UserError, match=message):
        module.main()
