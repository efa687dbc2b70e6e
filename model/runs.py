"""Run folders: `model.safetensors`, `config.json` and `vocab.txt`. Nothing else is needed to load a network."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.console import UserError
from core.files import atomic_path, write_json
from core.layout import CONFIG, HISTORY, STATE, VOCABULARY, WEIGHTS, state_of
from stores.places import Location, place_of
from stores.schema import WITHOUT_EFFECT

if TYPE_CHECKING:
    from model.build import Tokenizer
    from model.network import RetrievalNetwork

FORMAT_VERSION = 2  # 1: without `kind`, always 3SHNet; still read


def save_run(
    run_dir: str | Path, network: RetrievalNetwork, tokenizer: Tokenizer | None, *, config: Mapping[str, Any]
) -> None:
    """Write a run folder; each file appears whole, `model.safetensors` last.

    Args:
        run_dir: made if missing.
        network: its weights, kind and shape are written.
        tokenizer: its vocabulary is written; None leaves the folder without (`load_run` then gives no tokenizer).
        config: whatever else should be recorded (run name, features, training settings); a JSON-able mapping.
    """
    from safetensors.torch import save_file

    from model.build import described

    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    words = None
    if tokenizer is not None:
        tokenizer.save(run_dir / VOCABULARY)
        words = {"vocabulary": VOCABULARY, **tokenizer.record()}
    whole = {"format_version": FORMAT_VERSION, **described(network), "tokenizer": words, **config}
    write_json(run_dir / CONFIG, whole)
    weights = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with atomic_path(run_dir / WEIGHTS) as temporary:
        save_file(weights, temporary)


def load_run(run_dir: str | Path) -> tuple[RetrievalNetwork, dict[str, Any], Tokenizer | None]:
    """Load a run folder.

    Returns:
        The network in eval mode on the CPU, the content of `config.json`, and the tokenizer (None if the run was
        imported without a vocabulary).

    Raises:
        UserError: a file is missing, of a newer format, or does not fit the others.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from model.build import network_from
    from model.library_tokenizer import LibraryTokenizer
    from model.tokenizer import CaptionTokenizer
    from model.words import WordTokenizer

    run_dir = Path(run_dir)
    config = read_config(run_dir)
    if not (run_dir / WEIGHTS).exists():
        raise UserError(f"{run_dir} has no {WEIGHTS}: its training has not finished")
    try:
        network = network_from(config)
        network.load_state_dict(load_file(run_dir / WEIGHTS))
    except UserError as error:
        raise UserError(f"{run_dir}: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{run_dir}: {CONFIG} and {WEIGHTS} do not fit together: {error}") from error
    words = config.get("tokenizer")
    tokenizer = None
    if words:
        options = {key: value for key, value in words.items() if key not in ("vocabulary", "kind")}
        readers = {reader.kind: reader for reader in (CaptionTokenizer, LibraryTokenizer, WordTokenizer)}
        tokenizer = readers[words.get("kind", CaptionTokenizer.kind)].from_file(
            run_dir / words["vocabulary"], **options
        )
    return network.eval(), config, tokenizer


def imported_by_hand(run_dir: Location) -> bool:
    """Whether somebody put a run into this folder, which may lie in a bucket: then nothing may be written over it.

    It was imported there, or has weights and neither a history, which a training writes first, nor a resume state beside it.

    Raises:
        UserError: a bucket that cannot be reached.
    """
    place = place_of(run_dir)
    try:
        source = json.loads(place.read(CONFIG)).get("source") or {}
        imported, by_workflow = "imported" in source, bool(source.get("by_workflow"))
    except (OSError, ValueError, AttributeError, TypeError):
        imported = by_workflow = False
    if imported or by_workflow:
        return not by_workflow
    if place.size(WEIGHTS) is None or place.size(HISTORY) is not None:
        return False
    return not (Path(state_of(run_dir)) / STATE).exists()


def read_config(run_dir: Location) -> dict[str, Any]:
    """The content of a run's `config.json`, without loading the network (and without importing torch)."""
    place = place_of(run_dir)
    path = f"{place}/{CONFIG}"
    try:
        config = json.loads(place.read(CONFIG))
    except OSError as error:
        raise UserError(
            f"{run_dir} is not a run folder: cannot read {path}: {error.strerror or 'no such file'}"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    version = config.get("format_version")
    if version not in range(1, FORMAT_VERSION + 1):
        raise UserError(
            f"{path} has format version {version!r}, this program reads up to {FORMAT_VERSION}: "
            "use the program's version that wrote it, or train the run again"
        )
    return config


def check_same_extractor(trained: Mapping[str, Any] | None, given: Mapping[str, Any], *, run: str) -> None:
    """The features given must be made like those the run was trained on.

    Args:
        trained: `{visual, panoptic}`, each `{feature, extractor, weights_digest, ...}`, as recorded by the run; None
            for an imported run, of which nothing is known. With `cnn` in it, of the head of a grid checkpoint, all that is
            known is the file whose CNN it was trained along: `{architecture, checkpoint}`.
        given: the same of the stores to encode. run: for messages.

    Raises:
        UserError: lists every difference, with both values.
    """
    if not trained:
        print(
            f"warning: of the features that run {run} was trained on nothing is known, so it could not be checked that "
            "these are like them",
            file=sys.stderr,
        )
        return
    problems = []
    for kind, now in given.items():
        then = trained.get(kind) or {}
        if "cnn" in then:
            _check_own_cells(then, now, run)
            continue
        for key in ("feature", "weights_digest"):
            if then.get(key) != now.get(key):
                name = key.replace("_", " ")
                problems.append(f"{kind} {name}: {then.get(key)!r} in the run, {now.get(key)!r} in the store")
        before, after = then.get("extractor") or {}, now.get("extractor") or {}
        for key in sorted((before.keys() | after.keys()) - WITHOUT_EFFECT):
            if before.get(key) != after.get(key):
                problems.append(f"{kind} {key}: {before.get(key)!r} in the run, {after.get(key)!r} in the store")
    if problems:
        raise UserError(
            f"run {run} was trained on features of another kind than those it is to encode:\n  "
            + "\n  ".join(problems)
            + "\nextract the data set's features with the settings and weights of the extractor that the run was "
            "trained on, or train the run again"
        )


def _check_own_cells(then: Mapping[str, Any], now: Mapping[str, Any], run: str) -> None:
    """The cells given must come from the CNN that lies in the checkpoint of this head."""
    cnn = then["cnn"]
    fix = (
        f"write features.grids: {{architecture: {cnn['architecture']}, weights: FILE, grid: native}} with FILE the checkpoint that "
        f"the run was made of ({cnn['checkpoint']}, sha256 {then['weights_digest']})"
    )
    if now.get("feature") == then["feature"] and now.get("weights_digest") is None:
        print(
            f"warning: run {run} reads the cells of its own CNN; whose those of the store are is not known, so it could not be "
            f"checked. To have them extracted {fix}",
            file=sys.stderr,
        )
        return
    problems = [
        f"visual {key.replace('_', ' ')}: {then[key]!r} in the run, {now.get(key)!r} in the store"
        for key in ("feature", "weights_digest")
        if then[key] != now.get(key)
    ]
    if problems:
        raise UserError(
            f"run {run} is the head of a grid checkpoint and reads the cells of its own CNN alone:\n  "
            + "\n  ".join(problems)
            + f"\n{fix}"
        )
