"""3SHNet: images and captions into one space, where the inner product of two embeddings is their similarity."""

from __future__ import annotations

from torch import Tensor, nn

from model.encoders import ImageEncoder, TextEncoder


class ThreeSHNet(nn.Module):
    """The image and the text encoder side by side; `model.checkpoint` builds and loads them."""

    def __init__(self, image: ImageEncoder, text: TextEncoder) -> None:
        super().__init__()
        self.image = image
        self.text = text

    def encode_images(
        self, visual: Tensor, lengths: Tensor, seg_maps: Tensor, category_onehots: Tensor, seg_features: Tensor
    ) -> Tensor:
        """Embed images.

        Args:
            visual: (B, K, D) floats, visual tokens (regions or grid cells), the first `lengths[i]` of image i valid. In
                training mode the batch statistics include the padding, which should be zeros.
            lengths: (B,) integers, 0 <= lengths <= K; best in host memory, to save a device synchronisation.
            seg_maps: (B, H, W) integers, class numbers in COCO order as stored (255 = void); 64 x 64 in the reference.
            category_onehots: (B, C), 1 where the category is present.
            seg_features: (B, C, h, w) floats, 7 x 7 in the reference.

        Returns:
            (B, E) float32, L2-normalised.
        """
        return self.image(visual, lengths, seg_maps, category_onehots, seg_features)

    def encode_captions(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Embed captions.

        Args:
            token_ids: (B, T) integers, [CLS] ... [SEP], padded with 0.
            lengths: (B,) integers, valid tokens of each; best in host memory.

        Returns:
            (B, E) float32, L2-normalised.
        """
        return self.text(token_ids, lengths)

    def forward(
        self,
        visual: Tensor,
        lengths: Tensor,
        seg_maps: Tensor,
        category_onehots: Tensor,
        seg_features: Tensor,
        token_ids: Tensor,
        token_lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Both embeddings of a batch of pairs, so that one call passes through wrappers (processes, compilation)."""
        images = self.image(visual, lengths, seg_maps, category_onehots, seg_features)
        return images, self.text(token_ids, token_lengths)
