"""Run folders (our checkpoints) and the authors' checkpoints.

A run folder holds `model.safetensors`, `config.json` and `vocab.txt`, and nothing else is needed to load the network.

Command: `python -m model.checkpoint import REF.pth RUN_DIR [--vocabulary vocab.txt] ...` turns a checkpoint of the
authors into a run folder.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.categories import NUM_CATEGORIES, UPSNET_TO_COCO
from core.console import UserError, run_cli
from core.files import atomic_path, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from model.network import ThreeSHNet
    from model.tokenizer import CaptionTokenizer

FORMAT_VERSION = 1
WEIGHTS, CONFIG, VOCABULARY = "model.safetensors", "config.json", "vocab.txt"

# Prefixes of the authors' image encoder -> ours. Sources: their `lib/encoders_rgn_seg_sp_se.py`,
# `lib/Crossmodal_Fusion4_sm.py`, `lib/Crossmodal_Fusion4_sp.py` and `lib/modules/aggr/gpo.py`.
IMAGE_PREFIXES = {
    "fc": "token_projection",
    "mlp": "token_mlp",
    "embed_category.0": "category_embedding.linear",
    "embed_category.3": "category_embedding.norm",
    "embed_seg_C.1": "segment_embedding.linear",
    "embed_seg_C.4": "segment_embedding.norm",
    "seg_mlp": "segment_mlp",
    "crossmodalfusion_sm.MLP_image": "semantic.token_mlp",
    "crossmodalfusion_sm.embed_seg_HW.2": "semantic.query_embedding.linear",
    "crossmodalfusion_sm.embed_seg_HW.5": "semantic.query_embedding.norm",
    "crossmodalfusion_sm.MLP_seg": "semantic.query_mlp",
    "crossmodalfusion_sm.fc_scale": "semantic.scale",
    "crossmodalfusion_sm.fc_1": "semantic.output",
    "crossmodalfusion_sp.MLP_image": "spatial.token_mlp",
    "crossmodalfusion_sp.embedding_Seg.0": "spatial.map_conv",
    "crossmodalfusion_sp.embedding_Seg.1": "spatial.map_norm",
    "crossmodalfusion_sp.embed_fusion": "spatial.fusion_mlp",
    "fusion_mlp": "fusion_mlp",
    "gpool.gru": "pool.gru",
    "gpool.linear": "pool.score",
}
TEXT_PREFIXES = {"bert": "bert", "linear": "projection", "gpool.gru": "pool.gru", "gpool.linear": "pool.score"}
# The two layers of the authors' MLP; its second BatchNorm (`bns.1`) is in their files but never applied.
MLP_PARTS = {"layers.0": "hidden", "bns.0": "norm", "layers.1": "output"}
MLP_UNUSED = re.compile(r"(?:^|\.)bns\.1\.")
# Linear layers whose columns are categories.
CATEGORY_LAYERS = (
    "category_embedding.linear.weight",
    "segment_embedding.linear.weight",
    "semantic.query_embedding.linear.weight",
)


def build_network(*, image: Mapping[str, Any], text: Mapping[str, Any]) -> ThreeSHNet:
    """A network with fresh weights from the two sections of a run's config: arguments of `ImageEncoder` and of
    `BertConfig` plus `embed_size`, `pool_position_size`, `pool_hidden_size`."""
    from model.bert import Bert, BertConfig
    from model.encoders import ImageEncoder, TextEncoder
    from model.network import ThreeSHNet

    outer = {key: text[key] for key in ("embed_size", "pool_position_size", "pool_hidden_size")}
    bert = Bert(BertConfig(**{key: value for key, value in text.items() if key not in outer}))
    return ThreeSHNet(ImageEncoder(**image), TextEncoder(bert, **outer))


def network_config(network: ThreeSHNet) -> dict[str, dict[str, Any]]:
    """The `{image, text}` sections from which `build_network` makes a network of the same shape."""
    text, pool = network.text, network.text.pool
    return {
        "image": dict(network.image.arguments),
        "text": {
            **text.bert.config.to_dict(),
            "embed_size": text.projection.out_features,
            "pool_position_size": pool.position_size,
            "pool_hidden_size": pool.gru.hidden_size,
        },
    }


def save_run(
    run_dir: str | Path, network: ThreeSHNet, tokenizer: CaptionTokenizer | None, *, config: Mapping[str, Any]
) -> None:
    """Write a run folder; each file appears whole, `model.safetensors` last.

    Args:
        run_dir: made if missing.
        network: its weights and shape are written.
        tokenizer: its vocabulary is written; None leaves the folder without (`load_run` then gives no tokenizer).
        config: whatever else should be recorded (run name, features, training settings); a JSON-able mapping.
    """
    from safetensors.torch import save_file

    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    described = None
    if tokenizer is not None:
        tokenizer.save(run_dir / VOCABULARY)
        described = {
            "vocabulary": VOCABULARY,
            "lowercase": tokenizer.lowercase,
            "max_tokens": tokenizer.max_tokens,
        }
    whole = {"format_version": FORMAT_VERSION, **network_config(network), "tokenizer": described, **config}
    write_json(run_dir / CONFIG, whole)
    weights = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with atomic_path(run_dir / WEIGHTS) as temporary:
        save_file(weights, temporary)


def load_run(run_dir: str | Path) -> tuple[ThreeSHNet, dict[str, Any], CaptionTokenizer | None]:
    """Load a run folder.

    Returns:
        The network in eval mode on the CPU, the content of `config.json`, and the tokenizer (None if the run was
        imported without a vocabulary).

    Raises:
        UserError: a file is missing, of a newer format, or does not fit the others.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from model.tokenizer import CaptionTokenizer

    run_dir = Path(run_dir)
    config = read_config(run_dir)
    if not (run_dir / WEIGHTS).exists():
        raise UserError(f"{run_dir} has no {WEIGHTS}: its training has not finished")
    try:
        network = build_network(image=config["image"], text=config["text"])
        network.load_state_dict(load_file(run_dir / WEIGHTS))
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{run_dir}: {CONFIG} and {WEIGHTS} do not fit together: {error}") from error
    described = config.get("tokenizer")
    tokenizer = None
    if described:
        tokenizer = CaptionTokenizer.from_file(
            run_dir / described["vocabulary"], lowercase=described["lowercase"], max_tokens=described["max_tokens"]
        )
    return network.eval(), config, tokenizer


def read_config(run_dir: str | Path) -> dict[str, Any]:
    """The content of a run's `config.json`, without loading the network (and without importing torch)."""
    path = Path(run_dir) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{run_dir} is not a run folder: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version!r}, this program reads {FORMAT_VERSION}: "
            "use the program's version that wrote it, or train the run again"
        )
    return config


def load_reference(
    path: str | Path, class_order: str = "upsnet", seg_map_encoding: str = "raw", *, heads: int | None = None
) -> ThreeSHNet:
    """Load a checkpoint published by the authors of 3SHNet, without running anything that is in it.

    Args:
        path: a `.pth` of theirs: a dict whose `model` holds the image and the text encoder's state.
        class_order: numbering of the 133 categories it was trained with. "upsnet" (stuff first): the weights of
            the category layers are permuted and the spatial branch renumbers the class map, so that the network takes
            inputs in our stores' COCO order. "coco": taken as they are.
        seg_map_encoding: "raw" or "standardised", what its spatial branch was trained to read.
        heads: attention heads of its BERT; they leave no trace in the weights, so by default 64 features each.

    Returns:
        The network in eval mode on the CPU. All sizes are read from the weights.

    Raises:
        UserError: not such a file, or keys that are missing, unexpected or of unexpected shape: all of them are listed.
    """
    from model.bert import config_from_weights
    from model.highlighting import CLASS_ORDERS, SEG_MAP_ENCODINGS

    for name, value, known in (
        ("class_order", class_order, CLASS_ORDERS),
        ("seg_map_encoding", seg_map_encoding, SEG_MAP_ENCODINGS),
    ):
        if value not in known:
            raise UserError(f"{name} is {value!r}; choose one of {', '.join(known)}")
    image_state, text_state = _read_reference(path)
    image, unknown_image = _rename(image_state, IMAGE_PREFIXES)
    text, unknown_text = _rename(text_state, TEXT_PREFIXES)
    problems = [f"image encoder: unexpected {key}" for key in unknown_image]
    problems += [f"text encoder: unexpected {key}" for key in unknown_text]
    try:
        categories = image["category_embedding.linear.weight"].shape[1]
        embed_size, img_dim = image["token_projection.weight"].shape
        image_arguments = {
            "img_dim": img_dim,
            "embed_size": embed_size,
            "spatial_size": image["spatial.map_conv.weight"].shape[0],
            "num_categories": categories,
            "pool_position_size": image["pool.gru.weight_ih_l0"].shape[1],
            "pool_hidden_size": image["pool.gru.weight_hh_l0"].shape[1],
            "seg_map_encoding": seg_map_encoding,
            "class_order": class_order,
        }
        bert = {key.removeprefix("bert."): value for key, value in text.items() if key.startswith("bert.")}
        text_arguments = {
            **config_from_weights(bert, heads=heads).to_dict(),
            "embed_size": text["projection.weight"].shape[0],
            "pool_position_size": text["pool.gru.weight_ih_l0"].shape[1],
            "pool_hidden_size": text["pool.gru.weight_hh_l0"].shape[1],
        }
    except KeyError as error:
        problems.append(f"missing the weights for {error}")
        raise _misfit(path, problems) from error
    if class_order == "upsnet":
        if categories != NUM_CATEGORIES:
            raise UserError(
                f"{path} has {categories} categories; the UPSNet order is of {NUM_CATEGORIES}: pass class_order='coco'"
            )
        for key in CATEGORY_LAYERS:
            permuted = image[key].clone()
            permuted[:, list(UPSNET_TO_COCO)] = image[key]
            image[key] = permuted
    network = build_network(image=image_arguments, text=text_arguments)
    weights = {f"image.{key}": value for key, value in image.items()}
    weights |= {f"text.{key}": value for key, value in text.items()}
    expected = network.state_dict()
    # Files of very old torch versions lack this counter, which nothing reads.
    for key in expected:
        if key.endswith("num_batches_tracked"):
            weights.setdefault(key, expected[key])
    problems += [f"missing the weights for {key}" for key in expected if key not in weights]
    problems += [f"unexpected {key}" for key in weights if key not in expected]
    problems += [
        f"{key} has shape {tuple(weights[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if key in weights and weights[key].shape != expected[key].shape
    ]
    if problems:
        raise _misfit(path, problems)
    network.load_state_dict(weights)
    return network.eval()


def _read_reference(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    import torch

    try:
        with torch.serialization.safe_globals(_harmless_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint at {path}") from error
    except Exception as error:  # unpickling raises nearly anything on a broken file
        raise UserError(
            f"cannot read {path} as a checkpoint of weights (nothing in it was run): {type(error).__name__}: {error}"
        ) from error
    states = content.get("model") if isinstance(content, dict) else None
    if not (isinstance(states, list | tuple) and len(states) == 2 and all(isinstance(s, dict) for s in states)):
        raise UserError(f"{path} is no checkpoint of 3SHNet's authors: it has no `model` with two encoders' states")
    return tuple({key.removeprefix("module."): value for key, value in state.items()} for state in states)


def _harmless_globals() -> list[Any]:
    """Types a checkpoint may name besides tensors: its options, and NumPy numbers (all plain data)."""
    import _codecs

    import numpy as np

    reconstruct = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [argparse.Namespace, np.dtype, *kinds, _codecs.encode, *((reconstruct, name) for name in names)]


def _rename(state: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under our names, and the keys that have no place there (known leftovers are neither)."""
    from model.bert import canonical_weights

    renamed, unknown = {}, []
    for key, value in state.items():
        if MLP_UNUSED.search(key):
            continue
        prefix = next((known for known in prefixes if key.startswith(f"{known}.")), None)
        if prefix is None:
            unknown.append(key)
            continue
        rest = key[len(prefix) + 1 :]
        if prefix == "bert":
            renamed |= {f"bert.{name}": kept for name, kept in canonical_weights({rest: value}).items()}
            continue
        for theirs, ours in MLP_PARTS.items():
            if rest.startswith(f"{theirs}."):
                rest = ours + rest[len(theirs) :]
        renamed[f"{prefixes[prefix]}.{rest}"] = value
    return renamed, unknown


def _misfit(path: str | Path, problems: list[str]) -> UserError:
    return UserError(f"{path} does not fit 3SHNet:\n  " + "\n  ".join(problems))


def import_reference(
    path: str | Path,
    run_dir: str | Path,
    *,
    class_order: str = "upsnet",
    seg_map_encoding: str = "raw",
    heads: int | None = None,
    vocabulary: str | Path | None = None,
    max_tokens: int = 128,
) -> None:
    """Turn a checkpoint of the authors into a run folder.

    The vocabulary is `vocabulary`, else a `vocab.txt` beside the checkpoint, else bert-base-uncased's from the Hugging
    Face hub. If none is to be had, the folder is written without, and a warning says what to do.
    """
    from model.bert import resolve_pretrained
    from model.tokenizer import CaptionTokenizer

    network = load_reference(path, class_order, seg_map_encoding, heads=heads)
    size = network.text.bert.config.vocabulary_size
    beside = Path(path).parent / VOCABULARY
    tokenizer = None
    if vocabulary is None and beside.exists():
        vocabulary = beside
    if vocabulary is None and size == 30522:
        try:
            vocabulary = resolve_pretrained("bert-base-uncased", weights=False) / VOCABULARY
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)
    if vocabulary is not None:
        positions = network.text.bert.config.max_positions
        tokenizer = CaptionTokenizer.from_file(vocabulary, max_tokens=min(max_tokens, positions))
        if len(tokenizer.vocabulary) != size:
            raise UserError(
                f"the vocabulary {vocabulary} has {len(tokenizer.vocabulary)} pieces, but the text encoder in {path} "
                f"has {size}: pass the one it was trained with"
            )
    else:
        print(
            f"warning: no vocabulary of {size} pieces found; captions cannot be read by {run_dir} until it is imported "
            "again with --vocabulary vocab.txt",
            file=sys.stderr,
        )
    config = {
        "run": Path(run_dir).name,
        "source": {"imported": Path(path).name, "class_order": class_order, "seg_map_encoding": seg_map_encoding},
        "features": None,
        "training": None,
    }
    save_run(run_dir, network, tokenizer, config=config)


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m model.checkpoint", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("import", help="turn a checkpoint of 3SHNet's authors into a run folder")
    command.add_argument("checkpoint", type=Path, metavar="REF.pth")
    command.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    command.add_argument("--class-order", choices=("upsnet", "coco"), default="upsnet")
    command.add_argument("--seg-map-encoding", choices=("raw", "standardised"), default="raw")
    command.add_argument("--vocabulary", type=Path, help="vocab.txt of its text encoder")
    command.add_argument("--heads", type=int, help="attention heads of its BERT (default: 64 features each)")
    command.add_argument("--max-tokens", type=int, default=128)
    arguments = parser.parse_args()
    import_reference(
        arguments.checkpoint,
        arguments.run_dir,
        class_order=arguments.class_order,
        seg_map_encoding=arguments.seg_map_encoding,
        heads=arguments.heads,
        vocabulary=arguments.vocabulary,
        max_tokens=arguments.max_tokens,
    )


if __name__ == "__main__":
    run_cli(main)
