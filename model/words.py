"""Captions -> words, as SCAN and VSE-infinity read them: sentences as Punkt cuts them, Treebank rules for each.

Equal to `nltk.word_tokenize` of NLTK 3.2 to 3.5 with its English model on lower-case text, which is what the two systems
were trained on. There Punkt comes down to little: a full stop ends a sentence unless it belongs to a known abbreviation, to
an ellipsis, or to an initial or a number that a lower-case word follows. Sources: NLTK's `tokenize/destructive.py` and
`tokenize/punkt.py`, and its English Punkt model for the abbreviations.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.console import UserError
from core.files import atomic_path, parse_json
from core.kinds import other_kind
from model.tokenizer import Pieces, read_vocabulary

PAD, START, END, UNKNOWN, MASK = "<pad>", "<start>", "<end>", "<unk>", "<mask>"
_FIRST = (PAD, START, END, UNKNOWN)
MIN_COUNT = 4  # of a word that the vocabulary takes

_ABBREVIATIONS = frozenset(
    """
    a.a a.c a.d a.g a.h a.m a.m.e a.s a.t adm ala ariz aug ave b.f b.v bros c c.i.t c.o.m.b c.v calif chg cie co col colo
    conn corp cos ct d d.c d.h d.w dec dr e e.f e.h e.l e.m f f.g f.j feb fla fri ft g g.d g.f g.k ga gen h h.c h.f h.m i.m.s
    ill inc j.b j.c j.j j.k j.p j.r jan jr k kan ky l l.a l.f l.p lt ltd m m.b.a m.d.c m.j maj messrs mg mich minn mr mrs ms n
    n.c n.d n.h n.j n.m n.v n.y nev nov oct ok okla ore p p.a.m p.m pa ph.d prof r r.a r.h r.i r.j r.k r.t rep reps s s.a
    s.a.y s.c s.g s.p.a s.s sen sep sept sr st sw t t.j tenn tues u.k u.n u.s u.s.a u.s.s.r v va vs vt w w.c w.r w.va w.w
    wash wed wis yr
    """.split()
)
_OTHER = r"(?:[)\";}\]*:@'({\[?!])"  # no part of a word
_SEVERAL = r"(?:-{2,}|\.{2,}|(?:\.\s){2,}\.)"
_TOKEN = re.compile(
    rf"({_SEVERAL}|(?=[^(\"`{{\[:;&#*@)}}\]\-,])\S+?(?=\s|$|{_OTHER}|{_SEVERAL}|,(?=$|\s|{_OTHER}|{_SEVERAL}))|\S)"
)
_STOP = re.compile(rf"\S*[.?!](?=(?P<after>{_OTHER}|\s+(?P<next>\S+)))")
_CLOSERS = re.compile(r"[\"')\]}]+?(?:\s+|(?=--)|$)", re.M)
_INITIAL_OR_NUMBER = re.compile(r"[^\W\d]\.$|-?[.,]?\d[\d,.-]*\.$")

# In this order; the first four lines are opening quotes.
_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"([«“‘„]|[`]+)", r" \1 "),
        (r"^\"", r"``"),
        (r"(``)", r" \1 "),
        (r"([ \(\[{<])(\"|'{2})", r"\1 `` "),
        (r"(?i)(')(?!re|ve|ll|m|t|s|d)(\w)\b", r"\1 \2"),
        (r"([^.])(\.)([\]\)}>\"'»”’ ]*)\s*$", r"\1 \2 \3 "),
        (r"([:,])([^\d])", r" \1 \2"),
        (r"([:,])$", r" \1 "),
        (r"\.{2,}", r" \g<0> "),
        (r"[;@#$%&]", r" \g<0> "),
        (r"([^.])(\.)([\]\)}>\"']*)\s*$", r"\1 \2\3 "),
        (r"[?!]", r" \g<0> "),
        (r"([^'])' ", r"\1 ' "),
        (r"[*]", r" \g<0> "),
        (r"[\]\[(){}<>]", r" \g<0> "),
        (r"--", r" -- "),
        (r"^|$", " "),
        (r"([»”’])", r" \1 "),
        (r"''", " '' "),
        (r'"', " '' "),
        (r"([^' ])('[sS]|'[mM]|'[dD]|') ", r"\1 \2 "),
        (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r"\1 \2 "),
        (r"(?i)\b(can)(not)\b", r" \1 \2 "),
        (r"(?i)\b(d)('ye)\b", r" \1 \2 "),
        (r"(?i)\b(gim)(me)\b", r" \1 \2 "),
        (r"(?i)\b(gon)(na)\b", r" \1 \2 "),
        (r"(?i)\b(got)(ta)\b", r" \1 \2 "),
        (r"(?i)\b(lem)(me)\b", r" \1 \2 "),
        (r"(?i)\b(more)('n)\b", r" \1 \2 "),
        (r"(?i)\b(wan)(na)\s", r" \1 \2 "),
        (r"(?i) ('t)(is)\b", r" \1 \2 "),
        (r"(?i) ('t)(was)\b", r" \1 \2 "),
    )
]


def words_of(text: str) -> list[str]:
    """The words of a lower-case text."""
    return [word for sentence in _sentences(text) for word in _treebank(sentence)]


def _treebank(sentence: str) -> list[str]:
    for pattern, replacement in _RULES:
        sentence = pattern.sub(replacement, sentence)
    return sentence.split()


def _sentences(text: str) -> Iterator[str]:
    start, moved = 0, 0
    ends: list[tuple[int, int]] = []
    for stop in _STOP.finditer(text):
        if _ends_sentence(_TOKEN.findall(stop.group() + stop.group("after"))):
            ends.append((start, stop.end()))
            start = stop.start("next") if stop.group("next") else stop.end()
    ends.append((start, len(text.rstrip())))
    # Closing quotes and brackets behind a full stop belong to the sentence before.
    for number, (first, last) in enumerate(ends):
        first, moved, following = first + moved, 0, ends[number + 1 : number + 2]
        if following and (closers := _CLOSERS.match(text[slice(*following[0])])):
            last, moved = following[0][0] + len(closers.group().rstrip()), closers.end()
        if text[first:last]:
            yield text[first:last]


def _ends_sentence(tokens: list[str]) -> bool:
    """Whether a sentence ends before the last of these tokens."""
    return any(_is_end(token, following) for token, following in zip(tokens, tokens[1:], strict=False))


def _is_end(token: str, following: str) -> bool:
    if token in (".", "?", "!"):
        return True
    if not token.endswith(".") or token.endswith(".."):
        return False
    word = token[:-1].lower()
    if word in _ABBREVIATIONS or word.split("-")[-1] in _ABBREVIATIONS:
        return False
    return not (_INITIAL_OR_NUMBER.match(token) and (following[0].islower() or following in tuple(";:,.!?")))


class WordTokenizer:
    """Captions as words of a fixed vocabulary; the interface is `model.tokenizer.CaptionTokenizer`'s.

    Args:
        vocabulary: the words, id = position; `<pad>`, `<start>`, `<end>` and `<unk>` come first.
        lowercase: "text", or "ascii": A to Z alone, as SCAN did.
        max_tokens: longer captions are cut; counts `<start>` and `<end>`.
    """

    kind = "words"

    def __init__(self, vocabulary: Sequence[str], *, lowercase: str = "text", max_tokens: int = 128) -> None:
        self.vocabulary, self.lowercase, self.max_tokens = list(vocabulary), lowercase, max_tokens
        for place, word in enumerate(_FIRST):
            if self.vocabulary[place : place + 1] != [word]:
                raise UserError(
                    f"the vocabulary has {' '.join(self.vocabulary[place : place + 1]) or 'nothing'!r} where {word!r} is "
                    f"expected (id {place}); give a word vocabulary of SCAN or VSE-infinity, or leave it out"
                )
        self._ids = {word: number for number, word in enumerate(self.vocabulary)}
        if len(self._ids) < len(self.vocabulary):
            word = next(word for number, word in enumerate(self.vocabulary) if self._ids[word] != number)
            raise UserError(
                f"the vocabulary has {word!r} twice: it is no file of words as they were trained with; get it anew"
            )
        self.start, self.end, self.mask = 1, 2, self._ids.get(MASK)

    @classmethod
    def from_file(cls, path: str | Path, *, lowercase: str = "text", max_tokens: int = 128) -> WordTokenizer:
        """Read a vocabulary of SCAN's (`.json`), or the words line by line."""
        words = read_words(path)
        try:
            return cls(words, lowercase=lowercase, max_tokens=max_tokens)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def record(self) -> dict[str, Any]:
        """What `from_file` takes again beside the file that `save` writes."""
        return {"kind": self.kind, "lowercase": self.lowercase, "max_tokens": self.max_tokens}

    def save(self, path: str | Path) -> None:
        """Write the words, one a line, atomically."""
        with atomic_path(path) as temporary:
            temporary.write_text("".join(f"{word}\n" for word in self.vocabulary), encoding="utf-8")

    def split(self, captions: Sequence[str]) -> Pieces:
        """The words of each caption with `<start>` and `<end>`, at most `max_tokens`; each is a word of its own."""
        rows = []
        for caption in captions:
            words = [self._ids.get(word, 3) for word in words_of(lower(caption, self.lowercase))]
            rows.append([self.start, *words[: self.max_tokens - 2], self.end])
        lengths = [len(row) for row in rows]
        ids = np.array([one for row in rows for one in row], dtype=np.int32)
        places = np.array([place for length in lengths for place in range(length)], dtype=np.int32)
        return Pieces(ids, places, np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))))

    def words(self, caption: str) -> list[str]:
        """The words of a caption with `<start>` and `<end>`: what `Pieces.words` numbers."""
        return [START, *words_of(lower(caption, self.lowercase))[: self.max_tokens - 2], END]

    def encode(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(M, T) int64 word ids `<start>` ... `<end>` padded with 0, and (M,) int64 lengths."""
        pieces = self.split(captions)
        return self.batch(pieces, np.arange(len(pieces)))

    def batch(
        self,
        pieces: Pieces,
        captions: np.ndarray,
        *,
        augmentation: float = 0.0,
        generator: np.random.Generator | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Word ids and lengths, as `encode` gives them, of the chosen captions.

        With `augmentation` p, each word, `<start>` and `<end>` too, is chosen with probability p; of the chosen, 50 % become
        `<mask>`, 10 % any entry of the vocabulary, and 40 % are removed (VSE-infinity's). One word at least stays.
        """
        rows = [pieces.of(caption) for caption in captions]
        if augmentation > 0:
            rows = [self._augmented(row, generator.random(len(row)) / augmentation, generator) for row in rows]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        tokens = np.zeros((len(rows), lengths.max(initial=1)), dtype=np.int64)
        for row, words in enumerate(rows):
            tokens[row, : len(words)] = words
        return tokens, lengths

    def _augmented(self, row: np.ndarray, draw: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """`draw` (n,): below 0.5 masks, below 0.6 replaces, below 1 removes."""
        others = generator.integers(len(self.vocabulary), size=len(row))
        changed = np.where(draw < 0.5, self.mask, np.where(draw < 0.6, others, row))
        kept = (draw < 0.6) | (draw >= 1)
        return changed[kept] if kept.any() else row[:1]


def lower(text: str, how: str) -> str:
    """Lower-case text; "ascii" leaves all but A to Z, as lower-casing bytes does."""
    if how == "ascii":
        return "".join(character.lower() if character.isascii() else character for character in text)
    return text.lower()


def read_words(path: str | Path) -> list[str]:
    """The words of a vocabulary in SCAN's format (`.json`), or line by line. Raises UserError as those do."""
    return (read_word_vocabulary if Path(path).suffix.lower() == ".json" else read_vocabulary)(path)


def read_word_vocabulary(path: str | Path) -> list[str]:
    """The words of a `*_vocab.json` as SCAN and VSE-infinity publish it, id = position.

    Raises:
        UserError: there is no such file, or it is no such vocabulary.
    """
    try:
        content = parse_json(Path(path).read_text(encoding="utf-8-sig"))
        ids, back = content["word2idx"], content.get("idx2word", {})
        words = sorted(ids, key=ids.__getitem__)
        whole = [ids[word] for word in words] == list(range(len(words)))
        other = next((i for i, word in enumerate(words) if back.get(str(i), word) != word), None)
    except OSError as error:
        raise UserError(f"cannot read the vocabulary {path}: {error.strerror}; correct the path") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        what = other_kind(path) or f'no word vocabulary ({error}): JSON with "word2idx" is needed, as SCAN publishes it'
        raise UserError(f"{path} is {what}") from error
    if not whole:
        raise UserError(f"{path} is no word vocabulary: its ids do not run from 0 to {len(words) - 1}")
    if other is not None:
        raise UserError(
            f"{path} contradicts itself: {other} is {words[other]!r} in word2idx, {back[str(other)]!r} in idx2word; get the file anew"
        )
    return words


def write_word_vocabulary(path: str | Path, words: Sequence[str]) -> None:
    """The reverse of `read_word_vocabulary`."""
    ids = {word: number for number, word in enumerate(words)}
    content = {"word2idx": ids, "idx2word": {str(number): word for word, number in ids.items()}, "idx": len(ids)}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def count_words(captions: Iterable[str], *, lowercase: str = "text", min_count: int = MIN_COUNT) -> list[str]:
    """A vocabulary of the words seen `min_count` times at least, by falling count, then alphabetically."""
    counts = Counter(word for caption in captions for word in words_of(lower(caption, lowercase)))
    frequent = [word for word in counts if counts[word] >= min_count and word not in (*_FIRST, MASK)]
    return [*_FIRST, *sorted(frequent, key=lambda word: (-counts[word], word))]
