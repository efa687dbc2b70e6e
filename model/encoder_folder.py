"""What the folder of a published text encoder says besides its weights: read without torch, so that it is checked before any job."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.console import UserError
from core.files import parse_json
from core.hub import COPY, reads, weight_faults
from core.kinds import other_kind
from model.vocabulary import SPECIAL_TOKENS, read_vocabulary, vocabulary_fault

TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.txt", "vocab.json"),
    *("sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model"),
)
_DECIDING = re.compile(
    r"(config|tokenizer_config|special_tokens_map|added_tokens|tokenizer|vocab)\.json|merges\.txt|vocab\.txt|.*\.model|"
    r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
)


def encoder_files(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of all files that decide about the encoder in a folder, large ones in parts too."""
    return [
        path
        for name in sorted(os.listdir(folder))
        if _DECIDING.fullmatch(name) and os.path.isfile(path := os.path.join(folder, name))
    ]


_SPECIAL_KEYS = dict(
    zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True)
)
_DESCRIPTIONS = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json")
_KINDS = {
    "tokenizer_config.json": {"added_tokens_decoder": dict},
    "tokenizer.json": {"model": dict, "normalizer": dict, "pre_tokenizer": dict, "added_tokens": list},
}
_ANY_LENGTH = 1 << 31
_TOKENIZERS = ("BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")


@dataclass(frozen=True)
class TokenizerSettings:
    """How captions become words: see `CaptionTokenizer`."""

    lowercase: bool = True
    strip_accents: bool | None = None
    split_chinese: bool = True
    max_tokens: int | None = None  # its model_max_length

    def options(self) -> dict[str, Any]:
        """Of `CaptionTokenizer`, but `max_tokens`."""
        return {key: value for key, value in asdict(self).items() if key != "max_tokens"}


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. UserError: it cannot be read or holds something else."""
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"text.pretrained: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        what = other_kind(path) or f"not valid JSON ({error}); {COPY}"
        raise UserError(f"text.pretrained: {path} is {what}") from error
    if not isinstance(content, dict):
        raise UserError(f"text.pretrained: {path} holds no object of settings; {COPY}")
    return content


def tokenizer_settings(folder: Path) -> TokenizerSettings:
    """How the encoder in a folder takes its text: by its tokenizer_config.json, else its tokenizer.json, else its vocabulary.

    Raises:
        UserError: they ask for what this tokenizer does not do, or say nothing and the vocabulary neither.
    """
    given, library, *_ = files = _described(folder)
    vocabulary = read_vocabulary(folder / "vocab.txt")
    if wrong := _other_tokenizer(*files, vocabulary):
        raise UserError(
            f"text.pretrained: {folder / 'tokenizer_config.json'}: {'; '.join(wrong)}. Captions are split by BERT's own tokenizer only; "
            "choose another encoder"
        )
    own = library.get("normalizer") or {}
    lowercase = _first(given.get("do_lower_case"), own.get("lowercase"))
    accents = _first(given.get("strip_accents"), own.get("strip_accents"))
    chinese = _first(given.get("tokenize_chinese_chars"), own.get("handle_chinese_chars"), True)
    if lowercase is None:
        lowercase = _lower_cased(vocabulary, folder)
        if accents is None and lowercase and _has_accents(vocabulary):
            accents = False
    for name, value in (("do_lower_case", lowercase), ("strip_accents", accents), ("tokenize_chinese_chars", chinese)):
        if not isinstance(value, bool | None):
            raise UserError(
                f"text.pretrained: {folder / 'tokenizer_config.json'}: {name} is {value!r}, not true or false"
            )
    longest = given.get("model_max_length")
    # The library writes 1e30 for "any number".
    longest = int(longest) if isinstance(longest, int | float) and 0 < longest < _ANY_LENGTH else None
    # Left out, accents go with upper case.
    return TokenizerSettings(lowercase, None if accents in (None, lowercase) else accents, chinese, longest)


def doubts(folder: Path) -> Iterator[str]:
    """What an encoder's folder says and its vocabulary contradicts, which is honoured all the same: lines of a note."""
    vocabulary = read_vocabulary(folder / "vocab.txt")
    pieces = list(_ordinary(vocabulary))
    if len(set(vocabulary)) < len(vocabulary):
        yield f"{folder / 'vocab.txt'} has pieces twice, of which the last counts"
    upper = [piece for piece in pieces if piece != piece.lower()]
    lowercase = tokenizer_settings(folder).lowercase
    if lowercase and upper:
        yield f"{folder} lower-cases its text, so that {len(upper)} pieces of its vocabulary such as {upper[0]!r} are never used"
    elif not lowercase and not upper and any(piece != piece.upper() for piece in pieces):
        yield f"{folder} does not lower-case its text, but all pieces of its vocabulary are lower-case: words with capitals are unknown"


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _described(folder: Path) -> list[dict[str, Any]]:
    """The contents of `_DESCRIPTIONS`, {} of what is not there. UserError: one cannot be read, or holds other than the library writes."""
    found = [read_object(folder / name) if os.path.lexists(folder / name) else {} for name in _DESCRIPTIONS]
    for name, content in zip(_DESCRIPTIONS, found, strict=True):
        for key, kind in _KINDS.get(name, {}).items():
            if content.get(key) is not None and not isinstance(content[key], kind):
                raise UserError(
                    f"text.pretrained: {folder / name}: {key} is a {type(content[key]).__name__}, not a {kind.__name__}; {COPY}"
                )
    return found


def _other_tokenizer(
    given: dict[str, Any],
    library: dict[str, Any],
    special: dict[str, Any],
    added: dict[str, Any],
    vocabulary: Sequence[str] | None,
) -> list[str]:
    """What the files of `_DESCRIPTIONS` ask for that BERT's own tokenizer does not do. vocabulary: of vocab.txt, None without one."""
    wrong = []
    name = given.get("tokenizer_class")
    if name is not None and name not in _TOKENIZERS:
        wrong.append(f"tokenizer_class is {name!r}")
    if given.get("do_basic_tokenize") is False:
        wrong.append("do_basic_tokenize is false")
    wrong += [f"{key} is {given[key]!r}" for key in ("never_split", "word_tokenizer_type") if given.get(key)]
    for key, token in _SPECIAL_KEYS.items():
        for value in (given.get(key), special.get(key)):
            value = value.get("content") if isinstance(value, dict) else value
            if value is not None and value != token:
                wrong.append(f"{key} is {value!r}, not {token}")
    more = [
        str(token.get("content"))
        for token in (given.get("added_tokens_decoder") or {}).values()
        if isinstance(token, dict)
    ]
    more += [str(token.get("content")) for token in library.get("added_tokens") or [] if isinstance(token, dict)]
    if others := [token for token in dict.fromkeys([*added, *more]) if token not in SPECIAL_TOKENS]:
        wrong.append(f"it has added tokens such as {others[0]!r}")
    model, before = library.get("model") or {}, library.get("pre_tokenizer") or {}
    if library:
        if model.get("type", "WordPiece") != "WordPiece" or model.get("continuing_subword_prefix", "##") != "##":
            wrong.append(f"tokenizer.json has a {model.get('type')} model")
        if before.get("type", "BertPreTokenizer") != "BertPreTokenizer":
            wrong.append(f"tokenizer.json splits words by {before.get('type')}")
        normalizer = library.get("normalizer") or {}
        if normalizer.get("type") != "BertNormalizer" or normalizer.get("clean_text") is False:
            wrong.append(f"tokenizer.json changes text by {normalizer.get('type')}, or does not clean it")
        pieces = model.get("vocab")
        if isinstance(pieces, dict) and vocabulary and pieces != {piece: k for k, piece in enumerate(vocabulary)}:
            wrong.append("tokenizer.json has other pieces than vocab.txt")
    return wrong


def has_berts_tokenizer(folder: Path) -> bool:
    """Whether the encoder is a BERT with BERT's own tokenizer, of which a vocabulary is enough. UserError: files cannot be read."""
    if read_object(folder / "config.json").get("model_type", "bert") != "bert":
        return False
    given, library, *_ = files = _described(folder)
    vocabulary = read_vocabulary(folder / "vocab.txt") if (folder / "vocab.txt").is_file() else None
    return not _other_tokenizer(*files, vocabulary) and (vocabulary is not None or not library)


def _ordinary(vocabulary: Sequence[str]) -> Iterator[str]:
    return (piece for piece in vocabulary if not (piece.startswith("[") and piece.endswith("]")))


def _lower_cased(vocabulary: Sequence[str], folder: Path) -> bool:
    """Whether an encoder lower-cases its text, by what its pieces are. UserError: they tell nothing."""
    pieces = list(_ordinary(vocabulary))
    if any(piece != piece.lower() for piece in pieces):
        return False
    if any(piece != piece.upper() for piece in pieces):
        return True
    raise UserError(
        f"text.pretrained: {folder} has no tokenizer_config.json, and its vocabulary has no letters of either case; add the file "
        'with {"do_lower_case": true} or false'
    )


def _has_accents(vocabulary: Sequence[str]) -> bool:
    """Whether pieces hold letters with accents: their encoder does not strip them."""
    return any(
        any(unicodedata.category(mark) == "Mn" for mark in unicodedata.normalize("NFD", letter)[1:])
        for piece in _ordinary(vocabulary)
        for letter in piece
    )


def folder_faults(folder: Path) -> Iterator[str]:
    """Everything about an encoder's folder that can be seen without loading it: lines without `text.pretrained`."""
    try:
        berts = not (folder / "config.json").is_file() or has_berts_tokenizer(folder)
    except UserError as error:
        yield str(error).removeprefix("text.pretrained: ")
        return
    for name in ("config.json", "vocab.txt") if berts else ("config.json",):
        if not (folder / name).is_file():
            yield f"{folder} lacks {name}"
        elif what := other_kind(folder / name):
            yield f"{folder / name} is {what}"
    if not berts and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        yield f"{folder} lacks its tokenizer ({TOKENIZER_FILES[0]}, or {', '.join(TOKENIZER_FILES[1:])})"
    yield from weight_faults(folder)
    pairs = (folder / "vocab.json").is_file() and not (folder / "merges.txt").is_file()
    if not berts and pairs and not any((folder / name).is_file() for name in TOKENIZER_FILES if name != "vocab.json"):
        yield f"{folder} lacks merges.txt, which belongs to vocab.json; {COPY}"
    # Of the library's own it reads these, and whatever they are it fails at them late.
    for name in ("merges.txt", *TOKENIZER_FILES) if not berts else ():
        if (folder / name).is_file() and (what := other_kind(folder / name)):
            yield f"{folder / name} is {what}"
    if (folder / "config.json").is_file():
        try:
            check_config(read_object(folder / "config.json"), folder)
            if berts and (folder / "vocab.txt").is_file():
                yield from _vocabulary_faults(folder)
        except UserError as error:
            yield str(error).removeprefix("text.pretrained: ")


def _vocabulary_faults(folder: Path) -> Iterator[str]:
    vocabulary, known = read_vocabulary(folder / "vocab.txt"), read_object(folder / "config.json").get("vocab_size")
    if what := vocabulary_fault(vocabulary):
        yield f"{folder / 'vocab.txt'} {what}; {COPY}"
        return
    tokenizer_settings(folder)
    if isinstance(known, int) and len(vocabulary) > known:
        yield f"{folder / 'vocab.txt'} has {len(vocabulary)} pieces, more than the {known} of config.json; {COPY}"


#: Kinds of models that loading would refuse whatever their weights: told before any job. Others are found out by a trial.
_PADDING_IS_READ = ("canine", "convbert", "fnet", "funnel", "nystromformer", "yoso")


def check_config(published: dict[str, Any], folder: Path) -> None:
    """UserError: a config.json describes what is not run as it was published."""
    if reads(published) == "images":
        raise UserError(
            f"text.pretrained: {folder} is a {published.get('model_type')!r} model, which reads images; choose a text encoder"
        )
    named = [name for name in published.get("architectures") or [] if isinstance(name, str)]
    if "model_type" not in published and named and not named[0].startswith("Bert"):
        raise UserError(
            f"text.pretrained: {folder / 'config.json'} says no model_type, and that it is a {named[0]}; add the line of its published "
            'configuration, such as "model_type": "roberta"'
        )
    if published.get("model_type") in _PADDING_IS_READ:
        raise UserError(
            f"text.pretrained: what the {published['model_type']!r} model in {folder} makes of a caption depends on the captions beside "
            "it (padding is not masked); choose another encoder"
        )
    positions = str(published.get("position_embedding_type", "absolute"))
    if positions.startswith("relative"):
        kind = published.get("model_type", "bert")
        raise UserError(
            f"text.pretrained: {folder} is a {kind!r} model with {positions} positions, which are not read; choose an encoder with "
            "absolute positions"
        )
    decoder = next((key for key in ("is_decoder", "add_cross_attention") if published.get(key)), None)
    if decoder and not published.get("is_encoder_decoder"):  # of which the encoder is taken
        raise UserError(
            f"text.pretrained: {folder} has {decoder}: its tokens see earlier ones only; the text encoder must be an encoder"
        )
