"""Detector networks in plain torch + torchvision.ops, with detectron2's parameter names and numerics."""

from extractors.networks.architectures import ARCHITECTURES, build
from extractors.networks.checkpoint import load_checkpoint

__all__ = ["ARCHITECTURES", "build", "load_checkpoint"]
