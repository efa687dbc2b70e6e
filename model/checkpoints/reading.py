"""What the readers of checkpoints share: nothing in a file is run, and every key of it is accounted for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.console import UserError
from core.kinds import other_kind
from model.network import RetrievalNetwork


def read_states(path: str | Path, authors: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The image and the text encoder's state of a `.pth` as VSE++ and all that descend from it write it.

    Args:
        authors: whose checkpoint it should be, for messages.

    Raises:
        UserError: there is no such file, it names types that are no plain data, or it holds something else.
    """
    try:
        with torch.serialization.safe_globals(_harmless_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint at {path}") from error
    except Exception as error:  # unpickling raises nearly anything on a broken file
        if what := other_kind(path):
            raise UserError(f"{path} is {what}") from error
        raise UserError(
            f"cannot read {path} as a checkpoint of weights (nothing in it was run): {type(error).__name__}: {error}"
        ) from error
    states = content.get("model") if isinstance(content, dict) else None
    if not (isinstance(states, list | tuple) and len(states) == 2 and all(isinstance(s, dict) for s in states)):
        raise UserError(f"{path} is no checkpoint of {authors}: it has no `model` with two encoders' states")
    return tuple({key.removeprefix("module."): value for key, value in state.items()} for state in states)


def _harmless_globals() -> list[Any]:
    """Types a checkpoint may name besides tensors: its options, and NumPy numbers (all plain data)."""
    import _codecs

    import numpy as np

    reconstruct = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [argparse.Namespace, np.dtype, *kinds, _codecs.encode, *((reconstruct, name) for name in names)]


def fill(
    network: RetrievalNetwork,
    image: Mapping[str, Tensor],
    text: Mapping[str, Tensor],
    *,
    path: str | Path,
    problems: list[str],
) -> None:
    """Load both sides' weights, under our names, into a network of their shape.

    Args:
        problems: what is known to be wrong already, a line each.

    Raises:
        UserError: the file does not fit; all of what is missing, unexpected or of another shape is listed.
    """
    weights = {f"image.{key}": value for key, value in image.items()}
    weights |= {f"text.{key}": value for key, value in text.items()}
    expected = network.state_dict()
    # Files of very old torch versions lack this counter, which nothing reads.
    for key in expected:
        if key.endswith("num_batches_tracked"):
            weights.setdefault(key, expected[key])
    problems = [*problems, *(f"missing the weights for {key}" for key in expected if key not in weights)]
    problems += [f"unexpected {key}" for key in weights if key not in expected]
    problems += [
        f"{key} has shape {tuple(weights[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if key in weights and weights[key].shape != expected[key].shape
    ]
    if problems:
        raise misfit(path, problems)
    network.load_state_dict(weights)


def misfit(path: str | Path, problems: list[str]) -> UserError:
    return UserError(f"{path} does not fit the network:\n  " + "\n  ".join(problems))
