"""Checkpoints that authors published, by the names under which they are loaded; `model.checkpoints` reads them.

Command: `python -m model.checkpoint import REF.pth RUN_DIR [--vocabulary vocab.txt] ...` turns a checkpoint of 3SHNet's
authors into a run folder (see `model.runs`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from core.console import UserError, run_cli
from model.checkpoints.scan import load_scan
from model.checkpoints.three_shnet import load_reference
from model.checkpoints.vse_infinity import load_vse_infinity

__all__ = ["import_reference", "load_reference", "load_scan", "load_vse_infinity"]


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
    from model.pretrained import resolve_pretrained
    from model.runs import VOCABULARY, save_run
    from model.tokenizer import CaptionTokenizer

    network = load_reference(path, class_order, seg_map_encoding, heads=heads)
    text = network.text.config()
    size = text["vocabulary_size"]
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
        tokenizer = CaptionTokenizer.from_file(vocabulary, max_tokens=min(max_tokens, text["max_positions"]))
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


def main(argv: Sequence[str] | None = None) -> None:
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
    arguments = parser.parse_args(argv)
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
