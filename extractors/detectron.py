"""The second engine for all features: the real detectron2, with any of its configurations.

detectron2 is on no package index and needs a compiler, so it is imported only when this engine is asked for. It decides
everything up to the proposals, class scores and panoptic segments; which regions are taken and what is stored is decided
by the same code as for our own networks.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from catalog.categories import COCO_PANOPTIC
from core.console import UserError
from core.files import digest_file
from extractors.images import InputSpec
from extractors.loading import EngineRunner
from extractors.networks.checkpoint import read_state
from extractors.networks.rcnn import Meta, Panoptic, Proposals
from extractors.networks.semantic import paste_masks
from extractors.panoptic import Segments, map_segments
from extractors.settings import Detectron2

# Of files, beside weights: normalisation constants, anchors, counters, momenta.
_NO_WEIGHTS = ("pixel_mean", "pixel_std", "cell_anchors", "num_batches_tracked", "_momentum")


def _require_detectron2() -> None:
    try:
        import detectron2.model_zoo  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"engine: detectron2 needs detectron2, which cannot be imported here ({error}). Install it beside PyTorch:\n"
            f"  {Detectron2.install}\n"
            "(it needs a C++ compiler; its model zoo needs the setuptools named here), or let Snakemake make the environment "
            "envs/detectron2.yaml with --sdm conda"
        ) from error


def installed_version() -> str:
    """detectron2's version, with its commit where it was installed from a repository."""
    try:
        distribution = packages.distribution("detectron2")
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    except packages.PackageNotFoundError:  # on the path without having been installed
        import detectron2

        return detectron2.__version__
    commit = origin.get("vcs_info", {}).get("commit_id")
    return f"{distribution.version} ({commit})" if commit else distribution.version


def read_config(config: str, options: Sequence[Any] = ()) -> Any:
    """A detectron2 configuration.

    Args:
        config: a local `.yaml` or `.py` file, or a name in detectron2's model zoo. A `.py` file is run.
        options: key, value, key, value, ... put over it.

    Returns:
        A `CfgNode`, or for `.py` a `DictConfig`.

    Raises:
        UserError: there is no such configuration, it is none, or an option is not one of its keys.
    """
    from detectron2 import model_zoo
    from detectron2.config import LazyConfig, get_cfg

    path = config
    if not os.path.isfile(config):
        try:
            path = model_zoo.get_config_file(config)
        except RuntimeError:
            root = Path(model_zoo.__file__).parent / "configs"
            known = [str(p.relative_to(root)) for kind in ("yaml", "py") for p in root.rglob(f"*.{kind}")]
            close = get_close_matches(config, known, n=1)
            raise UserError(
                f"config {config!r} is neither a file nor in detectron2's model zoo; "
                + (
                    f"did you mean {close[0]!r}?"
                    if close
                    else "give one like COCO-Detection/faster_rcnn_R_101_C4_3x.yaml"
                )
            ) from None
    if len(options) % 2:
        raise UserError(f"options {list(options)} of {config} must be pairs: [KEY, value, KEY, value, ...]")
    try:
        if path.endswith(".py"):
            cfg = LazyConfig.load(path)
            pairs = zip(options[::2], options[1::2], strict=True)
            return LazyConfig.apply_overrides(cfg, [f"{key}={value}" for key, value in pairs])
        cfg = get_cfg()
        cfg.merge_from_file(path)
        cfg.merge_from_list(list(options))
    except Exception as error:  # yacs, omegaconf and YAML share no error class
        raise UserError(f"config {config} cannot be read by detectron2: {error}") from error
    return cfg


def input_spec(cfg: Any) -> InputSpec:
    """How a configuration wants its test images; its model normalises and pads them itself.

    Raises:
        UserError: it wants another colour space than BGR or RGB, or another resize rule.
    """
    from detectron2.config import CfgNode

    if isinstance(cfg, CfgNode):
        channels, min_size, max_size = cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    else:
        try:
            mapper = cfg.dataloader.test.mapper
            (resize,) = mapper.augmentations
            channels, min_size, max_size = mapper.image_format, resize.short_edge_length, resize.max_size
            if not isinstance(min_size, int):
                (min_size,) = set(min_size)
        except Exception as error:  # omegaconf's own for a missing key, ValueError for several augmentations or sizes
            raise UserError(
                "a .py config must say how test images are resized, by one ResizeShortestEdge in "
                f"dataloader.test.mapper.augmentations: {error}"
            ) from error
    if channels not in ("BGR", "RGB"):
        raise UserError(f"the configuration wants {channels} images; only BGR and RGB are supported")
    return InputSpec(min_size, max_size, channels, mean=(0.0,) * 3, std=(1.0,) * 3, divisibility=1)


def dataset_metadata(cfg: Any) -> Any:
    """detectron2's metadata of the configuration's first test dataset."""
    from detectron2.config import CfgNode
    from detectron2.data import MetadataCatalog

    names = cfg.DATASETS.TEST if isinstance(cfg, CfgNode) else cfg.dataloader.test.dataset.names
    names = [names] if isinstance(names, str) else list(names)
    return MetadataCatalog.get(names[0] if names else "__unused")


def coco_categories(metadata: Any) -> tuple[dict[int, int], dict[int, int]]:
    """Our category index of a model's thing and stuff ids, by the metadata's COCO ids and, to be sure, its names.

    Raises:
        UserError: the metadata is not of COCO panoptic categories; the message lists what does not match.
    """
    by_coco_id = {category.coco_id: category for category in COCO_PANOPTIC}
    found: list[dict[int, int]] = []
    wrong = []
    for kind in ("thing", "stuff"):
        ids = metadata.get(f"{kind}_dataset_id_to_contiguous_id", {})
        names = metadata.get(f"{kind}_classes", [])
        categories = {}
        for coco_id, own in ids.items():
            category, name = by_coco_id.get(coco_id), names[own] if own < len(names) else None
            if kind == "stuff" and (coco_id, own) == (0, 0):
                continue  # any thing
            # detectron2 shortens some names of stuff.
            short = re.sub("-other|-merged", "", category.name) if category else ""
            if category is None or category.is_thing != (kind == "thing") or name not in (category.name, short):
                wrong.append(f"{kind} {own} (dataset id {coco_id}, {name!r})")
            else:
                categories[own] = category.index
        found.append(categories)
    if wrong or not any(found):
        listed = ", ".join(wrong) or "it has no categories"
        raise UserError(
            f"the dataset {metadata.get('name', '?')!r} of the configuration is not COCO panoptic: {listed}; set "
            "options: [DATASETS.TEST, \"('coco_2017_val_panoptic_separated',)\"] if the model was trained on it"
        )
    return found[0], found[1]


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a checkpoint by detectron2's own checkpointer, with its name conversions.

    Raises:
        UserError: the file is missing or holds more than weights (it is not opened then), leaves parts of the model unset, or
            has parts that the model does not take, as the file of a deeper network does.
    """
    from detectron2.checkpoint import DetectionCheckpointer

    path = Path(path)
    if path.suffix not in (".pkl", ".pth", ".pt"):
        raise UserError(
            f"weights {path}: detectron2 reads .pkl and .pth files, not {path.suffix or 'files without suffix'}"
        )
    try:
        # detectron2 unpickles whatever is in the file: only one that our restricted unpickler accepts may reach it.
        read_state(path)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    reports = []

    class Checkpointer(DetectionCheckpointer):
        def _load_model(self, checkpoint: Any) -> Any:
            reports.append(super()._load_model(checkpoint))
            return reports[-1]

    Checkpointer(model).load(str(path))
    (report,) = reports
    missing = sorted(key for key in report.missing_keys if not key.endswith("num_batches_tracked"))
    shapes = [f"{key}: file {tuple(file)}, model {tuple(own)}" for key, file, own in report.incorrect_shapes]
    missing = [key for key in missing if key not in {key for key, _, _ in report.incorrect_shapes}]
    unexpected = sorted(key for key in report.unexpected_keys if not any(part in key for part in _NO_WEIGHTS))
    if missing or shapes or unexpected:
        found = (("missing", missing), ("wrongly shaped", shapes), ("not taken by the model", unexpected))
        parts = [f"{len(k)} {what}: {', '.join(k)}" for what, k in found if k]
        raise UserError(
            f"the weights in {path} do not fit the model; check that `config` and `weights` belong together\n"
            + "\n".join(parts)
        )


def zoo_weights(config: str) -> str:
    """The local copy of the checkpoint that detectron2's zoo has for a configuration; downloaded once."""
    from detectron2 import model_zoo
    from detectron2.utils.file_io import PathManager

    try:
        url = model_zoo.get_checkpoint_url(config)
    except RuntimeError:
        raise UserError(f"config {config} has no weights in detectron2's model zoo; set `weights` to a file") from None
    try:
        return PathManager.get_local_path(url)
    except Exception as error:  # whatever its download helper raises
        raise UserError(
            f"{url} could not be downloaded ({error}); fetch it yourself and set `weights` to the file"
        ) from error


def detectron_runner(
    network: Callable[[nn.Module, Any], nn.Module],
    *,
    config: str,
    weights: str | None = None,
    options: Sequence[Any] | None = None,
) -> EngineRunner:
    """A runner around `network(detectron2's model, configuration)`; `weights` None means the zoo's own."""
    _require_detectron2()
    from detectron2.config import CfgNode, instantiate
    from detectron2.modeling import build_model

    cfg = read_config(config, options or ())
    try:
        if isinstance(cfg, CfgNode):
            cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
            model = build_model(cfg)
        else:
            model = instantiate(cfg.model)
    except Exception as error:  # any part of detectron2 may object to the configuration
        raise UserError(f"detectron2 cannot build the model of {config}: {type(error).__name__}: {error}") from error
    wrapped = network(model, cfg).eval()
    if weights is None:
        weights = zoo_weights(config)
    load_weights(model, weights)
    runner = EngineRunner(wrapped, digest_file(weights))
    runner.attributes = {"engine": "detectron2", "config": config, "detectron2": installed_version()}
    return runner


class DetectronRCNN(nn.Module):
    """A two-stage detector of detectron2 with what our region extractor asks of a network."""

    def __init__(self, model: nn.Module, cfg: Any) -> None:
        from detectron2.modeling import GeneralizedRCNN, StandardROIHeads
        from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads

        super().__init__()
        heads = getattr(model, "roi_heads", None)
        self.c4 = isinstance(heads, Res5ROIHeads)
        known = self.c4 or (isinstance(heads, StandardROIHeads) and not isinstance(heads, CascadeROIHeads))
        if not (isinstance(model, GeneralizedRCNN) and known and model.proposal_generator is not None):
            raise UserError(
                "region features need a Faster or Mask R-CNN configuration with a proposal network and C4, DC5 or "
                f"FPN heads (no cascade), not {type(model).__name__} with {type(heads).__name__}"
            )
        self.model = model
        self.region_size = heads.box_predictor.cls_score.in_features
        names = tuple(dataset_metadata(cfg).get("thing_classes", ()))
        self.meta = Meta(input=input_spec(cfg), class_names=names if len(names) == heads.num_classes else ())

    @property
    def roi_heads(self) -> nn.Module:
        """The model's own heads."""
        return self.model.roi_heads

    @torch.inference_mode()
    def regions(
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]], scales: Sequence[float] | None = None
    ) -> list[Proposals]:
        """As `C4RCNN.regions`, from raw pixels (B, 3, H, W) 0..255: features are res5's mean (C4) or the box head's output."""
        model, heads = self.model, self.model.roi_heads
        images = model.preprocess_image([{"image": image} for image in pixels])
        maps = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, maps, None)
        boxes = [p.proposal_boxes for p in proposals]
        if self.c4:
            features = heads._shared_roi_transform([maps[name] for name in heads.in_features], boxes).mean(dim=(2, 3))
        else:
            pooled = heads.box_pooler([maps[name] for name in heads.box_in_features], boxes)
            features = heads.box_head(pooled).flatten(1)
        predictions = heads.box_predictor(features)
        probabilities = heads.box_predictor.predict_probs(predictions, proposals)
        counts = [len(b) for b in boxes]
        weights = tuple(heads.box_predictor.box2box_transform.weights)
        parts = zip(boxes, predictions[1].split(counts), probabilities, features.split(counts), sizes, strict=True)
        return [
            Proposals(own.tensor, deltas, p[:, : heads.num_classes], f.float(), None, size, box_weights=weights)
            for own, deltas, p, f, size in parts
        ]


class DetectronGrid(nn.Module):
    """The whole-image res5 map of any model: a C4 detector's through its heads' res5, otherwise its backbone's own."""

    def __init__(self, model: nn.Module, cfg: Any) -> None:
        from detectron2.modeling.roi_heads import Res5ROIHeads

        super().__init__()
        self.model = model
        self.meta = Meta(input=input_spec(cfg))
        backbone, heads = getattr(model, "backbone", None), getattr(model, "roi_heads", None)
        if isinstance(heads, Res5ROIHeads):
            (self.level,) = heads.in_features
            self.body, self.res5 = backbone, heads.res5
            self.grid_size = heads.res5[-1].out_channels
            self.grid_stride = backbone.output_shape()[self.level].stride * heads.res5[0].stride
            return
        # A pyramid has the body it is built on.
        self.level, self.body, self.res5 = "res5", getattr(backbone, "bottom_up", backbone), nn.Identity()
        shapes = self.body.output_shape() if hasattr(self.body, "output_shape") else {}
        if "res5" not in shapes:
            raise UserError(
                f"grid features need a C4 model or a backbone with a res5 map; this one has {', '.join(shapes)}"
            )
        self.grid_size, self.grid_stride = shapes["res5"].channels, shapes["res5"].stride

    @torch.inference_mode()
    def grid(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) raw pixels -> (B, D, h, w) float32; cells beyond H and W lie in detectron2's padding."""
        images = self.model.preprocess_image([{"image": image} for image in pixels])
        return self.res5(self.body(images.tensor)[self.level]).float()


class DetectronPanoptic(nn.Module):
    """A panoptic model of detectron2: a Panoptic FPN with all it knows, or any model whose results hold `panoptic_seg`."""

    def __init__(self, model: nn.Module, cfg: Any) -> None:
        from detectron2.modeling import PanopticFPN

        super().__init__()
        self.model = model
        self.is_fpn = self.gives_probabilities = isinstance(model, PanopticFPN)
        self.things, self.stuff = coco_categories(dataset_metadata(cfg))
        self.meta = Meta(input=input_spec(cfg))
        if self.is_fpn:
            # Ids in the metadata's order: things from 0, stuff from 1 behind the label for any thing.
            things, stuff = range(len(self.things)), range(1, len(self.stuff) + 1)
            if set(things) != self.things.keys() or set(stuff) != self.stuff.keys():
                raise UserError(
                    "a Panoptic FPN numbers stuff from 1; set options: [DATASETS.TEST, "
                    "\"('coco_2017_val_panoptic_separated',)\"]"
                )
            self.meta.thing_categories = tuple(self.things[i] for i in things)
            self.meta.stuff_categories = tuple(self.stuff[i] for i in stuff)

    def _inputs(self, pixels: Tensor, original_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        return [
            {"image": image, "height": height, "width": width}
            for image, (height, width) in zip(pixels, original_sizes, strict=True)
        ]

    @torch.inference_mode()
    def panoptic(
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]], original_sizes: Sequence[tuple[int, int]]
    ) -> list[Panoptic] | list[Segments]:
        """As `PanopticFPN.panoptic` of our networks, from raw pixels (B, 3, H, W) 0..255; merged by detectron2."""
        if not self.is_fpn:
            return [Segments(categories) for categories in self.category_maps(pixels, original_sizes)]
        from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
        from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess

        model = self.model
        detections, logits = model.inference(self._inputs(pixels, original_sizes), do_postprocess=False)
        result = []
        for instances, image_logits, size, (height, width) in zip(
            detections, logits, sizes, original_sizes, strict=True
        ):
            semantic = sem_seg_postprocess(image_logits, size, height, width)
            # Post-processing makes binary masks of them and drops empty boxes: a field of its own keeps the probabilities.
            instances.mask_maps = instances.pred_masks[:, 0]
            instances = detector_postprocess(instances, height, width)
            segment_map, segments = combine_semantic_and_instance_outputs(
                instances,
                semantic.argmax(dim=0),
                model.combine_overlap_thresh,
                model.combine_stuff_area_thresh,
                model.combine_instances_score_thresh,
            )
            boxes = instances.pred_boxes.tensor
            result.append(
                Panoptic(
                    segment_map=segment_map,
                    segments=[
                        {"id": s["id"], "is_thing": s["isthing"], "category": s["category_id"]} for s in segments
                    ],
                    semantic_logits=semantic,
                    masks=instances.pred_masks,
                    mask_probabilities=paste_masks(instances.mask_maps, boxes, (height, width)),
                    scores=instances.scores,
                    classes=instances.pred_classes,
                    boxes=boxes,
                )
            )
        return result

    @torch.inference_mode()
    def category_maps(self, pixels: Tensor, original_sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Per image the (H, W) uint8 categories of the model's own `panoptic_seg`."""
        maps = []
        for output in self.model(self._inputs(pixels, original_sizes)):
            segment_map, segments = output.get("panoptic_seg") or (None, None)
            if segments is None:
                raise UserError(
                    f"the results of {type(self.model).__name__} hold no panoptic_seg with segments; choose a panoptic config"
                )
            maps.append(
                map_segments(
                    segment_map.cpu().numpy(),
                    {s["id"]: (self.things if s["isthing"] else self.stuff)[s["category_id"]] for s in segments},
                )
            )
        return maps


RUNNERS = {
    "regions": partial(detectron_runner, DetectronRCNN),
    "grids": partial(detectron_runner, DetectronGrid),
    "panoptic": partial(detectron_runner, DetectronPanoptic),
}
