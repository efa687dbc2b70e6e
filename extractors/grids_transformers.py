"""Grid features from any vision backbone of Hugging Face's transformers: patch tokens, or the last map of a hierarchical network.

Images are brought to a backbone by its checkpoint's own processor, on Pillow. What is kept is the `last_hidden_state` without class,
distillation and register tokens: DINOv2, SigLIP, CLIP's vision side, ViT, DeiT; the last map of Swin, ConvNeXt, ResNet. The package is
imported only when this engine is asked for.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from core.console import UserError
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
        self._resizes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        (blank,) = self.grid(torch.zeros(1, 3, 48, 64))
        self.grid_size = blank.shape[0]

    @torch.inference_mode()
    def grid(self, pixels: Tensor) -> Tensor:
        """The maps (B, D, h, w) of upright images of one size, RGB 0..255, (B, 3, H, W) on the CPU."""
        images = [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).to(torch.uint8).numpy()]
        inputs = self.processor(images=images, return_tensors="pt").to(self.model.device)
        options = {}
        side = getattr(self.model.config, "image_size", None)
        if self._resizes and isinstance(side, int) and inputs["pixel_values"].shape[-2:] != (side, side):
            options["interpolate_pos_encoding"] = True
        states = self.model(**inputs, **options).last_hidden_state
        return states if states.ndim == 4 else self._map(states, inputs["pixel_values"].shape[-2:])

    def _map(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, N, D) tokens of images of `size` -> (B, D, h, w), without those that are no patch."""
        config, count = self.model.config, tokens.shape[1]
        patch = getattr(config, "patch_size", 1)
        patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
        rows, columns = (pixels // cell for pixels, cell in zip(size, patch, strict=True))
        while rows * columns > count and rows * columns > 1:  # a hierarchical network merges four cells into one
            rows, columns = -(-rows // 2), -(-columns // 2)
        before = count - rows * columns
        known = (0, 1, 2, 1 + getattr(config, "num_register_tokens", 0))
        if before not in known or getattr(config, "num_detection_tokens", 0):
            raise UserError(
                f"{_PLACE}: what the {config.model_type!r} model {self.name} makes of an image is no map ({count} tokens of "
                f"{size[0]} x {size[1]} pixels); choose a vision backbone"
            )
        return tokens[:, before:].transpose(1, 2).unflatten(2, (rows, columns))


def load_backbone(folder: Path, name: str) -> VisionBackbone:
    """The model and processor of a checkpoint folder; of one that reads text too, its vision side. `name`: in messages.

    Raises:
        UserError: no vision backbone, or weights that do not fit.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        config = getattr(config, "vision_config", config)
        model, report = AutoModel.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise UserError(f"{_PLACE}: {name} cannot be loaded by transformers: {error}") from error
    # The pooled vector is not read, and many checkpoints come without its weights.
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key and ".head." not in f".{key}")
    if missing:
        raise UserError(f"{_PLACE}: the weights of {name} do not fit its config.json; missing: {', '.join(missing)}")
    try:
        return VisionBackbone(model.eval(), processor, name)
    except UserError:
        raise
    except Exception as error:  # what models raise that want other inputs than images
        raise UserError(
            f"{_PLACE}: the {model.config.model_type!r} model {name} does not read images alone ({type(error).__name__}: {error}); "
            "choose a vision backbone"
        ) from error


def transformers_runner(*, weights: str, revision: str | None = None) -> TransformersRunner:
    """The runner of a checkpoint: a name on the hub or a local folder."""
    require_transformers()
    folder = resolve_checkpoint(weights, revision, feature="grids")
    return runner_of(load_backbone(folder, weights), folder, weights)
