"""Checkpoints that authors published, by the names under which they are loaded; `model.checkpoints` reads them.

Command: `python -m model.checkpoint import REF.pth RUN_DIR [--vocabulary FILE] ...` turns a checkpoint of the authors of
3SHNet, VSE-infinity or SCAN into a run folder (see `model.runs`); `python -m model.checkpoint export RUN_DIR FILE` writes a
run's weights as its kind's authors do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.checkpoints import cnn_architecture, read_checkpoint, split_cnn
from core.console import UserError, run_cli
from core.features import VISUAL
from core.files import digest_file
from core.flags import add_mapping, number
from core.layout import HISTORY, VOCABULARY
from model.checkpoints.heads import AUTHORS, family
from model.checkpoints.reading import word_tokenizer_of, wrong_family
from model.checkpoints.scan import load_scan
from model.checkpoints.three_shnet import load_reference
from model.checkpoints.vse_infinity import load_vse_infinity
from model.checkpoints.writing import export_checkpoint
from model.text import TextEncoder, WordEncoder

if TYPE_CHECKING:
    from model.build import Tokenizer
    from model.network import RetrievalNetwork

__all__ = [
    "export_checkpoint",
    "import_checkpoint",
    "import_reference",
    "load_reference",
    "load_scan",
    "load_vse_infinity",
]


def import_checkpoint(
    path: str | Path,
    run_dir: str | Path,
    *,
    kind: str | None = None,
    class_order: str | None = None,
    seg_map_encoding: str | None = None,
    heads: int | None = None,
    void_value: int | None = None,
    options: Mapping[str, Any] | None = None,
    vocabulary: str | Path | None = None,
    lowercase: str | None = None,
    max_tokens: int | None = None,
    visual: str | None = None,
    grids: Mapping[str, Any] | None = None,
    by_workflow: bool = False,
) -> None:
    """Turn a checkpoint of authors into a run folder.

    Of one that reads word pieces the vocabulary is `vocabulary`, else a `vocab.txt` beside the checkpoint, else
    bert-base-uncased's from the Hugging Face hub; of one that reads words it is `vocabulary`, else a single `*vocab.json`
    beside it. If none is to be had, the folder is written without, and a warning says what to do.

    Of a grid checkpoint of VSE-infinity the head becomes the run, which records the file's digest: its visual tokens are the
    cells of the file's own CNN, and `model.runs.check_same_extractor` refuses those of another.

    Args:
        kind: whose it must be (see `model.settings.KINDS`); None: of any.
        class_order, seg_map_encoding, void_value: see `load_reference`; of 3SHNet alone. heads: attention heads of its BERT.
        options: in place of the file's own, by the names of SCAN's and VSE-infinity's authors; see `load_scan`.
        lowercase: of words, see `model.settings.WordText`; None: as the kind's authors. max_tokens: longer captions are cut;
            None: 128 word pieces, 512 words. by_workflow: made by the workflow, which then also needs a vocabulary.
        visual, grids: what it is to read, and the extractor of grids (config section `features.grids`), if that is known:
            what a grid checkpoint cannot be scored on is then told at once.

    Raises:
        UserError: the file does not fit, is of another kind or on other visual tokens, something is said that a file of its kind
            does not have, or `run_dir` holds a run that was trained, or another checkpoint that somebody imported.
    """
    from model.runs import imported_by_hand, read_config, save_run

    if (Path(run_dir) / HISTORY).exists():
        raise UserError(f"{run_dir} holds a run that was trained here; import {path} into another folder")
    found, digest, features = recognise(path, kind, run=Path(run_dir).name, visual=visual, grids=grids)
    there = (read_config(run_dir).get("source") or {}) if imported_by_hand(run_dir) else {"digest": digest}
    if there.get("digest") != digest:
        what = f"{there['imported']}, imported here" if "imported" in there else "a run that somebody put there"
        raise UserError(f"{run_dir} holds {what}; import {path} into another folder")
    said = {"class_order": class_order, "seg_map_encoding": seg_map_encoding, "void_value": void_value}
    for name, value in said.items() if found != "3shnet" else [("options", options)]:
        if value is not None:
            raise UserError(
                f"--{name.replace('_', '-')} {value}: {path} is of kind {found}, which has no such choice; leave it out"
            )
    source: dict[str, Any] = {"imported": Path(path).name, "digest": digest}
    class_order, seg_map_encoding = class_order or "upsnet", seg_map_encoding or "raw"
    if found == "3shnet":
        network = load_reference(path, class_order, seg_map_encoding, heads=heads, void_value=void_value)
        source |= {"class_order": class_order, "seg_map_encoding": seg_map_encoding}
    else:
        network = (
            load_scan(path, options=options)
            if found == "scan"
            else load_vse_infinity(path, heads=heads, options=options)
        )
    if network.text.config().get("kind") == "none" and (by_workflow or vocabulary is not None):
        raise UserError(f"{path} holds no text encoder, which could read captions; get the checkpoint of both encoders")
    for name, value, unit in (("heads", heads, "pieces"), ("lowercase", lowercase, "words")):
        if value is not None and _unit(network) != unit:
            raise UserError(
                f"--{name} {value}: {path} reads {_unit(network)}, of which there is no such choice; leave it out"
            )
    lowercase = lowercase or ("ascii" if found == "scan" else "text")
    tokenizer = _tokenizer_of(
        network, Path(path), vocabulary, masked=found != "scan", lowercase=lowercase, max_tokens=max_tokens
    )
    if tokenizer is None:
        message = f"no vocabulary of {_vocabulary_size(network)} {_unit(network)} found"
        if by_workflow:
            raise UserError(f"{message} for {path}: name it, runs.NAME.vocabulary")
        print(
            f"warning: {message}; captions cannot be read by {run_dir} until it is imported again with --vocabulary "
            f"{'vocab.json' if _unit(network) == 'words' else 'vocab.txt'}",
            file=sys.stderr,
        )
    config = {
        "run": Path(run_dir).name,
        "source": source | ({"by_workflow": True} if by_workflow else {}),
        "features": features,
        "training": None,
    }
    save_run(run_dir, network, tokenizer, config=config)


def recognise(
    path: str | Path,
    kind: str | None = None,
    *,
    run: str,
    visual: str | None = None,
    grids: Mapping[str, Any] | None = None,
) -> tuple[str, str, dict[str, Any] | None]:
    """Whose checkpoint a file is, without building its network.

    Args:
        kind, visual, grids: see `import_checkpoint`. run: name in the configuration, for messages.

    Returns:
        The kind, the file's digest, and what a run of it records of its features: None where nothing is known.

    Raises:
        UserError: it is no checkpoint, of another kind, or on other visual tokens.
    """
    image, _, options = read_checkpoint(path, AUTHORS)
    found, digest = family(image), digest_file(path)
    if found is None or kind not in (None, found):
        raise wrong_family(path, kind or "3shnet, vse_infinity or scan", found)
    cnn, _, _ = split_cnn(image)
    if not cnn:
        return found, digest, None
    architecture = cnn_architecture(path, cnn, options)
    section = f"features.grids: {{architecture: {architecture}, weights: {path}, grid: native}}"
    if visual not in (None, "grids"):
        raise UserError(
            f"runs.{run}.visual: {visual!r}, but {path} is a grid checkpoint, which reads the cells of its own CNN; write "
            f"visual: grids and {section}"
        )
    given = grids or {"architecture": architecture}
    weights = given.get("weights")
    here = weights is not None and Path(weights).is_file()  # or yet to be fetched
    if given.get("architecture") != architecture or (here and digest_file(weights) != digest):
        maker = f"{given.get('architecture') or given.get('engine')} with weights {weights}"
        raise UserError(
            f"runs.{run}.checkpoint: {path} reads the cells of its own CNN, but features.grids are those of {maker}; write {section}"
        )
    own = {"architecture": architecture, "checkpoint": Path(path).name}
    return found, digest, {"visual": {"feature": "grids", "weights_digest": digest, "cnn": own}}


def import_reference(path: str | Path, run_dir: str | Path, **options: Any) -> None:
    """`import_checkpoint` of 3SHNet's authors."""
    import_checkpoint(path, run_dir, kind="3shnet", **options)


def _unit(network: RetrievalNetwork) -> str:
    return "words" if network.text.config().get("kind") == "bigru" else "pieces"


def _vocabulary_size(network: RetrievalNetwork) -> int:
    text = network.text
    if isinstance(text, WordEncoder):
        return text.embedding.num_embeddings
    return text.bert.config.vocabulary_size if isinstance(text, TextEncoder) else 0


def _tokenizer_of(
    network: RetrievalNetwork,
    path: Path,
    vocabulary: str | Path | None,
    *,
    masked: bool,
    lowercase: str,
    max_tokens: int | None,
) -> Tokenizer | None:
    from model.pretrained import resolve_pretrained
    from model.tokenizer import CaptionTokenizer

    size = _vocabulary_size(network)
    if _unit(network) == "words":
        beside = sorted(path.parent.glob("*vocab.json"))
        vocabulary = vocabulary or (beside[0] if len(beside) == 1 else None)
        options = {"masked": masked, "lowercase": lowercase, "max_tokens": max_tokens or 512}
        return vocabulary and word_tokenizer_of(network, vocabulary, path, **options)
    if vocabulary is None and (path.parent / VOCABULARY).exists():
        vocabulary = path.parent / VOCABULARY
    if vocabulary is None and size == 30522:
        try:
            vocabulary = resolve_pretrained("bert-base-uncased", weights=False) / VOCABULARY
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)
    if vocabulary is None:
        return None
    longest = min(max_tokens or 128, network.text.bert.config.max_positions)
    tokenizer = CaptionTokenizer.from_file(vocabulary, max_tokens=longest)
    if len(tokenizer.vocabulary) != size:
        raise UserError(
            f"the vocabulary {vocabulary} has {len(tokenizer.vocabulary)} pieces, but the text encoder in {path} "
            f"has {size}: pass the one it was trained with"
        )
    return tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m model.checkpoint", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("import", help="turn a checkpoint of authors into a run folder")
    command.add_argument("path", type=Path, metavar="REF.pth")
    command.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    command.add_argument("--kind", choices=("3shnet", "vse_infinity", "scan"), help="whose it must be (default: any)")
    command.add_argument("--class-order", choices=("upsnet", "coco"), help="of a 3SHNet (default: upsnet)")
    command.add_argument("--seg-map-encoding", choices=("raw", "standardised"), help="of a 3SHNet (default: raw)")
    command.add_argument("--vocabulary", type=Path, help="vocab.txt or *_vocab.json of its text encoder")
    command.add_argument("--heads", type=number(1), help="attention heads of its BERT (default: 64 features each)")
    command.add_argument(
        "--void-value", type=number(0, 255), help="what a 3SHNet reads where a class map has none (default: 133)"
    )
    add_mapping(
        command, "--options", "of SCAN and VSE-infinity, where the file has lost its own: cross_attn, ..., no_imgnorm"
    )
    command.add_argument("--lowercase", choices=("text", "ascii"), help="of words (default: as the kind's authors)")
    command.add_argument(
        "--max-tokens", type=number(3), help="longer captions are cut (default: 128 word pieces, 512 words)"
    )
    command.add_argument(
        "--visual", choices=VISUAL, help="what it is to read, to be compared with what it was trained on"
    )
    add_mapping(command, "--grids", "the extractor of grids, to be compared likewise")
    command.add_argument("--by-workflow", action="store_true", help=argparse.SUPPRESS)
    command = commands.add_parser("export", help="write a run's weights as its kind's authors do")
    command.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    command.add_argument("path", type=Path, metavar="FILE")
    command.add_argument(
        "--cnn", type=Path, metavar="REF.pth", help="checkpoint whose CNN made the cells of a head of grids"
    )
    arguments = vars(parser.parse_args(argv))
    {"import": import_checkpoint, "export": export_checkpoint}[arguments.pop("command")](**arguments)


if __name__ == "__main__":
    run_cli(main)
