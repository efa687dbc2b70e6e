"""grid-feats-vqa's grids: one `.pth` per image."""

from __future__ import annotations

import numpy as np

from core.kinds import other_kind
from exchange.formats.base import named_files
from exchange.formats.grids import GridReader, as_map


class PthReader(GridReader):
    """Tensors (1, D, h, w) or (1, h, w, D) in the folder `path`."""

    format = "pth"
    unit = ".pth file for"

    def open(self) -> str:
        """See `PerImageReader.open`."""
        self._files, digest = named_files(self.path, ".pth")
        return digest

    def load(self, row: int) -> np.ndarray:
        """See `GridReader.load`."""
        import torch

        file = self.find(row, self._files, "{}.pth")
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged and hostile files raise errors of every kind
            what = other_kind(file) or f"no file of tensors alone ({type(error).__name__})"
            raise ValueError(f"{file} is {what}") from error
        if not isinstance(content, torch.Tensor) or content.ndim not in (3, 4):
            raise ValueError(f"{file} holds no (1, D, h, w) tensor")
        if content.ndim == 4 and len(content) != 1:
            raise ValueError(f"{file} holds {len(content)} images")
        if (
            not content.is_floating_point()
            or 0 in content.shape
            or content.layout is not torch.strided
            or content.is_meta
        ):
            raise ValueError(f"{file} holds {content.dtype} {tuple(content.shape)}, no map of features")
        return as_map(content.detach().float().numpy(), file, width=self.width)
