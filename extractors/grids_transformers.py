"""Grid features from any vision backbone of Hugging Face's transformers: patch tokens, or the last map of a hierarchical network.

Images are brought to a backbone by its checkpoint's own processor, on Pillow. What is kept is the `last_hidden_state` without class,
distillation and register tokens: DINOv2, SigLIP, CLIP's vision side, ViT, DeiT; the last map of Swin, ConvNeXt, ResNet. The package is
imported only when this engine is asked for.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from core.console import UserError, first_line
from core.hub import why_not
from core.parameters import left_over
from extractors.networks.rcnn import Meta
from extractors.panoptic_transformers import (
    AS_IN_THE_FILE,
    TransformersRunner,
    require_transformers,
    resolve_checkpoint,
    runner_of,
)

_PLACE = "features.grids.weights"


class VisionBackbone(nn.Module):
    """A model with its processor.

    Args:
        model: in eval mode. processor: turns images into its inputs. name: of its checkpoint, for messages.
    """

    grid_stride = None  # the processor decides what of an image is seen, and all of the map is that

    def __init__(self, model: nn.Module, processor: Any, name: str) -> None:
        super().__init__()
        self.model, self.processor, self.name = model, processor, name
        self.meta = Meta(input=AS_IN_THE_FILE)
        self._options = inspect.signature(model.forward).parameters
        if "noise" in self._options:  # of masked autoencoders, whose published share would be left out at random
            model.config.mask_ratio = 0.0
        blank, again = (self.grid(torch.zeros(1, 3, 48, 64))[0] for _ in range(2))
        if not torch.isfinite(blank).all():
            raise UserError(
                f"{_PLACE}: {name} gives values that are not finite: its weights or config.json are damaged; copy it again"
            )
        if not torch.equal(blank, again):
            raise UserError(
                f"{_PLACE}: the {model.config.model_type!r} model {name} makes something else of one image each time; choose another "
                "vision backbone"
            )
        self.grid_size = blank.shape[0]

    @torch.inference_mode()
    def grid(self, pixels: Tensor) -> Tensor:
        """The maps (B, D, h, w) of upright images of one size, RGB 0..255, (B, 3, H, W) on the CPU."""
        images = [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).to(torch.uint8).numpy()]
        inputs = self.processor(images=images, return_tensors="pt").to(self.model.device)
        if "spatial_shapes" in inputs:  # of patches in place of pixels, with padding behind them
            rows, columns = inputs["spatial_shapes"][0].tolist()
            return _as_map(self.model(**inputs).last_hidden_state[:, : rows * columns], rows, columns)
        size, options = inputs["pixel_values"].shape[-2:], {}
        side = getattr(self.model.config, "image_size", size)
        if "interpolate_pos_encoding" in self._options and tuple(size) != _pair(side):
            options["interpolate_pos_encoding"] = True
        if "noise" in self._options:  # tokens are sorted by it
            cells = math.prod(self._cells(size))
            options["noise"] = torch.arange(cells, device=self.model.device).float().repeat(len(images), 1)
        states = self.model(**inputs, **options).last_hidden_state
        return states if states.ndim == 4 else self._map(states, size)

    def _cells(self, size: tuple[int, int], *, padded: bool = False) -> tuple[int, int]:
        """Rows and columns of patches. padded: what is left of a patch at the border is one too."""
        config = self.model.config
        patch = _pair(getattr(config, "patch_stride", getattr(config, "patch_size", 1)))
        return tuple(-(-pixels // cell) if padded else pixels // cell for pixels, cell in zip(size, patch, strict=True))

    def _map(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, N, D) tokens of images of `size` -> (B, D, h, w), without those that are no patch."""
        config, count = self.model.config, tokens.shape[1]
        classes = getattr(config, "n_cls_tokens", 1)
        known = (0, 1, 2, classes, classes + getattr(config, "num_register_tokens", 0))
        for padded in (False, True):
            rows, columns = self._cells(size, padded=padded)
            while rows * columns > count and rows * columns > 1:  # a hierarchical network merges four cells into one
                rows, columns = -(-rows // 2), -(-columns // 2)
            before = count - rows * columns
            if before in known and not getattr(config, "num_detection_tokens", 0):
                return _as_map(tokens[:, before:], rows, columns)
        raise UserError(
            f"{_PLACE}: what the {config.model_type!r} model {self.name} makes of an image is no map ({count} tokens of "
            f"{size[0]} x {size[1]} pixels); choose a vision backbone"
        )


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _as_map(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """(B, rows * columns, D) -> (B, D, rows, columns)."""
    return tokens.transpose(1, 2).unflatten(2, (rows, columns))


def load_backbone(folder: Path, name: str) -> VisionBackbone:
    """The model and processor of a checkpoint folder; of one that reads text too, its vision side. `name`: in messages.

    Raises:
        UserError: no vision backbone, or weights that do not fit.
    """
    from transformers import AutoConfig, AutoImageProcessor

    try:
        whole = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, wrong = _loaded(folder, whole)
        processor = AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the library raises nearly anything on what it cannot read
        raise UserError(f"{_PLACE}: {name} cannot be loaded by transformers ({why_not(error)})") from error
    try:
        processor(images=[Image.new("RGB", (64, 48))], return_tensors="pt")
    except Exception as error:  # what processors raise whose settings contradict each other
        raise UserError(
            f"{_PLACE}: the processor of {name} cannot do what its preprocessor_config.json says ({type(error).__name__}: "
            f"{first_line(error)}); copy it again"
        ) from error
    for what, keys in wrong.items():
        if keys:
            raise UserError(
                f"{_PLACE}: the weights of {name} do not fit its config.json; {what}: {', '.join(sorted(keys)[:5])}; copy it again"
            )
    try:
        return VisionBackbone(model.eval(), processor, name)
    except UserError:
        raise
    except Exception as error:  # what models raise that want other inputs than images
        raise UserError(
            f"{_PLACE}: the {model.config.model_type!r} model {name} does not read images alone ({type(error).__name__}: {first_line(error)}); "
            "choose a vision backbone"
        ) from error


def _loaded(folder: Path, whole: Any) -> tuple[nn.Module, dict[str, list[str]]]:
    """The model of a configuration, or its vision side, and the keys of weights that do not fit.

    Some vision sides the library cannot make alone, or finds no weights for: those are taken from the whole model.
    """
    from transformers import AutoModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    config = getattr(whole, "vision_config", whole)
    whole._attn_implementation = None  # what it was run with elsewhere may not be here
    options = {"dtype": torch.float32, "local_files_only": True}
    # Not to load them anyway, but to be told which they are.
    options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
    tries = [one for one in ((config,) if config is whole else (config, whole)) if type(one) in MODEL_MAPPING]
    for one in tries or [config]:
        model, report = AutoModel.from_pretrained(folder, config=one, **options)
        over = left_over(model.state_dict(), report["unexpected_keys"], model.base_model_prefix)
        missing, others, prefix = report["missing_keys"], report["mismatched_keys"], ""
        if one is not config:
            model, prefix = model.vision_model, "vision_model."
        # The pooled vector is not read, and many checkpoints come without its weights.
        missing = [k for k in missing if k.startswith(prefix) and "pooler" not in k and ".head." not in f".{k}"]
        if not missing:
            break
    return model, {"missing": missing, "of another shape": [name for name, *_ in others], "of a layer too many": over}


def transformers_runner(*, weights: str, revision: str | None = None) -> TransformersRunner:
    """The runner of a checkpoint: a name on the hub or a local folder."""
    require_transformers()
    folder = resolve_checkpoint(weights, revision, feature="grids")
    return runner_of(load_backbone(folder, weights), folder, weights)
