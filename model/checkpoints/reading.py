"""What the readers of checkpoints share: every key of a file is accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from core.checkpoints import read_checkpoint
from core.console import UserError
from core.messages import did_you_mean
from model.build import network_from
from model.checkpoints.heads import SWITCHES
from model.library_encoder import LibraryConfig, bert_config
from model.network import RetrievalNetwork
from model.text import WordEncoder
from model.words import MASK, WordTokenizer, read_words

# The two layers of the authors' MLP; its second BatchNorm (`bns.1`) is in their files but never applied.
MLP_PARTS = {"layers.0": "hidden", "bns.0": "norm", "layers.1": "output"}
MLP_UNUSED = re.compile(r"(?:^|\.)bns\.1\.")
BERT_PREFIXES = {"bert": "bert.model", "linear": "projection", "gpool.gru": "pool.gru", "gpool.linear": "pool.score"}
WORD_PREFIXES = {"embed": "embedding", "rnn": "gru", "gpool.gru": "pool.gru", "gpool.linear": "pool.score"}
BERT_UNUSED = re.compile(r"(pooler\.|embeddings\.position_ids$)")  # its hidden states do not depend on them
_OLD_NORM = {"gamma": "weight", "beta": "bias"}


def read_states(path: str | Path, authors: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The states of `core.checkpoints.read_checkpoint`."""
    return read_checkpoint(path, authors)[:2]


def renamed(state: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under our names, and the keys that have no place there (known leftovers are neither)."""
    found, unknown = {}, []
    for key, value in state.items():
        if MLP_UNUSED.search(key):
            continue
        prefix = next((known for known in prefixes if key.startswith(f"{known}.")), None)
        if prefix is None:
            unknown.append(key)
            continue
        rest = key[len(prefix) + 1 :]
        if prefix == "bert":
            if BERT_UNUSED.match(rest):
                continue
            rest = re.sub(r"LayerNorm\.(gamma|beta)$", lambda old: f"LayerNorm.{_OLD_NORM[old[1]]}", rest)
        for theirs, ours in MLP_PARTS.items():
            if rest.startswith(f"{theirs}."):
                rest = ours + rest[len(theirs) :]
        found[f"{prefixes[prefix]}.{rest}"] = value
    return found, unknown


def read_text(
    state: Mapping[str, Tensor], *, pooled: bool, normalise: bool, heads: int | None = None
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """A text encoder's config, its weights under our names, and the keys that are unexpected. KeyError: one is missing.

    Args:
        state: of BERT, or of a GRU over words. pooled, normalise: see `model.text.CaptionEncoder`.
        heads: attention heads of BERT, of which the weights say nothing; by default 64 features each.
    """
    if not state:  # of an image encoder alone
        return {"kind": "none"}, {}, []
    words = any(key.startswith(("embed.", "rnn.")) for key in state)
    weights, unknown = renamed(state, WORD_PREFIXES if words else BERT_PREFIXES)
    if words:
        number, size = weights["embedding.weight"].shape
        sizes = {
            "kind": "bigru",
            "words": number,
            "word_size": size,
            "embed_size": weights["gru.weight_hh_l0"].shape[1],
        }
        sizes["bidirectional"] = "gru.weight_hh_l0_reverse" in weights
    else:
        sizes = _sizes_of_bert(weights, heads).to_dict()
        sizes["embed_size"] = weights["projection.weight"].shape[0]
    sizes |= pool_sizes(weights) if pooled else {"pool": False}
    return sizes | ({} if normalise else {"normalise": False}), weights, unknown


def _sizes_of_bert(weights: Mapping[str, Tensor], heads: int | None) -> LibraryConfig:
    def rows(name: str) -> int:
        return weights[f"bert.model.{name}"].shape[0]

    layers = {int(match[1]) for key in weights if (match := re.match(r"bert\.model\.encoder\.layer\.(\d+)\.", key))}
    hidden = rows("embeddings.LayerNorm.weight")
    heads = heads or max(1, hidden // 64)
    if hidden % heads:
        raise UserError(
            f"its BERT is {hidden} wide, which {heads} attention heads do not divide; name as many as it was trained with (text.heads, "
            "--heads, in Python heads=)"
        )
    return bert_config(
        vocabulary_size=rows("embeddings.word_embeddings.weight"),
        hidden_size=hidden,
        layers=max(layers, default=-1) + 1,
        heads=heads,
        intermediate_size=rows("encoder.layer.0.intermediate.dense.bias") if layers else 4 * hidden,
        max_positions=rows("embeddings.position_embeddings.weight"),
        token_types=rows("embeddings.token_type_embeddings.weight"),
    )


def pool_sizes(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes of a generalised pooling from its weights, under our names."""
    return {
        "pool_position_size": weights["pool.gru.weight_ih_l0"].shape[1],
        "pool_hidden_size": weights["pool.gru.weight_hh_l0"].shape[1],
    }


def word_tokenizer_of(
    network: RetrievalNetwork,
    vocabulary: str | Path,
    path: str | Path,
    *,
    masked: bool,
    lowercase: str = "text",
    max_tokens: int = 512,
) -> WordTokenizer:
    """The tokenizer of a loaded network that reads words; `masked`: `<mask>` comes after the words of the file.

    Raises:
        UserError: the network reads no words, or not as many.
    """
    words = read_words(vocabulary)
    if not isinstance(network.text, WordEncoder):
        raise UserError(f"{path} reads word pieces, not words: {vocabulary} is no vocabulary of it; give its vocab.txt")
    words += [MASK] if masked and MASK not in words else []
    expected = network.text.embedding.num_embeddings
    if len(words) != expected:
        raise UserError(
            f"the vocabulary {vocabulary} has {len(words)} words{' with <mask>' if masked else ''}, but the text encoder in "
            f"{path} has {expected}: give the one it was trained with"
        )
    return WordTokenizer(words, lowercase=lowercase, max_tokens=max_tokens)


def options_of(own: Mapping[str, Any], given: Mapping[str, Any] | None, known: Sequence[str]) -> dict[str, Any]:
    """A file's own options, with those `given` in their place. UserError: one that is not `known`, or a switch that is no true or false."""
    for name, value in (given or {}).items():
        if name not in known:
            raise UserError(
                f"options: {name!r} is none of {', '.join(known)}; {did_you_mean(name, known, 'leave it out')}"
            )
        if name in SWITCHES and not isinstance(value, bool):
            raise UserError(f"options: {name} is {value!r}; write true or false")
    return dict(own) | dict(given or {})


@contextmanager
def sizes_told(path: str | Path, problems: list[str]) -> Iterator[None]:
    """Within, sizes are read from a file's weights: a UserError where one is missing or has another number of dimensions."""
    try:
        yield
    except UserError as error:
        raise misfit(path, [*problems, str(error)]) from error
    except KeyError as error:
        raise misfit(path, [*problems, f"missing the weights for {error}"]) from error
    except (IndexError, ValueError) as error:  # of a shape
        line = "a layer's weights have another number of dimensions than theirs, so that its sizes cannot be told"
        raise misfit(path, [*problems, line]) from error


def wrong_family(path: str | Path, wanted: str, found: str | None) -> UserError:
    loaders = {"3shnet": "load_reference", "vse_infinity": "load_vse_infinity", "scan": "load_scan"}
    if found is None:
        return UserError(
            f"{path} is no checkpoint of kind {wanted}: its image encoder is of no kind that is known; read are those of the "
            "authors of 3SHNet, VSE-infinity and SCAN"
        )
    return UserError(
        f"{path} is a checkpoint of kind {found}, not {wanted}; write that kind (model: {{kind: {found}}}, --kind {found}; in Python "
        f"{loaders[found]})"
    )


def loaded(
    kind: str,
    image: tuple[Mapping[str, Any], Mapping[str, Tensor]],
    text: tuple[Mapping[str, Any], Mapping[str, Tensor]],
    *,
    path: str | Path,
    problems: list[str],
    vocabulary: str | Path | None = None,
    masked: bool = False,
) -> Any:
    """A network of a kind with its weights in place, in eval mode.

    Args:
        image, text: each side's sizes, and its weights under our names.
        problems: what is known to be wrong already, a line each.
        vocabulary, masked: of its words, to be checked against it; see `word_tokenizer_of`.

    Raises:
        UserError: the file does not fit; all of what is missing, unexpected or of another shape is listed. Or the vocabulary
            does not.
    """
    sides = [sizes["embed_size"] for sizes in (image[0], text[0]) if "embed_size" in sizes]
    if len(set(sides)) > 1:
        raise misfit(path, [*problems, f"its images are embedded in {sides[0]} numbers, its captions in {sides[1]}"])
    network = network_from({"kind": kind, "image": image[0], "text": text[0]})
    weights = {f"image.{key}": value for key, value in image[1].items()}
    weights |= {f"text.{key}": value for key, value in text[1].items()}
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
    for key in expected.keys() & weights.keys():
        if expected[key].is_floating_point() and not weights[key].is_floating_point():
            problems.append(f"{key} is of {weights[key].dtype}, which no weights are")
        elif not weights[key].isfinite().all():
            problems.append(f"{key} holds values that are not finite: its training had failed, or the file is damaged")
    if problems:
        raise misfit(path, problems)
    network.load_state_dict(weights)
    if vocabulary is not None:
        word_tokenizer_of(network, vocabulary, path, masked=masked)
    return network.eval()


def misfit(path: str | Path, problems: list[str]) -> UserError:
    return UserError(f"{path} does not fit the network:\n  " + "\n  ".join(problems))
