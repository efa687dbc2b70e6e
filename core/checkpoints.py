"""Files of the retrieval models that descend from VSE++: two encoders' states and options. Nothing in a file is run.

What `model` reads of them is an encoder each; `extractors` reads the CNN that VSE-infinity's grid models hold besides.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from core.checkpoint_head import MODULE, architecture_of, encoders_of
from core.console import UserError
from core.kinds import wrong_file

# Grid checkpoints hold their CNN twice, under the names of torchvision and as the parts of a sequence.
_CNN_PARTS = {
    "conv1": "base.0",
    "bn1": "base.1",
    "layer1": "base.4",
    "layer2": "base.5",
    "layer3": "base.6",
    "layer4": "top.0",
}
_CNN = re.compile(r"backbone\.(base\.[01456]|top\.0|resnet\.(?:conv1|bn1|layer[1-4]|fc))\.")


def read_checkpoint(
    path: str | os.PathLike[str], authors: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """The image and the text encoder's state of a `.pth` as VSE++ and all that descend from it write it, and its options.

    A prefix `module.` is taken off either; sizes and values of tensors are not looked at; options are the plain values of the file's argparse Namespace (or dictionary), if it has one.

    Args:
        authors: whose checkpoint it should be, for messages.

    Raises:
        UserError: there is no such file, it names types that are no plain data, or it holds something else.
    """
    if faults := list(wrong_file("the checkpoint", os.fspath(path))):
        raise UserError(faults[0])
    try:
        with torch.serialization.safe_globals(_harmless_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises nearly anything on a broken file
        raise UserError(f"{path} {refusal(error)} (nothing in it was run)") from error
    *states, options = encoders_of(content, path, authors)
    for state in states:
        if wrong := [str(key) for key, value in state.items() if not (isinstance(key, str) and _is_dense(value))]:
            raise UserError(
                f"{path} is no checkpoint of {authors}: {wrong[0]!r} in its `model` is no tensor of weights"
            )
    image, text = ({MODULE.sub("", key): value for key, value in state.items()} for state in states)
    return image, text, options


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def refusal(error: Exception) -> str:
    """What is wrong with a file that `torch.load(weights_only=True)` did not read, and what to do.

    Of torch's message only what it met: its advice is to run what is in the file.
    """
    if met := re.search(r"GLOBAL (\S+)|Unsupported (?:global|class) (\S+)", str(error)):
        return f"holds more than weights: it asks for {met[1] or met[2]}; get one of tensors and plain values alone"
    what = "" if isinstance(error, pickle.UnpicklingError) or not str(error) else f": {str(error).splitlines()[0]}"
    return f"is no file that PyTorch wrote, or cut off ({type(error).__name__}{what}); copy or download it again"


class Vocabulary:
    """Stands for the class of that name in files of VSE++'s descendants: its plain values, none of its code."""


def _harmless_globals() -> list[Any]:
    """Types a checkpoint may name besides tensors: its options, its words, and NumPy numbers (all plain data)."""
    import _codecs

    import numpy as np

    reconstruct = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    words = [(Vocabulary, f"{module}.Vocabulary") for module in ("vocab", "lib.vocab", "__main__")]
    return [argparse.Namespace, *words, np.dtype, *kinds, _codecs.encode, *((reconstruct, name) for name in names)]


def split_cnn(image: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """An image encoder's state in two: the CNN that VSE-infinity's grid models train along, and the rest.

    Args:
        image: as from `read_checkpoint`.

    Returns:
        The CNN under torchvision's names (`layer1.0.conv1.weight`), without its classifier, which is never applied; empty
        if there is none. What else there is, names as they are. And a line for each of the CNN's tensors that differs
        from its twin, or has none.
    """
    names = {part: name for name, part in _CNN_PARTS.items()}
    cnn, rest, problems = {}, {}, []
    for key, value in image.items():
        found = _CNN.match(key)
        if found is None:
            rest[key] = value
            continue
        part, end = found[1], key[found.end() :]
        if part in names:
            cnn[f"{names[part]}.{end}"] = value
        elif part != "resnet.fc":
            name = f"backbone.{_CNN_PARTS[part.removeprefix('resnet.')]}.{end}"
            twin = image.get(name)
            if twin is None or twin.shape != value.shape or not twin.equal(value):
                problems.append(f"{key} differs from its twin {name}")
    return cnn, rest, problems


def cnn_architecture(path: str | os.PathLike[str], cnn: Mapping[str, Tensor], options: Mapping[str, Any]) -> str:
    """The architecture whose weights are the CNN of a grid checkpoint: by its options, else by its shapes.

    Raises:
        UserError: none computes it, such as that of a `backbone_source` that was never released.
    """
    width = cnn.get("layer1.0.conv2.weight")
    return architecture_of(path, None if width is None else tuple(width.shape), options)
