"""From settings to a network with weights in place, on a device, in a precision: what the extractors share."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from core.console import UserError
from core.devices import allow_tf32, full_float32
from core.features import FEATURES
from core.files import digest_file
from core.kinds import stated_architecture
from extractors.images import InputSpec
from extractors.networks import build, load_checkpoint
from extractors.networks.layers import fold_norms
from stores.schema import ArraySpec

_OTHERWISE = "write that architecture, or the file that belongs to this one"
PRECISIONS = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_network(architecture: str, weights: str | os.PathLike[str]) -> tuple[nn.Module, str]:
    """The network called `architecture` with `weights` loaded, ready for inference, and the weights file's sha256.

    Raises:
        UserError: unknown architecture, no such file, or weights that do not fit or say they are of another architecture.
    """
    try:
        network = build(architecture)
        stated = stated_architecture(weights)
        if stated not in (None, architecture):
            raise ValueError(f"{weights} says that its weights are of {stated}, not {architecture}; {_OTHERWISE}")
        load_checkpoint(network, weights)
        fold_norms(network)
    except FileNotFoundError as error:
        raise UserError(f"{error}; set `weights` to the checkpoint of {architecture}") from error
    except ValueError as error:
        raise UserError(str(error)) from error
    return network.eval(), digest_file(weights)


class NetworkRunner:
    """Holds a network, its device and precision; the extractors are built around one.

    Args:
        network: in eval mode. weights_digest: sha256 of its weights file.
        precision: "fp32"; "tf32", which lets a GPU round the factors of products to 10 bits; or "bf16" / "fp16" for
            automatic mixed precision.
    """

    def __init__(self, network: nn.Module, weights_digest: str, precision: str = "fp32") -> None:
        if precision not in PRECISIONS:
            raise UserError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
        self.network = network
        self.weights_digest = weights_digest
        self.precision = precision
        self.device = torch.device("cpu")
        #: What the store's attributes say of the engine, beside what they say of the features.
        self.attributes: dict[str, Any] = {}

    @property
    def input(self) -> InputSpec:
        """How images are brought to this network."""
        return self.network.meta.input

    def to(self, device: str | torch.device) -> NetworkRunner:
        """Move to a device; returns self."""
        self.device = torch.device(device)
        if self.device.type == "cpu":
            full_float32("cpu")
        self.network = self.network.to(self.device).to(memory_format=torch.channels_last)
        return self

    def autocast(self) -> contextlib.AbstractContextManager:
        """The precision's context for a forward pass."""
        if self.device.type == "cuda":
            allow_tf32(self.precision == "tf32")
        dtype = PRECISIONS[self.precision]
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def pixels(self, batch) -> torch.Tensor:
        """An `ImageBatch`'s pixels on the device."""
        return batch.pixels.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)


class EngineRunner(NetworkRunner):
    """Runs another engine's network, in fp32 and in its own memory format."""

    def to(self, device: str | torch.device) -> EngineRunner:
        """Move to a device; returns self."""
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    def pixels(self, batch) -> torch.Tensor:
        """An `ImageBatch`'s pixels on the device."""
        return batch.pixels.to(self.device, non_blocking=True).contiguous()


class NetworkExtractor:
    """What every extractor around a network offers besides its rows: how it wants images, its weights' digest, its device."""

    #: Of its store.
    arrays: dict[str, ArraySpec]

    def __init__(self, runner: NetworkRunner) -> None:
        self.runner = runner

    def empty_rows(self) -> dict[str, np.ndarray]:
        """One image's rows, with fill values."""
        return {name: np.full(spec.shape, spec.fill, spec.dtype) for name, spec in self.arrays.items()}

    @property
    def input(self) -> InputSpec:
        """How images are brought to the network."""
        return self.runner.input

    @property
    def weights_digest(self) -> str:
        """sha256 of the weights file."""
        return self.runner.weights_digest

    def to(self, device: str | torch.device) -> Self:
        """Move the network to a device; returns self."""
        self.runner.to(device)
        return self


def native_runner(*, architecture: str, weights: str, precision: str = "fp32") -> NetworkRunner:
    """The runner of a named architecture with its weights."""
    network, digest = load_network(architecture, weights)
    return NetworkRunner(network, digest, precision)


RUNNERS = dict.fromkeys(FEATURES, native_runner)
