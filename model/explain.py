"""Why an image and a sentence are as similar as a run says: the score as a sum over parts of the image and words.

The score splits exactly (`model.contributions`) into a table: its rows are what regions (or grid cells), category and
segmentation cells contribute, its columns what the words do, and both add up to the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.console import UserError, run_cli
from core.files import write_json
from core.flags import add_device, add_images, add_stores, command
from core.text import as_sentence

if TYPE_CHECKING:
    from torch import Tensor

    from model.build import Tokenizer
    from model.contributions import Split
    from model.data import Features
    from model.network import RetrievalNetwork

EXPLANATION_VERSION = 1
SEGMENT, CATEGORY = "segment", "category"


@dataclass(frozen=True)
class Explanation:
    """One image and one sentence.

    Attributes:
        score: their similarity. words: W of them, what a text encoder adds ([CLS], [SEP]) among them.
        kinds: P names: region, cell, category or segment.
        shares: (P, W) float64, which sum to the score. highlighted: (P,) float64, how much of a region's or cell's sum comes
            through the highlighting branches; 0 where there are none.
        places: (P, 4) float32, left, top, right and bottom of each part from 0 to 1 of the image; NaN: everywhere or unknown.
        gates: (n,) float32, how far the semantic branch lets each region or cell through; None without one.
        attention: (n, H, W) float32, where on the class map the spatial branch looks for each; None without one.
        attended: (n, W) float32, how much words attend to each (or it to words), of networks that score so; else None.
        classes: (n,) integers, the detector's class of each region, -1 unknown; None where the store has none.
    """

    score: float
    words: tuple[str, ...]
    kinds: tuple[str, ...]
    shares: np.ndarray
    highlighted: np.ndarray
    places: np.ndarray
    gates: np.ndarray | None = None
    attention: np.ndarray | None = None
    attended: np.ndarray | None = None
    classes: np.ndarray | None = None

    def as_json(self) -> dict[str, Any]:
        """All but the attention, of which there is where each region looks most."""
        parts: list[dict[str, Any]] = []
        visual = 0
        for number, kind in enumerate(self.kinds):
            part: dict[str, Any] = {"kind": kind, "share": float(self.shares[number].sum())}
            if np.isfinite(self.places[number]).all():
                part["place"] = [round(float(value), 5) for value in self.places[number]]
            part["by_word"] = [float(value) for value in self.shares[number]]
            if kind not in (SEGMENT, CATEGORY):
                part["highlighted"] = float(self.highlighted[number])
                if self.gates is not None:
                    part["gate"] = float(self.gates[visual])
                if self.attention is not None:
                    row, column = np.unravel_index(self.attention[visual].argmax(), self.attention[visual].shape)
                    peak = float(self.attention[visual, row, column])
                    part["attention"] = {"row": int(row), "column": int(column), "weight": peak}
                if self.attended is not None:
                    part["attended"] = [float(weight) for weight in self.attended[visual]]
                visual += 1
            parts.append(part)
        words = [{"word": word, "share": float(s)} for word, s in zip(self.words, self.shares.sum(0), strict=True)]
        return {"explanation_version": EXPLANATION_VERSION, "score": self.score, "words": words, "parts": parts}


def explain(
    network: RetrievalNetwork, tokenizer: Tokenizer, features: Features, rows: np.ndarray, sentence: str
) -> list[Explanation]:
    """Why each of some images is as similar to a sentence as it is.

    Args:
        network: in eval mode. tokenizer: its own. features: where the images' features are. rows: (B,) integers, in the stores.

    Returns:
        B explanations. `places` are those of grid cells and segmentation cells; regions have theirs in pixels of an image, see
        `with_boxes`.
    """
    import torch

    from model.contributions import split
    from model.data import image_tensors

    found = features.rows(rows)
    image = image_tensors(found)
    token_ids, lengths = (torch.from_numpy(part) for part in tokenizer.encode([sentence]))
    with torch.inference_mode():
        text = (token_ids.expand(len(rows), -1), lengths.expand(len(rows)))
        parts = split(network, image, text)
    words, word_of = _spelt(tokenizer, sentence, int(lengths[0]))
    visual = features.stores["visual"]
    kind = "cell" if visual.attributes.get("feature") == "grids" else "region"
    shapes = visual.rows("grid_shapes", rows) if kind == "cell" else [None] * len(rows)
    return [
        _one(parts, number, count, kind, shape, words, word_of)
        for number, (count, shape) in enumerate(zip(found["counts"].tolist(), shapes, strict=True))
    ]


def _one(
    parts: Split, number: int, count: int, kind: str, shape: Any, words: Sequence[str], word_of: np.ndarray
) -> Explanation:
    """The explanation of one of the pairs, padding left out and tokens added up to words."""

    def table(values: Tensor | None, rows: int | None = None) -> np.ndarray:
        if values is None:
            return np.zeros((0, len(words)))
        own = values[number, :rows].double().cpu().numpy()[:, : len(word_of)]
        summed = np.zeros((len(own), len(words)))
        np.add.at(summed.T, word_of, own.T)
        return summed

    def seen(values: Tensor | None) -> np.ndarray | None:
        return None if values is None else values[number, :count].float().cpu().numpy()

    visual, highlighted = table(parts.visual, count), table(parts.highlighted, count).sum(1)
    category, segments = table(parts.category), table(parts.segments)
    shares = np.concatenate((visual, category, segments))
    places = np.full((len(shares), 4), np.nan, dtype=np.float32)
    if shape is not None and int(np.prod(shape)) == count:
        places[:count] = cells(*shape)
    side = round(len(segments) ** 0.5)
    if len(segments) and side * side == len(segments):
        places[count + len(category) :] = cells(side, side)
    through = np.zeros(len(shares))
    through[: len(highlighted)] = highlighted
    kinds = (kind,) * count + (CATEGORY,) * len(category) + (SEGMENT,) * len(segments)
    attended = None if parts.attended is None else table(parts.attended, count).astype(np.float32)
    seen_by = (seen(parts.gates), seen(parts.attention), attended)
    return Explanation(float(shares.sum()), tuple(words), kinds, shares, through, places, *seen_by)


def _spelt(tokenizer: Tokenizer, sentence: str, length: int) -> tuple[list[str], np.ndarray]:
    """The words of a sentence, and for each of its `length` tokens the number of its word."""
    pieces = tokenizer.split([sentence])
    within = pieces.words.astype(np.int64)
    names = tokenizer.words(sentence)[: int(within.max(initial=-1)) + 1]
    if length == len(within):
        return names, within
    before, after = ([tokenizer.vocabulary[i] for i in ends] for ends in (tokenizer.prefix, tokenizer.suffix))
    behind = len(before) + len(names)
    words = np.concatenate((np.arange(len(before)), within + len(before), behind + np.arange(len(after))))
    return [*before, *names, *after], words


def remarks(tokenizer: Tokenizer, sentence: str) -> list[str]:
    """What of a sentence a text encoder makes nothing of: words that it does not know, and an end that it does not read."""
    from core.overlay import short
    from model.vocabulary import UNKNOWN
    from model.words import UNKNOWN as UNKNOWN_WORD

    pieces, names = tokenizer.split([sentence]), tokenizer.words(sentence)
    vocabulary, tokens = tokenizer.vocabulary, zip(pieces.ids.tolist(), pieces.words.tolist(), strict=True)
    unknown = (word for number, word in tokens if vocabulary[number] in (UNKNOWN, UNKNOWN_WORD))
    lost = list(dict.fromkeys(short(names[word]) for word in unknown))
    told = [f"does not know {', '.join(lost[:5])}{', ...' if len(lost) > 5 else ''}"] if lost else []
    if tokenizer.encode([sentence])[1][0] >= tokenizer.max_tokens:
        told.append(f"reads {tokenizer.max_tokens} tokens at most, the sentence's end may be left out")
    return told


def cells(rows: int, columns: int) -> np.ndarray:
    """(rows * columns, 4) float32: the places of the cells of a grid, row by row, from 0 to 1."""
    top, left = np.divmod(np.arange(rows * columns), columns)
    return np.stack((left / columns, top / rows, (left + 1) / columns, (top + 1) / rows), axis=1).astype(np.float32)


def with_boxes(explanation: Explanation, boxes: np.ndarray, width: int, height: int) -> Explanation:
    """The same with the places of its regions.

    Args:
        boxes: (K, 4) floats, x0, y0, x1, y1 in pixels; padding is ignored. width, height: of the upright image.
    """
    regions = np.array(explanation.kinds) == "region"
    places = explanation.places.copy()
    if width > 0 and height > 0:
        places[regions] = np.clip(boxes[: regions.sum()] / [width, height, width, height], 0, 1)
    return replace(explanation, places=places)


def place_regions(
    explanations: Sequence[Explanation], features: Features, rows: np.ndarray, sizes: Sequence[tuple[int, int]]
) -> list[Explanation]:
    """`with_boxes` from a store that has boxes, and classes where it has them; the same explanations from another.

    Args:
        sizes: (width, height) of each upright image.
    """
    visual = features.stores["visual"]
    if "boxes" not in visual.arrays:  # grids, and imported regions without boxes
        return list(explanations)
    boxes = visual.rows("boxes", rows)
    placed = [with_boxes(e, box, *size) for e, box, size in zip(explanations, boxes, sizes, strict=True)]
    if "class_ids" not in visual.arrays:
        return placed
    classes = visual.rows("class_ids", rows)
    return [replace(e, classes=own[: e.kinds.count("region")]) for e, own in zip(placed, classes, strict=True)]


def explain_image(
    *,
    run: Path,
    images: Path,
    visual: Any,
    panoptic: Any,
    image_id: str,
    sentence: str,
    output: Path,
    overlay: Path | None,
    attention: Path | None,
    device: str,
    threads: int | None,
) -> None:
    """Write the explanation of one image of an index and one sentence: JSON, and where asked for a picture and an array.

    Raises:
        UserError: an empty sentence; the run has no vocabulary, the index no such image, or the stores are of another index or
            extractor.
    """
    from catalog.index import read_images
    from catalog.names import row_of
    from core.messages import did_you_mean
    from model.runs import read_config

    as_sentence(sentence, "--sentence")
    written = [str(path) for path in (output, overlay, attention) if path is not None]
    if len(set(written)) < len(written):
        raise UserError(f"--output, --overlay and --attention are one file, {written[0]}; give each its own")
    read_config(run)  # mistakes before the seconds that importing torch takes
    table, digest = read_images(images)
    ids, *others = (table[name].to_pylist() for name in ("image_id", "path", "content_hash"))
    row = row_of(image_id, ids, *others)
    if row is None:
        raise UserError(
            f"--image-id: {image_id!r} is not in {images}; {did_you_mean(image_id, ids, 'its column image_id lists them')}"
        )
    image_id, path = ids[row], others[0][row]
    if overlay is not None and not path:
        raise UserError(f"--overlay: the index has no file of {image_id}, only its features; leave it out")

    from core.devices import full_float32, open_device

    opened, _ = open_device(device, threads=threads)
    full_float32(opened)
    from model.data import Features
    from model.runs import check_same_extractor, load_run
    from stores import open_store

    network, config, tokenizer = load_run(run)
    if tokenizer is None:
        raise UserError(
            f"--run: {run} has no vocabulary, so it cannot read sentences; import it again with --vocabulary"
        )
    reads_maps = "panoptic" in network.needs
    if reads_maps and panoptic is None:
        raise UserError("--panoptic: missing; the network of this run reads panoptic features")
    features = Features(open_store(visual), open_store(panoptic) if reads_maps else None, index_digest=digest)
    if image_id in features.dropped:
        raise UserError(f"--image-id: {image_id!r} could not be read when features were made; choose another")
    check_same_extractor(config.get("features"), features.describe(), run=str(config.get("run") or run))
    features.check_network(network, str(config.get("run") or run))
    rows = np.array([row])
    found = explain(network.to(opened), tokenizer, features, rows, sentence)
    size = (table["width"][row].as_py(), table["height"][row].as_py())
    (found,) = place_regions(found, features, rows, [size])
    name = str(config.get("run") or Path(run).name)
    write_json(output, {"run": name, "image_id": image_id, "sentence": sentence, **found.as_json()})
    if attention is not None:
        if found.attention is None:
            raise UserError("--attention: the network of this run has no spatial branch; leave it out")
        _write_array(attention, found.attention)
    if overlay is not None:
        from core.overlay import draw

        draw(found, path, overlay)
    for remark in remarks(tokenizer, sentence):
        print(f"note: {name} {remark}")
    print(f"{output}: similarity {found.score:.4f} of {image_id} and {sentence!r}, by {len(found.kinds)} parts")


def _write_array(path: Path, values: np.ndarray) -> None:
    from core.files import atomic_path

    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, values)


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("model.explain", __doc__)
    parser.add_argument("--run", "--run-folder", dest="run", required=True, type=Path, help="run folder")
    add_images(parser)
    add_stores(parser)
    parser.add_argument("--image-id", required=True, help="of the index; or the image's file, or its name")
    parser.add_argument("--sentence", required=True)
    parser.add_argument("--output", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--overlay", type=Path, help="PNG to write: the image with what its parts contribute")
    parser.add_argument(
        "--attention", type=Path, help=".npy to write: (regions, 64, 64), where the spatial branch looks"
    )
    add_device(parser)
    explain_image(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    run_cli(main)
