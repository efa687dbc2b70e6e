"""Run folders -> checkpoints as the authors of each kind write and load them: the reverse of the readers beside it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from catalog.categories import UPSNET_TO_COCO
from core.checkpoints import cnn_architecture, read_checkpoint, split_cnn
from core.console import UserError
from core.files import atomic_path, digest_file
from model.checkpoints import scan, three_shnet, vse_infinity
from model.checkpoints.heads import SCORE
from model.checkpoints.reading import BERT_PREFIXES, MLP_PARTS, WORD_PREFIXES
from model.network import RetrievalNetwork
from model.runs import load_run
from model.settings import DEFAULT_KIND
from model.words import MASK, write_word_vocabulary

PREFIXES = {
    "3shnet": three_shnet.IMAGE_PREFIXES,
    "vse_infinity": vse_infinity.IMAGE_PREFIXES,
    "scan": scan.IMAGE_PREFIXES,
}
_BERT_BASE = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
# What their evaluation asks the options of a file for, whatever the model.
_VSE_OPTIONS = {
    "optim": "adam",
    "batch_size": 128,
    "workers": 10,
    "data_path": "./data/",
    "backbone_source": "detector",
    "backbone_path": "",
    "backbone_lr_factor": 0.01,
    "input_scale_factor": 1.0,
}


def export_checkpoint(
    run_dir: str | Path, path: str | Path, *, cnn: str | Path | None = None, check: bool = True
) -> None:
    """Write a run's weights in the format of its kind's authors, and beside them the vocabulary of one that reads words.

    Args:
        run_dir: see `model.runs.load_run`. path: the file; words go to `STEM_precomp_vocab.json` in its folder.
        cnn: of VSE-infinity's head of grids, the checkpoint whose CNN made its cells: theirs hold both.
        check: refuse what the authors' code could not load, whose sizes are partly fixed.

    Raises:
        UserError: no such run, one of a kind without authors, sizes that their code does not have, a CNN that is not the run's,
            or a file that is there.
    """
    network, config, tokenizer = load_run(run_dir)
    kind = config.get("kind", DEFAULT_KIND)
    if kind not in PREFIXES:
        raise UserError(f"{run_dir}: networks of {kind} have no authors' format; export one of {', '.join(PREFIXES)}")
    if check and (problems := list(_unfit(kind, network, whole=cnn is not None))):
        raise UserError(f"{run_dir} cannot be loaded by the authors' code:\n  " + "\n  ".join(problems))
    grid, grid_options = ({}, {}) if cnn is None else _read_cnn(cnn, run_dir, config)
    words = network.text.config().get("kind") == "bigru"
    vocabulary = Path(path).parent / f"{Path(path).name.split('.')[0]}_precomp_vocab.json"
    for file in (Path(path), vocabulary) if words else (Path(path),):
        if file.exists():  # perhaps somebody's download, which this would end
            raise UserError(f"{file} is there and is not written over; name another file, or move it away")
    state = dict(network.image.state_dict())
    if kind == "3shnet" and network.image.sizes.class_order == "upsnet":
        state |= {key: state[key][:, list(UPSNET_TO_COCO)] for key in three_shnet.CATEGORY_LAYERS}
    elif kind == "3shnet":
        print(f"note: {run_dir} numbers classes as COCO does: give it arrays in that order", file=sys.stderr)
    image = _named(state, PREFIXES[kind])
    if kind == "scan":
        image = {_scan_key(key): value for key, value in image.items()}
    small = not words and "library" not in network.text.config()
    prefixes = WORD_PREFIXES if words else BERT_PREFIXES | ({"bert": "bert"} if small else {})
    text = _named(network.text.state_dict(), prefixes)
    if not words:  # in their files, and never applied
        size = network.text.bert.config.hidden_size
        text |= {"bert.pooler.dense.weight": torch.zeros(size, size), "bert.pooler.dense.bias": torch.zeros(size)}
    if grid:
        image = grid | {f"image_encoder.{key}": value for key, value in image.items()}
    prefix = "module." if grid or not words else ""  # as DataParallel leaves them
    states = [{prefix + key: value.contiguous() for key, value in state.items()} for state in (image, text)]
    content = {
        "epoch": 0,
        "model": states,
        "best_rsum": 0.0,
        "opt": argparse.Namespace(**_options(kind, network) | grid_options),
        "Eiters": 0,
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary, _use_new_zipfile_serialization=False)  # which torch 1.2 reads
    if words and tokenizer is not None:
        known = tokenizer.vocabulary
        if kind != "scan" and known[-1] == MASK:
            known = known[:-1]  # theirs adds it after loading
        write_word_vocabulary(vocabulary, known)


def _read_cnn(
    path: str | Path, run_dir: str | Path, config: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The CNN of a grid checkpoint under its authors' names, and what of the options is its own.

    Raises:
        UserError: the file has none, or the run reads the cells of another.
    """
    image, _, options = read_checkpoint(path, "VSE-infinity's authors")
    state = {key: value for key, value in image.items() if key.startswith("backbone.")}
    cnn, _, problems = split_cnn(image)
    if not cnn or problems:
        raise UserError("\n  ".join([f"--cnn: {path} holds no CNN that could be written with the head", *problems]))
    trained = (config.get("features") or {}).get("visual") or {}
    if (digest := digest_file(path)) != trained.get("weights_digest"):
        raise UserError(
            f"--cnn: {path} has the digest {digest}, but run {run_dir} reads the cells of {trained.get('weights_digest')}; name "
            "the checkpoint that its features were extracted with"
        )
    source = cnn_architecture(path, cnn, options).removeprefix("vse_grid_")
    own = options if "backbone_source" in options else {"backbone_source": source, "input_scale_factor": 2.0}
    kept = {key: own[key] for key in ("backbone_source", "input_scale_factor") if key in own}
    return state, {"precomp_enc_type": "backbone", **kept}


def _unfit(kind: str, network: RetrievalNetwork, *, whole: bool = False) -> Iterator[str]:
    """What of a network the authors' code does not have: key, value and what it has. whole: with its CNN."""
    sizes, text = network.image.sizes, network.text.config()
    fixed = {"spatial_size": 128, "num_categories": 133, "pool_position_size": 32, "pool_hidden_size": 32}
    if kind != "vse_infinity" and whole:
        yield "--cnn: VSE-infinity's grid models alone have a CNN; leave it out"
    elif kind == "vse_infinity" and sizes.mlp and whole:
        yield "model.mlp is True; theirs with a CNN (--cnn) has no MLP"
    elif kind == "vse_infinity" and not (sizes.mlp or whole):
        yield "model.mlp is False; theirs without an MLP holds its CNN: name the checkpoint of which it is, --cnn FILE"
    for where, found in (("model", vars(sizes)), ("text", text)):
        for key, value in fixed.items():
            if found.get(key, value) != value:
                yield f"{where}.{key} is {found[key]}; theirs is always {value}"
    if text.get("kind") == "bigru":
        if kind == "3shnet":
            yield "text.kind is 'bigru'; 3SHNet's authors have BERT alone"
        if kind == "vse_infinity" and not text["bidirectional"]:
            yield "text.bidirectional is False; theirs is always True"
    elif kind == "scan":
        yield "text.kind is 'bert'; SCAN's authors have a GRU over words alone"
    elif "library" not in text:
        yield "text.pretrained is null; their BERT is bert-base-uncased"
    else:
        for key, value in _BERT_BASE.items():
            if (found := text["library"].get(key)) != value:
                yield f"the text encoder's {key} is {found!r}; their BERT is bert-base-uncased, with {value!r}"


def _named(state: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights under the authors' names; a second norm for each MLP, as theirs builds it and does not apply it."""
    found = {}
    for key, value in state.items():
        theirs, ours = next(pair for pair in prefixes.items() if key.startswith(f"{pair[1]}."))
        rest = key[len(ours) + 1 :]
        part = next(
            (part for part, name in MLP_PARTS.items() if rest.startswith(f"{name}.") and "mlp" in ours.lower()), None
        )
        if part is not None:
            name = MLP_PARTS[part]
            if rest == "output.bias":
                for unused, fill in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                    found[f"{theirs}.bns.1.{unused}"] = torch.full_like(value, fill)
                found[f"{theirs}.bns.1.num_batches_tracked"] = torch.tensor(0)
            rest = part + rest[len(name) :]
        found[f"{theirs}.{rest}"] = value
    return found


def _scan_key(key: str) -> str:
    for ours, theirs in (("original0", "weight_g"), ("original1", "weight_v")):
        key = key.replace(f"parametrizations.weight.{ours}", theirs)
    return key


def _options(kind: str, network: RetrievalNetwork) -> dict[str, Any]:
    sizes, text = network.image.sizes, network.text.config()
    words = text.get("kind") == "bigru"
    options = {
        "img_dim": sizes.img_dim,
        "embed_size": sizes.embed_size,
        "vocab_size": text["words"] if words else network.text.bert.config.vocabulary_size,
        "no_imgnorm": not getattr(sizes, "normalise_images", True),
        "no_txtnorm": not network.text.normalise,
        "precomp_enc_type": "weight_norm" if getattr(sizes, "weight_norm", False) else "basic",
        "max_violation": True,
        "margin": 0.2,
        "grad_clip": 2.0,
        "learning_rate": 5e-4,
        "data_name": "coco_precomp",
    }
    if kind == "vse_infinity":
        options |= _VSE_OPTIONS
    if words:
        options |= {"word_dim": text["word_size"], "num_layers": 1, "bi_gru": text["bidirectional"]}
    if kind == "scan":
        options |= {name: getattr(sizes, name) for name in SCORE}
    return options
