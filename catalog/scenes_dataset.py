"""The scenes on disk: JPEG files with ground truth in COCO's formats (captions, instances, panoptic)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from catalog.annotations import Annotations
from catalog.categories import COCO_PANOPTIC
from catalog.scenes import DETECTOR_SEED, Scene, render_scene
from catalog.scenes_things import STUFFS, THINGS
from core.console import UserError, progress
from core.files import write_json

JPEG_QUALITY = 90


def _run_lengths(mask: np.ndarray) -> dict:
    """Uncompressed COCO run lengths of a (H, W) bool mask: column-major, starting with zeros."""
    flat = mask.ravel(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    return {"size": list(mask.shape), "counts": ([0, *counts] if flat[0] else counts)}


def _box(segment: dict) -> list[float]:
    x0, y0, x1, y1 = segment["bbox"]
    return [x0, y0, x1 - x0, y1 - y0]


def _categories(indices: tuple[int, ...]) -> list[dict]:
    return [
        {"id": COCO_PANOPTIC[i].coco_id, "name": COCO_PANOPTIC[i].name, "isthing": int(COCO_PANOPTIC[i].is_thing)}
        for i in indices
    ]


def write_dataset(output: Path, *, seed: int, splits: dict[str, int], style: str) -> None:
    """Render a dataset into `output`, replacing what is there.

    Writes `images/{image_id}.jpg`, `captions.json` (COCO captions, with a `split` on every image), `instances.json`
    (things, run-length masks), `panoptic.json` and `panoptic/{image_id}.png` (segment id = R + 256 G + 65536 B).

    Args:
        seed: any but the detectors' own. splits: images per split, in order. style: one of `catalog.scenes.STYLES`.

    Raises:
        UserError: for the detectors' seed, whose images they have been trained on.
    """
    if seed == DETECTOR_SEED:
        raise UserError(f"seed {seed} drew the detectors' training images; choose another for a dataset")
    if output.exists():
        shutil.rmtree(output)
    (output / "images").mkdir(parents=True)
    (output / "panoptic").mkdir()
    names = [name for name, count in splits.items() for _ in range(count)]
    images, captions, instances, panoptic = [], [], [], []
    for index, split in progress(enumerate(names), total=len(names), desc="render", unit="image"):
        scene = render_scene(seed, index, style)
        image_id = index + 1
        stem = f"{style}-{seed}-{index:06d}"
        Image.fromarray(scene.image).save(output / "images" / f"{stem}.jpg", quality=JPEG_QUALITY)
        _write_segments(output / "panoptic" / f"{stem}.png", scene)
        height, width = scene.panoptic.shape
        images.append({"id": image_id, "file_name": f"{stem}.jpg", "width": width, "height": height, "split": split})
        for text in scene.captions:
            captions.append({"id": len(captions) + 1, "image_id": image_id, "caption": text})
        for segment in scene.segments:
            if segment["is_thing"]:
                instances.append(
                    {
                        "id": len(instances) + 1,
                        "image_id": image_id,
                        "category_id": COCO_PANOPTIC[segment["category"]].coco_id,
                        "segmentation": _run_lengths(scene.panoptic == segment["id"]),
                        "area": segment["area"],
                        "bbox": _box(segment),
                        "iscrowd": 0,
                    }
                )
        panoptic.append(
            {
                "image_id": image_id,
                "file_name": f"{stem}.png",
                "segments_info": [
                    {
                        "id": segment["id"],
                        "category_id": COCO_PANOPTIC[segment["category"]].coco_id,
                        "area": segment["area"],
                        "bbox": _box(segment),
                        "iscrowd": 0,
                    }
                    for segment in scene.segments
                ],
            }
        )
    things, everything = _categories(THINGS), _categories((*THINGS, *STUFFS))
    write_json(output / "instances.json", {"images": images, "annotations": instances, "categories": things})
    write_json(output / "panoptic.json", {"images": images, "annotations": panoptic, "categories": everything})
    write_json(output / "captions.json", {"images": images, "annotations": captions})


def _write_segments(path: Path, scene: Scene) -> None:
    ids = scene.panoptic.astype(np.uint32)
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)).save(path)


def read_dataset(folder: Path) -> Annotations:
    """Index rows of a rendered dataset. UserError if `folder` holds none."""
    path = folder / "captions.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; render the scenes first")
    content = json.loads(path.read_text())
    stems = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
    # Annotations follow the images' order already: captions are written image by image.
    return Annotations(
        image_ids=[stems[image["id"]] for image in content["images"]],
        paths=[str(folder / "images" / image["file_name"]) for image in content["images"]],
        splits=[image["split"] for image in content["images"]],
        caption_ids=[str(a["id"]) for a in content["annotations"]],
        caption_images=[stems[a["image_id"]] for a in content["annotations"]],
        texts=[a["caption"] for a in content["annotations"]],
    )
