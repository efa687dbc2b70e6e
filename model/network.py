"""Start here: what every retrieval network is. `three_shnet.py` is the paper's.

Images and captions are encoded apart, and `similarity` compares what came out. Training, evaluation and everything after
know a network by this class alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from model.layers import at_least_single, factor_type


class RetrievalNetwork(nn.Module):
    """An image side and a text side.

    A network of another kind is a file with one subclass, in which stand:

        needs: what it reads of an image, ("visual",) or ("visual", "panoptic"). Written out, because rules read it without
            running the file.
        scores: "vectors": an image and a caption are a vector each, and compared by inner product. "pairs": they are sets of
            vectors, and `similarity` scores pairs of them; `forward` then gives each side as (embeddings, lengths).
            Written out likewise.
        Sizes: frozen dataclass of the image side's sizes, stored beside the weights. `img_dim` (width D of a visual token)
            and `embed_size` (width E of an embedding) are among them, and `num_categories` if it reads panoptic features.
        ImageEncoder: the image side's module: made from `Sizes`, which it keeps as `sizes`; called with
            visual (B, K, D) floats, valid (B, K) bool, lengths (B,) int64 in host memory, and for "panoptic"
            seg_maps (B, H, W), category_onehots (B, C) and seg_features (B, C, h, w).
    """

    needs: ClassVar[tuple[str, ...]]
    scores: ClassVar[str] = "vectors"
    Sizes: ClassVar[type]
    ImageEncoder: ClassVar[type[nn.Module]]

    def __init__(self, image: nn.Module, text: nn.Module) -> None:
        """image: an `ImageEncoder`. text: a `model.text.TextEncoder`, or a module with its methods."""
        super().__init__()
        self.image = image
        self.text = text

    def encode_images(self, visual: Tensor, lengths: Tensor, *panoptic: Tensor) -> Tensor:
        """Embed images.

        Args:
            visual: (B, K, D) floats, visual tokens (regions or grid cells), the first `lengths[i]` of image i valid. In
                training mode batch statistics include the padding, which should be zeros.
            lengths: (B,) integers, 0 <= lengths <= K; best in host memory, to save a device synchronisation.
            panoptic: the arrays of `seg_maps`, `category_onehots` and `seg_features`, where the network `needs` them.

        Returns:
            (B, E) float32, L2-normalised; float64 of a network in float64.
        """
        (visual,), panoptic = self._here(visual, dtype=self._factor_type()), self._here(*panoptic)
        return self.image(visual, *self._mask(lengths, visual), *panoptic)

    def encode_captions(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Embed captions.

        Args:
            token_ids: (B, T) integers, [CLS] ... [SEP], padded with 0.
            lengths: (B,) integers, valid tokens of each; best in host memory.

        Returns:
            (B, E) float32, L2-normalised; float64 of a network in float64.
        """
        (token_ids,) = self._here(token_ids)
        return self.text(token_ids, *self._mask(lengths, token_ids))

    def forward(self, *inputs: Tensor) -> tuple[Any, Any]:
        """Both sides of a batch of pairs, so that one call passes through wrappers (processes, compilation).

        Args:
            inputs: those of `encode_images`, then those of `encode_captions`.

        Returns:
            What each side gives `similarity`: a tensor, or a tuple of several. Their first dimension is the batch.
        """
        *images, token_ids, lengths = inputs
        return self.encode_images(*images), self.encode_captions(token_ids, lengths)

    def similarity(self, images: Tensor, captions: Tensor) -> Tensor:
        """Scores of images (N, E) and captions (M, E), all pairs: (N, M), float32 at least. The inner product."""
        return at_least_single(images) @ at_least_single(captions).T

    def parameter_groups(self, text_factor: float) -> list[dict[str, Any]]:
        """The parameters that are trained, as an optimiser's groups with a `factor` of the learning rate each.

        Those that a text encoder was published with learn at `text_factor`. What is frozen (`requires_grad` off, beside
        the reason in its module) is in no group.
        """
        published = {id(parameter) for parameter in self.text.published_parameters()}
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if id(p) not in published], "factor": 1.0},
            {"params": [p for p in trained if id(p) in published], "factor": text_factor},
        ]
        return [group for group in groups if group["params"]]

    def config(self) -> dict[str, Any]:
        """The sizes from which `model.build` makes a network of the same shape: sections `image` and `text`."""
        return {"image": asdict(self.image.sizes), "text": self.text.config()}

    def compile_layers(self) -> None:
        """Use torch.compile where there is something to fuse; names in the state stay.

        That is in the text encoder: image sides are large matrix products, sorting and attention.
        """
        self.text.compile_layers()

    @property
    def device(self) -> torch.device:
        """Where it computes; inputs may lie anywhere."""
        return next(self.parameters()).device

    # The one place where inputs move to the device.

    def _here(self, *inputs: Tensor, dtype: torch.dtype | None = None) -> Sequence[Tensor]:
        """Inputs on the network's device, floats in its precision or in `dtype`.

        Moved as stored, widened there: half the bytes, and none of the copies waits for the one before.
        """
        weight = next(self.parameters())
        moved = [part.to(weight.device, non_blocking=True) for part in inputs]
        return [part.to(dtype or weight.dtype) if part.is_floating_point() else part for part in moved]

    def _factor_type(self) -> torch.dtype:
        """Of what products read: rounded once, instead of by each layer."""
        weight = next(self.parameters())
        return factor_type(weight.device, weight.dtype)

    def _mask(self, lengths: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Which places of `items` (B, L, ...) are valid, (B, L) bool on their device; and the lengths in host memory."""
        lengths = lengths.cpu().long()
        valid = torch.arange(items.shape[1]) < lengths[:, None]
        return valid.to(items.device, non_blocking=True), lengths
