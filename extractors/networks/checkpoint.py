"""Weights in: detectron2's `.pkl` / `.pth`, UPSNet's and VSE-infinity's `.pth` and our `.safetensors`, with every key accounted for."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.checkpoints import refusal
from core.files import atomic_path
from core.kinds import other_kind
from extractors.networks.vse_grid import GridCNN

# Keys detectron2 writes that hold no weights: normalisation constants, fixed by the architecture, and a counter.
_DERIVED = ("pixel_mean", "pixel_std", "num_batches_tracked")


class _NumpyUnpickler(pickle.Unpickler):
    """Unpickles containers of numpy arrays and nothing else, so that a hostile file cannot run code."""

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which a weights file has no use for")
        return super().find_class(module, name)


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors by name from a weights file, names as in the file; no code in the file is run.

    Args:
        path: `.safetensors`, detectron2's or Caffe2's `.pkl` (numpy arrays) or `.pth` (torch tensors).

    Raises:
        ValueError: for another kind of file or a file that holds anything but weights.
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    if what := other_kind(path):
        raise ValueError(f"{path} is {what}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file or is cut off: {error}; copy it again") from error
    if path.suffix == ".pkl":
        with open(path, "rb") as file:
            try:
                # Caffe2's and detectron2's pickles were written by Python 2 as well: latin1 keeps array bytes intact.
                content = _NumpyUnpickler(file, encoding="latin1").load()
            except Exception as error:  # damaged pickles raise errors of every kind
                raise ValueError(f"{path} is not a plain weights pickle or is cut off: {error}") from error
    elif path.suffix in (".pth", ".pt"):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files raise errors of every kind
            what = refusal(error)
            if "argparse.Namespace" in what:
                what += (
                    " (checkpoints of retrieval models do; of VSE-infinity's the architectures vse_grid_* read the CNN)"
                )
            raise ValueError(f"{path} {what}") from error
    else:
        raise ValueError(f"{path}: weights are read from .safetensors, .pkl or .pth, not {path.suffix or 'no suffix'}")
    for part in ("model", "blobs"):  # detectron2's and Detectron's place for the weights among other things
        if isinstance(content, dict) and isinstance(content.get(part), dict):
            content = content[part]
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    state = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            state[key] = value
        elif isinstance(value, np.ndarray) and value.dtype != object:
            state[key] = torch.from_numpy(np.ascontiguousarray(value))
    if not state:
        raise ValueError(f"{path} holds no tensors")
    return state


def load_checkpoint(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a weights file into `module`, converting names, layouts and dtypes to the module's.

    Read are detectron2's files; UPSNet's; of VSE-infinity's grid checkpoints the CNN; both conversions of the Caffe bottom-up-attention weights; and files with Caffe2's names,
    of whole detectors or of ImageNet bodies. Of the latter the classifier is left out, so they fit a body:
    `load_checkpoint(network.backbone.bottom_up, "R-50.pkl")`.

    Raises:
        ValueError: listing every missing, unexpected and wrongly shaped key, or naming the architecture the file is for.
        FileNotFoundError: if there is no file.
    """
    own = {k: v for k, v in module.state_dict().items() if not any(part in k for part in _DERIVED)}
    if isinstance(module, GridCNN) and Path(path).suffix != ".safetensors":
        if not Path(path).is_file():
            raise FileNotFoundError(f"no weights file at {path}")
        state = module.read_cnn(path)
    else:
        state = _converted(read_state(path), module, own, path)
    optional = {k for k in own if ".cell_anchors_" in k}
    missing = sorted(own.keys() - state.keys() - optional)
    unexpected = sorted(state.keys() - own.keys())
    shapes = [
        f"{k}: file {tuple(state[k].shape)}, network {tuple(own[k].shape)}"
        for k in sorted(own.keys() & state.keys())
        if state[k].shape != own[k].shape
    ]
    if missing or unexpected or shapes:
        parts = [
            f"{len(keys)} {what}: {', '.join(keys)}"
            for what, keys in (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", shapes))
            if keys
        ]
        raise ValueError(
            f"the weights in {path} do not fit the network; check that `architecture` and `weights` belong together\n"
            + "\n".join(parts)
        )
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        raise ValueError(
            f"{path} holds values that are not finite, in {', '.join(broken[:3])}: it is damaged; copy it again"
        )
    for key, value in state.items():
        own[key].copy_(value)


def _converted(
    state: dict[str, Tensor], module: nn.Module, own: dict[str, Tensor], path: str | os.PathLike[str]
) -> dict[str, Tensor]:
    """A file's tensors under the module's names and in its layout."""
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    if any(re.match(r"(conv1_w|res\d_\d+_branch)", key) for key in state):
        return _matched(_from_caffe2(state), own)
    if any(key.startswith("resnet_backbone.") for key in state):
        state = _from_upsnet(state)
    inclusive = getattr(getattr(module, "meta", None), "inclusive", None)
    if "roi_heads.box_predictor.cls_embed.weight" in state:
        if inclusive is False:
            raise ValueError(
                f"{path} is bottom-up-attention.pytorch's conversion of the Caffe weights; "
                "its architecture is vg_r101_c4_caffe_milvlg"
            )
        state = _from_milvlg(state)
    elif "roi_heads.box_predictor.cls_embedding.weight" in state:
        if inclusive:
            raise ValueError(
                f"{path} is py-bottom-up-attention's conversion of the Caffe weights; "
                "its architecture is vg_r101_c4_caffe_attr"
            )
        state = _renamed(state, _AIRSPLAY_NAMES)
    state = {re.sub(r"cell_anchors\.(\d)$", r"cell_anchors_\1", key): value for key, value in state.items()}
    return {k: v for k, v in state.items() if k in own or not any(part in k for part in (*_DERIVED, "cell_anchors"))}


def _renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """With prefixes replaced."""
    result = {}
    for key, value in state.items():
        prefix = next((p for p in names if key.startswith(p)), "")
        result[names.get(prefix, "") + key.removeprefix(prefix)] = value
    return result


_PREDICTOR, _ATTRIBUTES = "roi_heads.box_predictor.", "roi_heads.attribute_predictor."
_AIRSPLAY_NAMES = {
    _PREDICTOR + "cls_embedding.": _ATTRIBUTES + "obj_embed.",
    _PREDICTOR + "fc_attr.": _ATTRIBUTES + "fc.0.",
    _PREDICTOR + "attr_score.": _ATTRIBUTES + "attr_score.",
}
_MILVLG_NAMES = {
    _PREDICTOR + "cls_embed.": _ATTRIBUTES + "obj_embed.",
    _PREDICTOR + "attr_linear1.": _ATTRIBUTES + "fc.0.",
    _PREDICTOR + "attr_linear2.": _ATTRIBUTES + "attr_score.",
}


def _from_milvlg(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Background and "no attribute" go from first to last, the two-way objectness becomes a logit.

    softmax(background, object)[object] = sigmoid(object - background), so the difference of the rows says the same.
    """
    state = _renamed(state, _MILVLG_NAMES)
    for key, value in state.items():
        if key.startswith((_PREDICTOR + "cls_score.", _ATTRIBUTES + "obj_embed.", _ATTRIBUTES + "attr_score.")):
            state[key] = torch.cat([value[1:], value[:1]])
        elif key.startswith(_PREDICTOR + "bbox_pred."):
            state[key] = value[4:]
        elif ".objectness_logits." in key:
            background, objects = value.chunk(2)
            state[key] = objects - background
    return state


_UPSNET_NAMES = (
    (r"^resnet_backbone\.conv1\.", "backbone.bottom_up.stem."),
    (r"^resnet_backbone\.res(\d)\.layers\.", r"backbone.bottom_up.res\1."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"^fpn\.fpn_p(\d)_1x1\.", r"backbone.fpn_lateral\1."),
    (r"^fpn\.fpn_p(\d)\.", r"backbone.fpn_output\1."),
    (r"^fpn\.fpn_gap\.", "backbone.fpn_gap."),
    (r"^rpn\.conv_proposal\.0\.", "proposal_generator.rpn_head.conv."),
    (r"^rpn\.cls_score\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"^rpn\.bbox_pred\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^rcnn\.fc6\.0\.", "roi_heads.box_head.fc1."),
    (r"^rcnn\.fc7\.0\.", "roi_heads.box_head.fc2."),
    (r"^rcnn\.(cls_score|bbox_pred)\.", _PREDICTOR + r"\1."),
    (r"^mask_branch\.mask_conv(\d)\.0\.", r"roi_heads.mask_head.mask_fcn\1."),
    (r"^mask_branch\.mask_deconv1\.0\.", "roi_heads.mask_head.deconv."),
    (r"^mask_branch\.mask_score\.", "roi_heads.mask_head.predictor."),
    (r"^fcn_head\.fcn_subnet\.conv\.(\d)\.0\.conv(_offset)?\.", r"sem_seg_head.conv\1\2."),
    (r"^fcn_head\.score\.", "sem_seg_head.predictor."),
)


def _from_upsnet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """UPSNet's names -> ours; background goes from first to last, and goes where it is of no use (boxes, masks)."""
    result = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in _UPSNET_NAMES:
            name = re.sub(pattern, replacement, name)
        if name.startswith(_PREDICTOR + "cls_score."):
            value = torch.cat([value[1:], value[:1]])
        elif name.startswith(_PREDICTOR + "bbox_pred."):
            value = value[4:]
        elif name.startswith("roi_heads.mask_head.predictor."):
            value = value[1:]
        result[name] = value
    return result


# Caffe2's blob names, after "_" has become ".", in the order they are replaced.
_CAFFE2_NAMES = (
    (r"\.b$", ".bias"),
    (r"\.w$", ".weight"),
    (r"\b(bn|gn)\.(s|gamma)$", "norm.weight"),
    (r"\b(bn|gn)\.(bias|beta)$", "norm.bias"),
    (r"\bbn\.(rm|running\.mean)$", "norm.running_mean"),
    (r"\bbn\.(riv|running\.var)$", "norm.running_var"),
    (r"^res\.conv1\.", "conv1."),
    (r"^conv1\.", "stem.conv1."),
    (r"\.branch1\.", ".shortcut."),
    (r"\.branch2a\.", ".conv1."),
    (r"\.branch2b\.", ".conv2."),
    (r"\.branch2c\.", ".conv3."),
    # With a pyramid, Detectron shares the proposal head of level 2.
    (r"^conv\.rpn(\.fpn2)?\.", "rpn_head.conv."),
    (r"^rpn\.bbox\.pred(\.fpn2)?\.", "rpn_head.anchor_deltas."),
    (r"^rpn\.cls\.logits(\.fpn2)?\.", "rpn_head.objectness_logits."),
    (r"^bbox\.pred\.", "box_predictor.bbox_pred."),
    (r"^cls\.score\.", "box_predictor.cls_score."),
    (r"^fc6\.", "box_head.fc1."),
    (r"^fc7\.", "box_head.fc2."),
    (r"^fpn\.inner\.res(\d)\.\d+\.sum(\.lateral)?\.", r"fpn_lateral\1."),
    (r"^fpn\.res(\d)\.\d+\.sum\.", r"fpn_output\1."),
    (r"^\.\[mask\]\.fcn(\d)\.", r"mask_head.mask_fcn\1."),
    (r"^mask\.fcn\.logits\.", "mask_head.predictor."),
    (r"^conv5\.mask\.", "mask_head.deconv."),
)


def _from_caffe2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Caffe2's names and layouts -> the ends of detectron2's names; without momenta and the ImageNet classifier."""
    result = {}
    for key, value in state.items():
        if key.endswith("_momentum") or key.startswith(("fc1000_", "pred_")):
            continue
        name = key.replace("_", ".")
        for pattern, replacement in _CAFFE2_NAMES:
            name = re.sub(pattern, replacement, name)
        if name.startswith("box_predictor.cls_score."):
            value = torch.cat([value[1:], value[:1]])  # background first -> last
        elif name.startswith(("box_predictor.bbox_pred.", "mask_head.predictor.")):
            value = value[4 if "bbox" in name else 1 :]  # neither is of use for the background
        result[name] = value
    return result


def _matched(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each of the network's names gets the tensor whose name is its longest end; the rest keep their names.

    Caffe2 folded the statistics into weight and bias: they become 0 and 1, as in detectron2.
    """
    result, used = {}, {}
    for key in own:
        parts = key.split(".")
        end = next((e for i in range(len(parts)) if (e := ".".join(parts[i:])) in state), None)
        if end is None:
            if key.endswith("norm.running_mean"):
                result[key] = torch.zeros_like(own[key])
            elif key.endswith("norm.running_var"):
                result[key] = torch.ones_like(own[key])
        elif end in used:
            raise ValueError(f"{end} of the weights file could be {key} or {used[end]}: load the parts one by one")
        else:
            result[key], used[end] = state[end], key
    return result | {key: value for key, value in state.items() if key not in used}


def save_checkpoint(module: nn.Module, path: str | os.PathLike[str], metadata: dict[str, str] | None = None) -> None:
    """Write `module`'s weights as half-precision safetensors (a quarter of a published `.pkl` with momentum).

    Anchors stay in single precision: half is too coarse for coordinates.
    """
    from safetensors.torch import save_file

    state = {
        k: v.detach().to(torch.float16 if v.is_floating_point() and "cell_anchors" not in k else v.dtype).contiguous()
        for k, v in module.state_dict().items()
        if not any(part in k for part in _DERIVED)
    }
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata=metadata)
