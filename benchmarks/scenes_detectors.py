"""Quality of the embedded detectors on held-out scenes: `python -m benchmarks.scenes_detectors`.

Proposal recall: the share of visible objects that one of the 36 chosen boxes covers at IoU >= 0.5. Panoptic quality: torchmetrics'
`PanopticQuality` (Kirillov et al. 2019) over all thing and stuff categories. The scenes come from a seed that neither the
detectors' training nor any dataset of the default configuration uses, and go through JPEG and the extractors' own code.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

from catalog.scenes import render_scene
from core.console import progress, run_cli
from core.files import write_json
from core.flags import command
from extractors.engines import build_extractor
from extractors.images import Failure, iterate_batches
from extractors.networks.rcnn import Meta, Panoptic

HELD_OUT_SEED = 777


def category_and_instance(result: Panoptic, meta: Meta) -> np.ndarray:
    """(H, W, 2) int64: category 0..132 (133 for void) and segment id, as torchmetrics reads panoptic maps."""
    ids = result.segment_map.cpu().numpy()
    lookup = np.full(len(result.segments) + 1, 133, np.int64)
    for segment in result.segments:
        index = segment["category"]
        lookup[segment["id"]] = (
            meta.thing_categories[index] if segment["is_thing"] else meta.stuff_categories[index - 1]
        )
    return np.stack([lookup[ids], ids.astype(np.int64)], axis=-1)


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("benchmarks.scenes_detectors", __doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--style", default="day")
    parser.add_argument("--regions", default="weights/scenes_regions.safetensors")
    parser.add_argument("--panoptic", default="weights/scenes_panoptic.safetensors")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    from torchmetrics.detection import PanopticQuality

    scenes = [render_scene(HELD_OUT_SEED, i, args.style) for i in range(args.images)]
    figures: dict[str, float | int | str] = {"images": args.images, "style": args.style, "seed": HELD_OUT_SEED}
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for i, scene in enumerate(scenes):
            paths.append(Path(folder) / f"{i}.jpg")
            Image.fromarray(scene.image).save(paths[-1], quality=90)

        regions = build_extractor("regions", architecture="scenes_regions", weights=args.regions)
        found = {True: [0, 0], False: [0, 0]}
        classified = [0, 0]
        names = list(regions.runner.network.meta.class_names)
        from catalog.categories import COCO_PANOPTIC

        batches = iterate_batches(paths, list(range(len(paths))), regions.input, 8, 0)
        for batch in progress(batches, desc="regions", unit="batch"):
            if isinstance(batch, Failure):
                raise RuntimeError(f"{batch.path}: {batch.error}")
            for row, rows in zip(batch.rows, regions(batch), strict=True):
                boxes = torch.from_numpy(rows["boxes"][: rows["counts"]])
                for segment in scenes[row].segments:
                    overlap = box_iou(torch.tensor([segment["bbox"]], dtype=torch.float32), boxes)[0]
                    best, index = overlap.max(0)
                    tally = found[bool(segment["is_thing"])]
                    tally[1] += 1
                    tally[0] += int(best >= 0.5)
                    if best >= 0.5:
                        classified[1] += 1
                        expected = COCO_PANOPTIC[segment["category"]].name
                        classified[0] += int(names[rows["class_ids"][index]] == expected)
        figures["proposal_recall"] = sum(t[0] for t in found.values()) / sum(t[1] for t in found.values())
        figures["proposal_recall_things"] = found[True][0] / found[True][1]
        figures["proposal_recall_stuff"] = found[False][0] / found[False][1]
        figures["class_accuracy_of_best_box"] = classified[0] / classified[1]

        panoptic = build_extractor("panoptic", architecture="scenes_panoptic", weights=args.panoptic)
        meta = panoptic.runner.network.meta
        quality = PanopticQuality(
            things=set(meta.thing_categories), stuffs=set(meta.stuff_categories), allow_unknown_preds_category=True,
            return_per_class=True, return_sq_and_rq=True,
        )  # fmt: skip
        batches = iterate_batches(paths, list(range(len(paths))), panoptic.input, 8, 0)
        for batch in progress(batches, desc="panoptic", unit="batch"):
            results = panoptic.runner.network.panoptic(batch.pixels, batch.sizes, batch.original_sizes)
            for row, result in zip(batch.rows, results, strict=True):
                scene = scenes[row]
                lookup = np.full(int(scene.panoptic.max()) + 1, 133, np.int64)
                for segment in scene.segments:
                    lookup[segment["id"]] = segment["category"]
                ids = scene.panoptic.astype(np.int64)
                truth = np.stack([lookup[ids], ids], axis=-1)
                predicted = category_and_instance(result, meta)
                quality.update(torch.from_numpy(predicted)[None], torch.from_numpy(truth)[None])
    per_class = quality.compute()[:, 0].tolist()
    categories = sorted(meta.thing_categories) + sorted(meta.stuff_categories)
    figures["panoptic_quality"] = float(np.mean(per_class))
    things = len(meta.thing_categories)
    figures["panoptic_quality_things"] = float(np.mean(per_class[:things]))
    figures["panoptic_quality_stuff"] = float(np.mean(per_class[things:]))
    for category, value in zip(categories, per_class, strict=True):
        figures[f"pq {COCO_PANOPTIC[category].name}"] = value
    for key, value in figures.items():
        print(f"{key:32} {value:.3f}" if isinstance(value, float) else f"{key:32} {value}")
    if args.output:
        write_json(args.output, figures)


if __name__ == "__main__":
    run_cli(main)
