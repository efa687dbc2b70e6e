"""The second engine for panoptic segmentation: Mask2Former, MaskFormer and OneFormer checkpoints by Hugging Face's transformers.

Images are resized by the checkpoint's own processor, on Pillow as for its published results, and segments are merged by
its own post-processing. The package is imported only when this engine is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from catalog.categories import BY_NAME, NUM_CATEGORIES
from core.console import UserError, first_line
from core.features import Feature
from core.files import digest_file, digest_json
from core.hub import fetch, why_not
from extractors.images import ImageBatch, InputSpec
from extractors.loading import EngineRunner
from extractors.networks.rcnn import Meta
from extractors.panoptic import Segments, map_segments
from extractors.settings import folder_faults

MODELS = ("mask2former", "maskformer", "oneformer")
# Images as they are in their files: the processor resizes.
AS_IN_THE_FILE = InputSpec(0, 1, "RGB", mean=(0.0,) * 3, std=(1.0,) * 3, divisibility=1)
# Mask2Former's post-processing in transformers brings all mask logits to this size first; the soft map follows it.
_MASK2FORMER_SIZE = (384, 384)
_DESCRIPTIONS = ("*.json", "*.txt")


def require_transformers() -> None:
    """UserError: the package is not installed."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"engine: transformers needs the package transformers, which cannot be imported here ({error}). Install it:\n"
            "  pip install --group transformers\n"
            "in this repository (pip 25.1 or newer, or uv pip), or let Snakemake make the environment envs/transformers.yaml "
            "with --sdm conda"
        ) from error


def resolve_checkpoint(weights: str, revision: str | None = None, *, feature: Feature = "panoptic") -> Path:
    """The local folder of a checkpoint: `weights` itself if it is a folder, else fetched from the hub (or its cache).

    Raises:
        UserError: neither a folder nor to be had from the hub, or without weights.
    """
    folder = Path(weights)
    if not folder.is_dir():
        try:
            folder = fetch(weights, revision=revision, descriptions=_DESCRIPTIONS)
        except Exception as error:  # the hub's client raises its own, httpx's and the system's errors
            raise UserError(
                f"features.{feature}.weights: {weights!r} is not a local folder and could not be fetched from the Hugging "
                f"Face hub ({type(error).__name__}: {first_line(error)}); correct the name, or give a folder with config.json, "
                "preprocessor_config.json and model.safetensors"
            ) from error
    if faults := list(folder_faults(folder)):
        raise UserError(f"features.{feature}.weights: {'; '.join(faults)}")
    return folder


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def checkpoint_digest(folder: Path) -> str:
    """sha256 over the names and digests of a checkpoint's weights and descriptions."""
    files = [path for pattern in _DESCRIPTIONS for path in folder.glob(pattern)] + _weight_files(folder)
    return digest_json({path.name: digest_file(path) for path in files})


def category_order(id2label: Mapping[int, str], weights: str) -> list[int]:
    """Our category index of each of a checkpoint's classes, by name.

    Raises:
        UserError: listing the classes that are no COCO panoptic category, or one a second time.
    """
    names = [id2label[i].strip().lower() for i in range(len(id2label))]
    wrong = [f"{i} {name!r}" for i, name in enumerate(names) if name not in BY_NAME or name in names[:i]]
    if wrong:
        raise UserError(
            f"{len(wrong)} of the {len(names)} classes of {weights} are not (or not once) among the 133 COCO panoptic "
            f"categories: {', '.join(wrong)}; choose a checkpoint trained on COCO panoptic, such as "
            "facebook/mask2former-swin-tiny-coco-panoptic"
        )
    return [BY_NAME[name].index for name in names]


class UniversalSegmenter(nn.Module):
    """A model with its processor.

    Args:
        model: in eval mode. processor: turns images into its inputs and its outputs into segments.
        categories: our index of each of its classes. threshold: least class probability of a segment.
    """

    def __init__(self, model: nn.Module, processor: Any, categories: list[int], threshold: float) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.categories = categories
        self.threshold = threshold
        self.meta = Meta(input=AS_IN_THE_FILE)

    @torch.inference_mode()
    def panoptic(
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]], original_sizes: Sequence[tuple[int, int]]
    ) -> list[Segments]:
        """Segment upright images of one size, whose probabilities are `soft_map`'s.

        Args:
            pixels: (B, 3, H, W) RGB 0..255, on the CPU. sizes, original_sizes: B times (H, W).
        """
        images = [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).to(torch.uint8).numpy()]
        tasks = {"task_inputs": ["panoptic"] * len(images)} if self.model.config.model_type == "oneformer" else {}
        inputs = self.processor(images=images, return_tensors="pt", **tasks).to(self.model.device)
        outputs = self.model(**inputs)
        mask_size = _MASK2FORMER_SIZE if self.model.config.model_type == "mask2former" else None
        results = self.processor.post_process_panoptic_segmentation(
            outputs,
            threshold=self.threshold,
            # Categories are the same with fused segments, but the function then gives some of them another one's id.
            label_ids_to_fuse=set(),
            target_sizes=list(original_sizes),
        )
        return [
            Segments(
                map_segments(
                    result["segmentation"].cpu().numpy(),
                    {segment["id"]: self.categories[segment["label_id"]] for segment in result["segments_info"]},
                ),
                partial(soft_map, logits, masks, size, self.categories, mask_size),
            )
            for result, logits, masks, size in zip(
                results, outputs.class_queries_logits, outputs.masks_queries_logits, original_sizes, strict=True
            )
        ]


@torch.inference_mode()
def soft_map(
    logits: Tensor,
    masks: Tensor,
    size: tuple[int, int],
    categories: list[int],
    mask_size: tuple[int, int] | None = None,
) -> Tensor:
    """Class probabilities of every pixel: the sum over queries of class probability times mask (Cheng et al. 2021, 2022).

    Args:
        logits: (Q, C + 1) of the classes, "no object" last. masks: (Q, h, w) logits. categories: our index of each class.
        mask_size: what the mask logits are brought to first; None leaves them.

    Returns:
        (133, H, W) float32 for `size` (H, W). Several queries may claim a pixel: it can sum to more than 1.
    """
    masks = masks.float()
    if mask_size is not None:
        masks = F.interpolate(masks[None], size=mask_size, mode="bilinear", align_corners=False)[0]
    scores = torch.einsum("qc,qhw->chw", logits.float().softmax(dim=-1)[:, :-1], masks.sigmoid())
    soft = scores.new_zeros((NUM_CATEGORIES, *size))
    soft[categories] = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
    return soft


class TransformersRunner(EngineRunner):
    """Runs a `UniversalSegmenter`, whose processor takes images on the CPU."""

    def pixels(self, batch: ImageBatch) -> Tensor:
        """An `ImageBatch`'s pixels as they are."""
        return batch.pixels


def load_segmenter(folder: Path, weights: str, threshold: float) -> UniversalSegmenter:
    """The model and processor of a checkpoint folder; `weights` is its name in messages.

    Raises:
        UserError: another kind of model, other classes than COCO's, or weights that do not fit.
    """
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForUniversalSegmentation,
        AutoTokenizer,
        OneFormerProcessor,
    )

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.model_type not in MODELS:
            raise UserError(f"{weights} is a {config.model_type!r} model; choose a checkpoint of {', '.join(MODELS)}")
        categories = category_order(config.id2label, weights)
        model, report = AutoModelForUniversalSegmentation.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True
        )
        oneformer = config.model_type == "oneformer"
        # The class list that OneFormer's processor would fetch from the hub serves training only.
        unneeded = {"class_info_file": None} if oneformer else {}
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False, **unneeded)
        if oneformer:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            processor = OneFormerProcessor(processor, tokenizer, task_seq_length=config.task_seq_len)
    except UserError:
        raise
    except Exception as error:  # the library raises nearly anything on what it cannot read
        raise UserError(f"{weights} cannot be loaded by transformers ({why_not(error)})") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise UserError(f"the weights of {weights} do not fit its config.json; missing: {missing}")
    return UniversalSegmenter(model.eval(), processor, categories, threshold)


def runner_of(network: nn.Module, folder: Path, weights: str) -> TransformersRunner:
    """The runner of a network that was loaded from a checkpoint folder; `weights` is its name in what is recorded."""
    import transformers

    runner = TransformersRunner(network, checkpoint_digest(folder))
    runner.attributes = {
        "engine": "transformers",
        "model": network.model.config.model_type,
        "weights": weights,
        **({} if Path(weights).is_dir() else {"revision": folder.name}),  # of the hub
        "transformers": transformers.__version__,
    }
    return runner


def transformers_runner(*, weights: str, revision: str | None = None, threshold: float = 0.5) -> TransformersRunner:
    """The runner of a checkpoint: a name on the hub or a local folder."""
    require_transformers()
    folder = resolve_checkpoint(weights, revision)
    return runner_of(load_segmenter(folder, weights, threshold), folder, weights)
