"""Why the images and sentences that the gallery shows match: a job of its own, because it needs the networks.

The page reads what is written here and needs none. `python -m reporting.why` is the one command of this package that imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.console import run_cli
from core.files import write_json
from core.flags import add_device, add_mapping, add_results, command
from core.overlay import answered, heat, strongest_parts
from reporting.artefacts import WHY_VERSION, Artefacts
from reporting.painted import SIDE, pair

_UNIT = 1e-6  # of a similarity: what a heat map's whole numbers count
_FRAMES, _WORDS = 3, 3


def explain_gallery(
    *,
    results: str,
    stores: str | None,
    config: Mapping[str, Any],
    output: str,
    seed: int | None,
    queries: int,
    device: str,
    threads: int | None,
) -> None:
    """Write why each match that the gallery shows was found, in both directions, by every run that had a part in it."""
    from core.devices import full_float32, open_device
    from reporting.sections.gallery import MAX_GALLERIES, find, matches

    seed = seed if seed is not None else int(config.get("seed") or 0)
    artefacts = Artefacts(Path(results), dict(config), stores or results)
    wanted: dict[tuple[str, str], dict[str, list[str]]] = {}  # (test set, run) -> caption -> images
    indexes = {}
    for testset, settings in list(artefacts.section("testsets").items())[:MAX_GALLERIES]:
        found = find(artefacts, testset, settings, queries, seed)
        if found is None:
            continue
        indexes[testset] = found.index
        for (system, _, members), answers in zip(found.systems, found.answers, strict=True):
            for caption, image in matches(members[0], *answers):
                for run in system.members:
                    asked = wanted.setdefault((testset, run), {}).setdefault(caption, [])
                    if image not in asked:
                        asked.append(image)
    opened, _ = open_device(device, threads=threads)
    full_float32(opened)
    told: dict[str, dict[str, Any]] = {testset: {} for testset in indexes}
    for (testset, run), questions in wanted.items():
        told[testset][run] = _explained(artefacts, testset, run, questions, indexes[testset], opened)
    write_json(output, {"why_version": WHY_VERSION, "testsets": told})
    count = sum(len(pairs) for runs in told.values() for pairs in runs.values())
    print(f"{output}: {count} matches explained")


def _explained(
    artefacts: Artefacts, testset: str, run: str, questions: Mapping[str, Sequence[str]], index: Any, device: str
) -> dict[str, Any]:
    """Of one run on one test set, by `pair`."""
    from core import layout
    from model.data import Features
    from model.explain import explain, place_regions
    from model.runs import load_run

    network, _, tokenizer = load_run(Path(layout.run_file(artefacts.results, layout.WEIGHTS, run)).parent)
    dataset = str(artefacts.section("testsets")[testset]["dataset"])
    visual = artefacts.store(dataset, str(artefacts.section("runs")[run]["visual"]))
    panoptic = artefacts.store(dataset, "panoptic") if "panoptic" in network.needs else None
    if tokenizer is None or visual is None or ("panoptic" in network.needs and panoptic is None):
        return {}
    network, features = network.to(device), Features(visual, panoptic)
    rows = {image: row for row, image in enumerate(index.images["image_id"].to_pylist())}
    sizes = list(zip(index.images["width"].to_pylist(), index.images["height"].to_pylist(), strict=True))
    texts = dict(zip(index.captions["caption_id"].to_pylist(), index.captions["text"].to_pylist(), strict=True))
    found = {}
    for caption, images in questions.items():
        own = np.array([rows[image] for image in images], dtype=np.int64)
        explanations = explain(network, tokenizer, features, own, texts[caption])
        explanations = place_regions(explanations, features, own, [sizes[row] for row in own])
        for image, explanation in zip(images, explanations, strict=True):
            found[pair(caption, image)] = _record(explanation)
    return found


def _record(explanation: Any) -> dict[str, Any]:
    """What the page shows of an explanation."""
    frames = []
    for number in strongest_parts(explanation, _FRAMES):
        own = sorted(zip(explanation.shares[number], explanation.words, strict=True), reverse=True)[:_WORDS]
        said = ", ".join(f"{word} {share:+.3f}" for share, word in own)
        place = [round(float(value), 4) for value in explanation.places[number]]
        frame = {
            "place": place,
            "kind": explanation.kinds[number],
            "answers": answered(explanation, number),
            "share": float(explanation.shares[number].sum()),
            "said": said,
        }
        if explanation.classes is not None and number < len(explanation.classes):
            frame["class"] = int(explanation.classes[number])
        frames.append(frame)
    words = [[word, float(s)] for word, s in zip(explanation.words, explanation.shares.sum(0), strict=True)]
    return {
        "heat": " ".join(map(str, np.round(heat(explanation, SIDE) / _UNIT).astype(int).ravel().tolist())),
        "frames": frames,
        "words": words,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("reporting.why", __doc__)
    add_results(parser)
    parser.add_argument("--stores", help="as of reporting.run")
    add_mapping(parser, "--config", "the whole configuration", required=True)
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument("--seed", type=int, help="as of reporting.run")
    parser.add_argument("--queries", type=int, default=6, help="as of reporting.run")
    add_device(parser)
    explain_gallery(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    run_cli(main)
