"""What a `.pth` of the retrieval models that descend from VSE++ says of itself, before anything is done with it: names and shapes of its
tensors, and its options. Without torch, so that a configuration can be checked in milliseconds; nothing in a file is run.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from core.console import UserError
from core.kinds import wrong_file

#: The architecture (see `extractors.networks`) that computes the CNN of a `backbone_source`, a word of which it contains.
CNN_SOURCES = {"detector": "vse_grid_detector", "wsl": "vse_grid_wsl", "imagenet_resnext": "vse_grid_wsl"}
#: What DataParallel leaves before a name, once for each around the network.
MODULE = re.compile(r"^(module\.)+")
_LEGACY = 0x1950A86A20F9469CFC6C  # what torch wrote first, before it wrote zips
# Names of plain data. torch itself takes fewer: what it refuses beyond is told when the file is read.
_PLAIN = re.compile(
    r"(?:builtins|__builtin__)\.(?:set|frozenset|complex|bytearray|bytes|slice|range|int|float|str|bool)"
    r"|_codecs\.encode|(?:vocab|lib\.vocab|__main__)\.Vocabulary|collections\.(?:OrderedDict|Counter|defaultdict)"
    r"|numpy\.(?:dtype|ndarray|\w*(?:int|float|bool)\w*)|numpy\.dtypes\.\w+|numpy\._?core\.multiarray\.(?:scalar|_reconstruct)"
    r"|torch\.(?:\w+Storage|Size|device|Tensor|(?:b?float|u?int|complex|bool|half|double|long|short|q|cdouble|cfloat)\w*)"
    r"|torch\._utils\._rebuild_\w+|torch\.(?:storage|nn\.parameter|_tensor|serialization|torch_version)\.\w+"
)


@dataclass(frozen=True)
class Head:
    """Attributes: image, text: shapes of each encoder's tensors, by name without `module.`. options: their
    values by name, None of what is no text or number (numpy's are objects)."""

    image: dict[str, tuple[int, ...]]
    text: dict[str, tuple[int, ...]]
    options: dict[str, Any]


def read_head(path: str | os.PathLike[str], authors: str) -> Head:
    """The head of a checkpoint.

    Args:
        authors: whose checkpoint it should be, for messages.

    Raises:
        UserError: there is no such file, it asks for more than plain data, or it holds something else.
    """
    if faults := list(wrong_file("the checkpoint", os.fspath(path))):
        raise UserError(faults[0])
    try:
        with _pickle_of(path) as file:
            content = _Reader(file).load()
            if content == _LEGACY:  # then a version, the machine, and what was saved
                content = [_Reader(file).load() for _ in range(3)][2]
    except UserError:
        raise
    except _NotPlainError as error:
        raise UserError(
            f"{path} holds more than weights: it asks for {error}; get one of tensors and plain values alone (nothing in it was run)"
        ) from error
    except Exception as error:  # unpickling raises nearly anything on a broken file
        raise UserError(
            f"{path} is no file that PyTorch wrote, or cut off ({type(error).__name__}: {error}); copy or download it again "
            "(nothing in it was run)"
        ) from error
    *states, options = encoders_of(content, path, authors)
    image, text = ({MODULE.sub("", str(key)): _shape(value) for key, value in state.items()} for state in states)
    return Head(
        image, text, {key: value if isinstance(value, str | int | float) else None for key, value in options.items()}
    )


def encoders_of(content: Any, path: str | os.PathLike[str], authors: str) -> tuple[dict, dict, dict[str, Any]]:
    """The image and the text encoder's state, names as they are, and the options of what was loaded from a checkpoint.

    Raises:
        UserError: it has no two encoders.
    """
    states = content.get("model") if isinstance(content, dict) else None
    if not (isinstance(states, list | tuple) and len(states) == 2 and all(isinstance(s, dict) for s in states)):
        raise UserError(f"{path} is no checkpoint of {authors}: it has no `model` with two encoders' states")
    options = content.get("opt")
    options = vars(options) if isinstance(options, argparse.Namespace) else options
    return *states, dict(options) if isinstance(options, dict) else {}


def architecture_of(path: str | os.PathLike[str], width: tuple[int, ...] | None, options: Mapping[str, Any]) -> str:
    """The architecture whose weights are the CNN of a grid checkpoint: by its options, else by its shapes.

    Args:
        width: shape of its `layer1.0.conv2.weight`; a grouped convolution's is not square.

    Raises:
        UserError: none computes it, such as that of a `backbone_source` that was never released.
    """
    source = options.get("backbone_source")
    if source is None:
        return "vse_grid_wsl" if width is not None and width[0] != width[1] else "vse_grid_detector"
    for word, architecture in CNN_SOURCES.items():
        if word in str(source):
            return architecture
    raise UserError(
        f"{path}: its CNN is of backbone_source {source!r}, which no architecture here computes; read are "
        + ", ".join(f"{word} ({architecture})" for word, architecture in CNN_SOURCES.items())
    )


def _shape(value: Any) -> tuple[int, ...]:
    return value.shape if isinstance(value, _Tensor) else ()  # what no weights are is told when they are read


@contextmanager
def _pickle_of(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """The file from where its pickle begins."""
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            yield file
            return
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
            if len(names) != 1:
                raise UserError(
                    f"{path} is a zip archive, but none that PyTorch wrote; unpack it, or get the file itself"
                )
            with archive.open(names[0]) as inner:
                yield inner


class _NotPlainError(Exception):
    """What a pickle asks for that is no plain data."""


@dataclass
class _Tensor:
    shape: tuple[int, ...]


class _Any:
    """Stands for all else that may be named; whatever is done to it changes nothing."""

    def __new__(cls, *arguments: Any, **options: Any) -> _Any:
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **options: Any) -> _Any:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """As lists do."""

    def extend(self, values: Any) -> None:
        """As lists do."""


class _Namespace(argparse.Namespace):
    """Options: their values, and nothing that a file could have called."""

    def __init__(self) -> None:
        super().__init__()


def _tensor(storage: Any, offset: Any, shape: Any, *others: Any) -> _Tensor:
    return _Tensor(tuple(int(side) for side in shape))


def _inner(tensor: Any, *others: Any) -> Any:
    return tensor


_READ = {
    ("collections", "OrderedDict"): OrderedDict,
    ("argparse", "Namespace"): _Namespace,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _inner,
    ("torch._utils", "_rebuild_parameter_with_state"): _inner,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _READ:
            return _READ[module, name]
        if _PLAIN.fullmatch(f"{module}.{name}"):
            return _Any
        module = {"__builtin__": "builtins"}.get(module, module)  # as Python 2 called it
        raise _NotPlainError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return _Any()
