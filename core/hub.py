"""Models as the Hugging Face hub has them: by name, downloaded once and then taken from its cache; and what a folder of one must hold."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from core.console import first_line
from core.files import parse_json
from core.kinds import other_kind

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
COPY = "copy it again from where it is published"
#: How a configuration says that its model sees, and has no words besides.
_OF_IMAGES = ("image_size", "num_channels", "patch_size", "vision_config", "backbone_config")


def fetch(
    name: str,
    *,
    revision: str | None,
    descriptions: Sequence[str],
    weights: bool = True,
    whole: Callable[[Path], bool] = lambda folder: True,
) -> Path:
    """The folder of a model in the hub's cache, asked for at the hub only where it is not there whole.

    Args:
        name, revision: on the hub. descriptions: patterns of the files beside the weights. weights: whether they are needed.
        whole: what else says that a folder has everything.

    Raises:
        Whatever the hub's client does: its own, httpx's and the system's errors.
    """
    from huggingface_hub import snapshot_download

    wanted = [[*descriptions, *(["model*.safetensors", f"{WEIGHTS[0]}.index.json"] if weights else [])]]
    if weights:  # in the older format where there is no other
        wanted.append([*descriptions, "pytorch_model*.bin", f"{WEIGHTS[1]}.index.json"])
    for offline in (True, False):
        for patterns in wanted:
            try:
                found = snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=offline)
            except Exception:
                if offline:
                    continue
                raise
            folder = Path(found)
            # A download that was interrupted has left some of the files.
            if (folder / "config.json").is_file() and whole(folder) and not (weights and any(weight_faults(folder))):
                return folder
    return folder


def no_name(key: str, value: str, holds: str) -> Iterator[str]:
    """Why what is no folder is no name on the hub either: lines of `KEY: what and how to mend it`."""
    if os.path.isfile(value):
        yield f"{key}: {value!r} is a file; name the folder of the {holds}"
    elif value.startswith((".", "/", "~")) or value.count("/") > 1:
        yield f"{key}: folder {value!r} does not exist; correct the path"


def weight_faults(folder: Path) -> Iterator[str]:
    """What is wrong with the weights in a folder, or with the parts that their index names, as far as their first bytes tell."""
    names = (*WEIGHTS, *(f"{name}.index.json" for name in WEIGHTS))
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        yield f"{folder} lacks {WEIGHTS[0]} (or {WEIGHTS[1]})"
    elif what := other_kind(found):
        yield f"{found} is {what}"
    elif found.name.endswith(".index.json"):
        yield from _part_faults(found)


def _part_faults(index: Path) -> Iterator[str]:
    try:
        content = parse_json(index.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        yield f"{index} is not valid JSON ({error}); {COPY}"
        return
    parts = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(parts, dict) or not parts or not all(isinstance(name, str) for name in parts.values()):
        yield f"{index} names no parts of weights; {COPY}"
        return
    for part in sorted(set(parts.values())):
        if not (index.parent / part).is_file():
            yield f"{index.parent} lacks {part}, which {index.name} names; {COPY}"
        elif what := other_kind(index.parent / part):
            yield f"{index.parent / part} is {what}"


def why_not(error: Exception) -> str:
    """Why the library could not load a folder. It advises to run the code in weights that hold some; that is never done."""
    if isinstance(error, pickle.UnpicklingError):
        return f"its weights hold more than arrays, or are damaged, and are not opened: {WEIGHTS[0]} cannot hold anything else"
    return f"{type(error).__name__}: {first_line(error)}"


def reads(config: dict[str, Any]) -> str:
    """What a model reads by its config.json, without the library: "text", "images" or "" where both, or it does not say."""
    words = "vocab_size" in config or "text_config" in config
    sees = any(key in config for key in _OF_IMAGES)
    return "" if words == sees else "text" if words else "images"
