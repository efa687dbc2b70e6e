"""The detectron2 engine: the same rows as our own networks where detectron2 is installed, and a clear message where it is not."""

from __future__ import annotations

import importlib.util
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch

from catalog.categories import BY_NAME, COCO_PANOPTIC
from core.console import UserError
from core.features import FEATURES
from core.files import digest_file
from extractors import detectron, grids, panoptic, regions
from extractors.engines import build_extractor
from extractors.images import InputSpec, iterate_batches
from extractors.loading import NetworkRunner
from extractors.networks import build, load_checkpoint
from extractors.settings import Detectron2

PHOTOS = [str(Path(skimage.__file__).parent / "data" / name) for name in ("coffee.png", "chelsea.png")]
NARROW = {"stem_channels": 16, "res2_channels": 64, "width_per_group": 16}
INPUT = {"min_size": 160, "max_size": 260, "channels": "BGR", "mean": (103.53, 116.28, 123.675), "std": (1.0,) * 3}
# Architecture, its changes, and the same as a configuration of detectron2.
C4 = (
    "faster_rcnn_r50_c4",
    {"post_nms_top": 100, "input": InputSpec(**INPUT, divisibility=1)},
    "COCO-Detection/faster_rcnn_R_50_C4_3x.yaml",
    ["MODEL.RPN.POST_NMS_TOPK_TEST", 100],
)
PANOPTIC = (
    "panoptic_fpn_r50",
    {
        "input": InputSpec(**INPUT, divisibility=32),
        "fpn_channels": 32,
        "box_hidden": 64,
        "mask_channels": 32,
        "semantic_channels": 32,
        "stuff_area_limit": 256,
    },
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml",
    [
        *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 64, "MODEL.ROI_MASK_HEAD.CONV_DIM", 32),
        *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 256),
    ],
)
OPTIONS = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 16, "INPUT.MIN_SIZE_TEST", 160, "INPUT.MAX_SIZE_TEST", 260),
]

installed = pytest.mark.skipif(importlib.util.find_spec("detectron2") is None, reason="detectron2 is not installed")


def seed_weights(network: torch.nn.Module) -> None:
    """Weights with which scores spread, so that suppression, thresholds and merging act."""
    generator = torch.Generator().manual_seed(5)
    spread = {"objectness_logits": 0.05, "anchor_deltas": 0.01, "cls_score": 0.12, "bbox_pred": 0.02, "predictor": 0.3}
    for name, value in network.state_dict().items():
        if name.endswith("running_var") or name.endswith("norm.weight"):
            value.uniform_(0.5, 1.0, generator=generator)
        elif value.dim() > 1:
            std = next((s for part, s in spread.items() if f"{part}.weight" in name), (2 / value[0].numel()) ** 0.5)
            # Pixels are large.
            value.normal_(0, std / 64 if "stem" in name else std, generator=generator)
        elif value.is_floating_point():
            value.normal_(0, 0.1, generator=generator)
        if name.endswith("conv3.norm.weight"):
            value *= 0.3  # residuals must not pile up
    if hasattr(network, "regions"):
        # A random body sees all regions alike: without this, one class would win everywhere.
        (batch,) = iterate_batches(PHOTOS[:1], [0], network.meta.input, batch_size=1)
        features = network.regions(batch.pixels, batch.sizes)[0].features
        head = network.roi_heads.box_predictor.cls_score.state_dict()
        head["weight"] *= 3 / (features @ head["weight"].T).std(dim=0).mean()
        head["bias"].copy_(-(head["weight"] @ features.mean(dim=0)))


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """`native(C4)`: (our network with seeded weights, the weights file)."""
    made = {}

    def make(kind) -> tuple[torch.nn.Module, Path]:
        architecture, changes = kind[:2]
        if architecture not in made:
            network = build(architecture, **NARROW, **changes)
            seed_weights(network)
            state = {name: value.numpy() for name, value in network.state_dict().items()}
            path = tmp_path_factory.mktemp("weights") / f"{architecture}.pkl"
            path.write_bytes(pickle.dumps({"model": state, "__author__": "tests"}))
            load_checkpoint(network, path)
            made[architecture] = network, path
        return made[architecture]

    return make


def settings(kind, weights, **more) -> dict:
    return {"engine": "detectron2", "config": kind[2], "weights": str(weights), "options": OPTIONS + kind[3], **more}


def extract(extractor) -> list[dict[str, np.ndarray]]:
    """Rows of the photographs in their order."""
    rows: dict[int, dict] = {}
    for batch in iterate_batches(PHOTOS, range(len(PHOTOS)), extractor.input, batch_size=2):
        rows.update(zip(batch.rows, extractor(batch), strict=True))
    return [rows[i] for i in range(len(PHOTOS))]


def assert_same(found, expected, tolerance=1e-3):
    assert len(found) == len(expected) == len(PHOTOS)
    for own, other in zip(found, expected, strict=True):
        assert own.keys() == other.keys()
        for name, values in other.items():
            assert own[name].shape == values.shape and own[name].dtype == values.dtype, name
            if values.dtype.kind == "f":
                difference = np.abs(own[name].astype("f4") - values.astype("f4")).max()
                assert difference <= tolerance * np.abs(values.astype("f4")).max(), (name, difference)
            else:
                assert (own[name] == values).mean() >= 0.999, name


@installed
@pytest.mark.parametrize("selection", ["caffe", "lxmert"])
def test_regions_are_those_of_our_network(native, selection):
    network, weights = native(C4)
    ours = regions.RegionExtractor(NetworkRunner(network, "x"), selection=selection)
    other = build_extractor("regions", **settings(C4, weights, selection=selection))
    expected = extract(ours)
    assert_same(extract(other), expected)
    assert expected[0]["counts"] == 36 and len(np.unique(expected[0]["class_ids"])) > 3
    assert other.attributes["class_names"] == ours.attributes["class_names"]
    assert other.attributes["engine"] == "detectron2" and other.attributes["detectron2"].startswith("0.")
    assert other.weights_digest == digest_file(weights)


@installed
def test_as_the_workflow_runs_it(native, extract_store):
    from settings import load_settings

    network, weights = native(C4)
    config = {
        "datasets": {"s": {"source": "scenes", "splits": {"test": 1}}},
        "features": {"regions": settings(C4, weights)},
    }
    section = load_settings(config, check_files=False).features.regions.model_dump()
    store = extract_store("regions", PHOTOS, section)
    expected = extract(regions.RegionExtractor(NetworkRunner(network, "x")))
    names = [name for name in expected[0] if name != "counts"]
    assert_same([{name: store.rows(name, [i])[0] for name in names} for i in range(len(PHOTOS))],
                [{name: rows[name] for name in names} for rows in expected])  # fmt: skip
    assert store.attributes["engine"] == "detectron2" and store.attributes["config"] == C4[2]
    assert store.attributes["detectron2"] == detectron.installed_version()
    assert store.attributes["extractor"] == section | {"recipe": regions.RECIPE}
    assert store.attributes["weights_digest"] == digest_file(weights)


@installed
@pytest.mark.parametrize("grid", [3, "native"])
def test_grids_are_those_of_our_network(native, grid):
    network, weights = native(C4)
    expected = extract(grids.GridExtractor(NetworkRunner(network, "x"), grid=grid))
    assert_same(extract(build_extractor("grids", **settings(C4, weights, grid=grid))), expected)


@installed
@pytest.mark.parametrize("seg_features", ["area", "soft"])
def test_panoptic_is_that_of_our_network(native, seg_features):
    network, weights = native(PANOPTIC)
    ours = panoptic.PanopticExtractor(NetworkRunner(network, "x"), seg_features=seg_features, min_pixels=50)
    other = build_extractor("panoptic", **settings(PANOPTIC, weights, seg_features=seg_features, min_pixels=50))
    expected = extract(ours)
    assert_same(extract(other), expected, tolerance=5e-3)
    # What is taken out of the model before its own merge makes no difference to the merge.
    (batch,) = iterate_batches(PHOTOS[:1], [0], other.input, batch_size=1)
    (merged,) = other.runner.network.category_maps(batch.pixels, batch.original_sizes)
    assert (next(other.segment(batch))[0] == merged).all()
    present = np.flatnonzero(expected[0]["category_onehots"])
    assert present.min() < 80 <= present.max(), "things and stuff"


@installed
def test_a_pyramid_gives_regions_of_its_box_head_and_the_grid_of_its_body(native):
    _, weights = native(PANOPTIC)
    extractor = build_extractor("regions", **settings(PANOPTIC, weights, num_regions=20))
    model = extractor.runner.network.model
    rows = extract(extractor)
    assert rows[0]["features"].shape == (20, 64) and rows[0]["counts"] == 20
    (batch,) = iterate_batches(PHOTOS[:1], [0], extractor.input, batch_size=1)
    # Regions in our order, through detectron2's heads from the stored boxes.
    from detectron2.structures import Boxes, Instances

    boxes = torch.from_numpy(rows[0]["boxes"]) * batch.sizes[0][0] / batch.original_sizes[0][0]
    with torch.inference_mode():
        images = model.preprocess_image([{"image": batch.pixels[0]}])
        maps = model.backbone(images.tensor)
        pooled = model.roi_heads.box_pooler([maps[f] for f in model.roi_heads.box_in_features], [Boxes(boxes)])
        expected = model.roi_heads.box_head(pooled).numpy()
        body = model.backbone.bottom_up(images.tensor)["res5"][0]
        (proposals,) = extractor.runner.network.regions(batch.pixels, batch.sizes)
        predictor, instances = model.roi_heads.box_predictor, Instances(batch.sizes[0])
        instances.proposal_boxes = Boxes(proposals.boxes)
        (regressed,) = predictor.predict_boxes(predictor(proposals.features), [instances])
        regressed = Boxes(regressed.view(-1, 4))
        regressed.clip(batch.sizes[0])
    places, classes = torch.arange(len(proposals.boxes)), proposals.probabilities.argmax(dim=1)
    own = regressed.tensor.view(len(places), -1, 4)[places, classes]
    torch.testing.assert_close(proposals.regressed(places, classes), own, atol=1e-3, rtol=1e-5)
    assert np.abs(rows[0]["features"] - expected).max() <= 5e-3 * np.abs(expected).max()

    grid = extract(build_extractor("grids", **settings(PANOPTIC, weights, grid="native")))[0]
    height, width = (-(-side // 32) for side in batch.sizes[0])
    assert grid["grid_shapes"].tolist() == [height, width]
    cells = body[:, :height, :width].flatten(1).T.numpy()
    assert np.abs(grid["features"][: height * width] - cells).max() <= 1e-3 * np.abs(cells).max()


@installed
def test_lazy_configurations(native, tmp_path):
    """A .py file: its model, its image rule and its dataset."""
    _, weights = native(C4)
    file = tmp_path / "mine.py"
    file.write_text(
        "from detectron2.model_zoo import get_config\n"
        "cfg = get_config('COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py')\n"
        "model, dataloader = cfg.model, cfg.dataloader\n"
    )
    cfg = detectron.read_config(str(file), ["dataloader.test.mapper.augmentations.0.short_edge_length", 300])
    assert detectron.input_spec(cfg) == InputSpec(300, 1333, "BGR", (0.0,) * 3, (1.0,) * 3, 1)
    assert detectron.dataset_metadata(cfg).thing_classes[:2] == ["person", "bicycle"]
    for sizes in ([300, 300], [300, 400]):
        cfg.dataloader.test.mapper.augmentations[0].short_edge_length = sizes
        if sizes[0] == sizes[1]:
            assert detectron.input_spec(cfg).min_size == 300
        else:
            with pytest.raises(UserError, match="how test images are resized"):
                detectron.input_spec(cfg)
    with pytest.raises(UserError, match=r"do not fit the model(.|\n)*missing: .*roi_heads.mask_head"):
        build_extractor("regions", engine="detectron2", config=str(file), weights=str(weights))


@installed
def test_any_model_with_panoptic_results(tmp_path):
    """A model that is no Panoptic FPN, numbered as COCO's 133 categories in one row."""
    from detectron2.modeling import META_ARCH_REGISTRY

    class Stripes(torch.nn.Module):
        """Person in the left third, sky in the right one, nothing between them."""

        def __init__(self, cfg):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, inputs):
            results = []
            for item in inputs:
                assert item["image"].max() > 1, "as in a file, not normalised"
                segments = torch.full((item["height"], item["width"]), -1)
                segments[:, : item["width"] // 3] = 7
                segments[:, -(item["width"] // 3) :] = 4
                info = [
                    {"id": 7, "isthing": True, "category_id": 0},
                    {"id": 4, "isthing": False, "category_id": BY_NAME["sky-other-merged"].index},
                ]
                results.append({"panoptic_seg": (segments, info)})
            return results

    META_ARCH_REGISTRY._do_register("Stripes", Stripes)
    weights = tmp_path / "stripes.pth"
    torch.save({"model": {"weight": torch.ones(1)}}, weights)
    config = {
        "engine": "detectron2",
        "config": C4[2],
        "weights": str(weights),
        "options": ["MODEL.META_ARCHITECTURE", "Stripes", "DATASETS.TEST", "('coco_2017_val_panoptic',)"],
    }
    extractor = build_extractor("panoptic", **config)
    assert extractor.runner.network.model.weight.item() == 1
    for row in extract(extractor):
        sky = BY_NAME["sky-other-merged"].index
        assert np.flatnonzero(row["category_onehots"]).tolist() == [0, sky]
        assert row["seg_maps"][5, [0, 31, 63]].tolist() == [0, 255, sky]
    with pytest.raises(UserError, match="Stripes gives no probabilities; set seg_features: area"):
        build_extractor("panoptic", **config, seg_features="soft")
    with pytest.raises(UserError, match="need a Faster or Mask R-CNN configuration .* not Stripes"):
        build_extractor("regions", **config)
    with pytest.raises(UserError, match="need a C4 model or a backbone with a res5 map"):
        build_extractor("grids", **config)


@installed
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": "COCO-Detection/faster_rcnn_R_50_C4_3.yaml"}, "did you mean 'COCO-Detection/faster_rcnn_R_50_C4_3x.yaml'"),
        ({"options": ["MODEL.RESNETS.DEPHT", 50]}, "Non-existent .*MODEL.RESNETS.DEPHT|DEPHT"),
        ({"options": ["MODEL.RESNETS.DEPTH"]}, "must be pairs"),
        ({"options": ["INPUT.FORMAT", "YUV-BT.601"]}, "only BGR and RGB"),
        ({"options": ["MODEL.META_ARCHITECTURE", "Nothing"]}, "cannot build the model"),
        ({"options": []}, "wrongly shaped"),
        ({"config": "COCO-Detection/retinanet_R_50_FPN_1x.yaml"}, "not RetinaNet"),
        ({"weights": "nowhere.pkl"}, "no weights file at nowhere.pkl"),
        ({"weights": "weights.safetensors"}, "reads .pkl and .pth files, not .safetensors"),
        ({"config": "Base-RCNN-C4.yaml", "weights": None}, "no weights in detectron2's model zoo"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)  # fmt: skip
def test_mistakes(native, changes, message):
    _, weights = native(C4)
    with pytest.raises(UserError, match=message):
        build_extractor("regions", **(settings(C4, weights) | changes))


@installed
def test_a_hostile_file_is_not_unpickled(tmp_path):
    class Attack:
        def __reduce__(self):
            return (Path(tmp_path / "harm").touch, ())

    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"model": {"a": Attack()}, "__author__": "x"}))
    with pytest.raises(UserError, match="not a plain weights pickle"):
        build_extractor("regions", **settings(C4, tmp_path / "bad.pkl"))
    assert not (tmp_path / "harm").exists()


@installed
def test_weights_of_the_zoo_are_found_by_the_configurations_name(native, monkeypatch):
    from detectron2.utils.file_io import PathManager

    _, weights = native(C4)
    asked = []
    monkeypatch.setattr(PathManager, "get_local_path", lambda url: asked.append(url) or str(weights))
    extractor = build_extractor("regions", **(settings(C4, weights) | {"weights": None}))
    assert asked and asked[0].endswith("COCO-Detection/faster_rcnn_R_50_C4_3x/137849393/model_final_f97cb7.pkl")
    assert extractor.weights_digest == digest_file(weights)


def test_without_detectron2_the_message_says_what_to_do(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "detectron2", None)
    for feature in FEATURES:
        with pytest.raises(UserError) as caught:
            build_extractor(feature, engine="detectron2", config=C4[2])
        message = str(caught.value)
        assert "engine: detectron2 needs detectron2" in message
        assert Detectron2.install in message and "'setuptools<82'" in message
        assert "envs/detectron2.yaml" in message


def test_categories_come_from_ids_and_names():
    stuff = [c for c in COCO_PANOPTIC if not c.is_thing]
    names = ["things"] + [c.name.replace("-other", "").replace("-merged", "") for c in stuff]
    metadata = {
        "name": "mine",
        "thing_dataset_id_to_contiguous_id": {1: 1, 3: 0},
        "thing_classes": ["car", "person"],
        "stuff_dataset_id_to_contiguous_id": {0: 0} | {c.coco_id: i + 1 for i, c in enumerate(stuff)},
        "stuff_classes": names,
    }
    things, others = detectron.coco_categories(metadata)
    assert things == {0: BY_NAME["car"].index, 1: BY_NAME["person"].index}
    assert others == {i + 1: c.index for i, c in enumerate(stuff)}
    for wrong in ({"thing_classes": ["car", "cat"]}, {"thing_dataset_id_to_contiguous_id": {1: 1, 12: 0}}):
        with pytest.raises(UserError, match="'mine' of the configuration is not COCO panoptic: thing"):
            detectron.coco_categories(metadata | wrong)
    with pytest.raises(UserError, match="it has no categories"):
        detectron.coco_categories({})


def test_unknown_settings_name_the_engine():
    with pytest.raises(UserError, match="settings of engine detectron2: .* 'architecture'"):
        build_extractor("regions", engine="detectron2", config="x", architecture="faster_rcnn_r50_c4")
    with pytest.raises(
        UserError, match="settings of engine native: missing a required (keyword-only )?argument: 'architecture'"
    ):
        build_extractor("regions", weights="x")
    with pytest.raises(UserError, match="unknown engine 'transformers'; choose one of native, detectron2"):
        build_extractor("regions", engine="transformers", weights="x")


def test_segments_without_a_category_are_void():
    segment_map = np.array([[-1, 0, 3], [5, 5, 2]])
    assert panoptic.map_segments(segment_map, {3: 0, 5: 132}).tolist() == [[255, 255, 0], [132, 132, 255]]


def test_the_version_names_the_commit(monkeypatch):
    origin = '{"url": "https://example.org", "vcs_info": {"vcs": "git", "commit_id": "abc"}}'
    distribution = types.SimpleNamespace(version="0.6", read_text=lambda name: origin)
    monkeypatch.setattr(detectron.packages, "distribution", lambda name: distribution)
    assert detectron.installed_version() == "0.6 (abc)"
