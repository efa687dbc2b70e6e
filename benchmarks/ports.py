"""What detectron2 itself lacks, by its authors' own code: the Caffe weights' network and regions, the attribute heads, OpenCV's feeding.

None of that code is here. `--ports FOLDER` of `benchmarks.parity` names a folder with clones, and what is asked for is imported from them:

    git clone https://github.com/MILVLG/bottom-up-attention.pytorch
    git clone https://github.com/airsplay/py-bottom-up-attention
    pip install opencv-python-headless

Both were written for a detectron2 of 2019 or 2020. What today's lacks of it, and the compiled suppression, are put in their place here.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.console import UserError
from extractors.networks.boxes import AnchorGenerator

MILVLG, AIRSPLAY = "bottom-up-attention.pytorch", "py-bottom-up-attention"
REGIONS = 36  # of an image, as for its k36 weights


def _file(folder: Path, name: str, path: str) -> Any:
    """A file of a clone as a module under a name of its own: one of them is a file of another detectron2."""
    where = folder / name / path
    if not where.is_file():
        raise UserError(f"--ports {folder}: no {where} there; benchmarks/ports.py says what to clone into it")
    spec = importlib.util.spec_from_file_location(f"port_{where.stem}", where)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def suppress(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """The port's compiled suppression: sides count both end pixels, the threshold itself suppresses; ascending indices.

    Args:
        boxes: (N, 4) xyxy. scores: (N,).
    """
    x0, y0, x1, y1 = boxes.numpy().T
    areas = (x1 - x0 + 1) * (y1 - y0 + 1)
    order, kept = (-scores.numpy()).argsort(kind="stable"), []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        width = np.maximum(0, np.minimum(x1[best], x1[order]) - np.maximum(x0[best], x0[order]) + 1)
        height = np.maximum(0, np.minimum(y1[best], y1[order]) - np.maximum(y0[best], y0[order]) + 1)
        common = width * height
        order = order[common / (areas[best] + areas[order] - common) < np.float32(threshold)]
    return torch.tensor(sorted(kept), dtype=torch.int64)


def _import_milvlg(folder: Path) -> None:
    """`import bua`, with what it needs of a detectron2 of its time."""
    if "bua" in sys.modules:
        return
    import detectron2.modeling.roi_heads.fast_rcnn as fast_rcnn

    if not hasattr(fast_rcnn, "FastRCNNOutputs"):
        fast_rcnn.FastRCNNOutputs = object  # a base of what only training uses
    apex, compiled = types.ModuleType("apex"), types.ModuleType("bua.caffe.modeling._C")
    apex.amp = types.SimpleNamespace(float_function=lambda function: function)
    compiled.nms = suppress
    sys.modules |= {"apex": apex, compiled.__name__: compiled}
    sys.path.insert(0, str(folder / MILVLG))
    import bua.caffe.modeling.backbone
    from detectron2.modeling.backbone.resnet import ResNet

    def make_stage(block_class: type, num_blocks: int, first_stride: int, **options: Any) -> list[nn.Module]:
        return ResNet.make_stage(
            block_class, num_blocks, stride_per_block=[first_stride] + [1] * (num_blocks - 1), **options
        )

    bua.caffe.modeling.backbone.make_stage = make_stage


def milvlg_model(folder: Path, keys: list[Any]) -> nn.Module:
    """bottom-up-attention.pytorch's model of the Caffe weights on the CPU, set to extract `REGIONS`; its weights are up to the caller.

    The anchors are py-faster-rcnn's, as in the published files: today's detectron2 would not read them from there.
    """
    _import_milvlg(folder)
    from bua.caffe import add_bottom_up_attention_config
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    config = get_cfg()
    add_bottom_up_attention_config(config, True)
    config.merge_from_file(str(folder / MILVLG / "configs/caffe/test-caffe-r101.yaml"))
    config.merge_from_list([*keys, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.BUA.EXTRACT_FEATS", True])
    config.merge_from_list(["MODEL.BUA.EXTRACTOR.MIN_BOXES", REGIONS, "MODEL.BUA.EXTRACTOR.MAX_BOXES", REGIONS])
    model = build_model(config).eval()
    anchors = model.proposal_generator.anchor_generator.cell_anchors
    anchors.register_buffer(
        "0", AnchorGenerator([(64, 128, 256, 512)], (0.5, 1.0, 2.0), [16], rounded=True).cell_anchors_0
    )
    model.port = folder, config
    return model


def milvlg_outputs(model: nn.Module, pixels: np.ndarray, original: tuple[int, int], scale: float) -> dict[str, Tensor]:
    """What that model makes of pixels (h, w, 3) float32, `scale` times the `original` (height, width) and less the mean.

    `boxes`, `scores` and `classes` are those of its script's file: of the regions it keeps, in its order.
    """
    folder, config = model.port
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    inputs = {"image": image, "im_scale": scale}
    with torch.no_grad():
        boxes, *rest = model([inputs])
        grid = model.roi_heads.res5(model.backbone(image[None])["res4"])[0]
    probabilities, features, attributes = (part for (part,) in rest)
    proposals = boxes[0].tensor
    script = _file(folder, MILVLG, "utils/extract_utils.py")
    with tempfile.TemporaryDirectory() as out:
        shape = np.empty(original)
        args = types.SimpleNamespace(output_dir=out)
        script.save_roi_features(args, config, "a.jpg", shape, inputs, [proposals], *rest)
        with np.load(Path(out) / "a.npz", allow_pickle=True) as file:
            kept, info = torch.from_numpy(file["bbox"]), file["info"].item()
    return {
        "proposals": proposals,
        "features": features,
        "probabilities": probabilities[:, 1:],
        "attributes": attributes[:, 1:],
        "grid": grid,
        "boxes": kept,
        "scores": torch.from_numpy(info["objects_conf"]),
        "classes": torch.from_numpy(info["objects_id"]),
    }


def add_attributes(model: nn.Module, port: str, folder: Path, count: int = 400) -> Callable[[Tensor], Tensor]:
    """Give detectron2's model the attribute head of a port's weights: region features (P, D) -> probabilities (P, `count`).

    grid-feats-vqa's head is that of bottom-up-attention.pytorch, which took it over word for word.
    """
    own = model.roi_heads.box_predictor
    width, classes = own.cls_score.in_features, own.cls_score.out_features - 1
    if port == AIRSPLAY:
        code = _file(folder, AIRSPLAY, "detectron2/modeling/roi_heads/fast_rcnn.py")
        head = code.FastRCNNOutputLayers(width, classes, False, use_attr=True, num_attrs=count)
        head.cls_score, head.bbox_pred = own.cls_score, own.bbox_pred
        for name in ("cls_embedding", "fc_attr", "attr_score"):
            own.add_module(name, getattr(head, name))
        # As in its notebook: the last of the logits, "none", is left out.
        return lambda x: head(x)[1][:, :-1].softmax(-1)
    _import_milvlg(folder)
    from bua.d2 import add_attribute_config
    from bua.d2.modeling.roi_heads import AttributePredictor
    from detectron2.config import get_cfg

    config = get_cfg()
    add_attribute_config(config)
    config.MODEL.ROI_HEADS.NUM_CLASSES, config.MODEL.ROI_ATTRIBUTE_HEAD.NUM_CLASSES = classes, count
    model.roi_heads.attribute_predictor = AttributePredictor(config, width)
    # As in its script: the object may be the background.
    return lambda x: model.roi_heads.attribute_predictor(x, own.cls_score(x).argmax(1)).softmax(-1)


def resized(image: np.ndarray, mean: tuple[float, ...], folder: Path) -> tuple[np.ndarray, float]:
    """bottom-up-attention.pytorch's own input from an image (H, W, 3) uint8 BGR: (h, w, 3) float32 less the mean, and the scale."""
    _import_milvlg(folder)
    blob = _file(folder, MILVLG, "utils/extract_utils.py").get_image_blob(image, list(mean))
    return blob["image"].permute(1, 2, 0).numpy(), blob["im_scale"]
