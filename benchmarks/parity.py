"""Our detectors against the real detectron2, on its own weights format: `python -m benchmarks.parity`.

For every architecture: detectron2 builds its model, the weights are seeded and written as detectron2's pickle, our network
loads that file as the extractors do, and both look at the same photographs (scikit-image's) in fp32 on the CPU. The heads' weights
are scaled so that scores spread: suppression, thresholds and merging really act. Printed and written with `--out`: how far
every kind of result differs, and how many results there were to differ.

detectron2 must be importable (`envs/detectron2.yaml`). Attributes and what bottom-up-attention's two ports do otherwise are compared
with the ports' own code, out of clones in `--ports FOLDER` (see `benchmarks.ports`); without it they are left out, and said to be.
The tests repeat narrow versions without any of them, from a recording.
"""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import ports
from benchmarks.detectors import CASES, Case, photographs, seed_weights
from core.console import UserError, run_cli
from core.flags import command
from extractors.grids import inside
from extractors.images import InputSpec, make_batch, resize_image
from extractors.networks import load_checkpoint
from extractors.networks.layers import fold_norms
from extractors.networks.rcnn import PanopticFPN
from extractors.networks.roi import select_detections
from extractors.regions import choose_regions

# Relative to the largest value; boxes in pixels; shares of equal values.
LIMITS = {"features": 1e-4, "grid": 1e-4, "semantic": 1e-4, "probabilities": 1e-4, "boxes": 0.999, "map": 0.999}


def detectron2_model(case: Case, folder: Path | None = None) -> nn.Module:
    """detectron2's model of a case on the CPU, weights seeded; `folder`: of the ports' code."""
    from detectron2 import model_zoo
    from detectron2.modeling import build_model

    if not case.zoo:
        model = ports.milvlg_model(folder, case.keys)
        seed_weights(model)
        return model
    config = model_zoo.get_config(case.zoo)
    config.merge_from_list([*case.keys, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    config.MODEL.ROI_HEADS.SCORE_THRESH_TEST = case.score
    model = build_model(config).eval()
    if case.caffe:
        stem, res5 = model.backbone.stem, model.roi_heads.res5

        def forward(x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.relu(stem.conv1(x))
            return nn.functional.max_pool2d(x, kernel_size=3, stride=2, padding=0, ceil_mode=True)

        stem.forward = forward
        res5[0].conv1.stride = res5[0].shortcut.stride = (1, 1)
        for block in res5:
            block.conv2.padding = block.conv2.dilation = (2, 2)
    if case.port and folder:
        model.attributes_of = ports.add_attributes(model, case.port, folder)
    seed_weights(model)
    return model


def detectron2_outputs(model: nn.Module, pixels: np.ndarray, original: tuple[int, int]) -> dict[str, torch.Tensor]:
    """What detectron2 makes of resized pixels (h, w, 3) uint8 in its own channel order."""
    height, width = original
    tensor = torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()
    inputs = [{"image": tensor, "height": height, "width": width}]
    with torch.no_grad():
        if hasattr(model, "sem_seg_head"):
            (output,) = model(inputs)
            instances = output["instances"]
            return {
                "boxes": instances.pred_boxes.tensor,
                "scores": instances.scores,
                "classes": instances.pred_classes,
                "masks": instances.pred_masks.sum((1, 2)),
                "semantic": output["sem_seg"],
                "map": output["panoptic_seg"][0],
            }
        images = model.preprocess_image(inputs)
        features = model.backbone(images.tensor)
        proposals = model.proposal_generator(images, features)[0]
        heads = model.roi_heads
        boxes = [p.proposal_boxes for p in proposals]
        if hasattr(heads, "res5"):
            x = heads._shared_roi_transform([features["res4"]], boxes).mean((2, 3))
            grid = heads.res5(features["res4"])
        else:
            levels = [features[name] for name in heads.box_in_features]
            x = heads.box_head(heads.box_pooler(levels, boxes))
            grid = features["res5"] if "res5" in features else model.backbone.bottom_up(images.tensor)["res5"]
        predictions = heads.box_predictor(x)
        (detections,), _ = heads.box_predictor.inference(predictions, proposals)
        attributes = {"attributes": model.attributes_of(x)} if hasattr(model, "attributes_of") else {}
        return attributes | {
            "proposals": proposals[0].proposal_boxes.tensor,
            "features": x,
            "probabilities": predictions[0].softmax(-1)[:, :-1],
            "grid": grid[0],
            "boxes": detections.pred_boxes.tensor,
            "scores": detections.scores,
            "classes": detections.pred_classes,
        }


def their_outputs(model: nn.Module, image: np.ndarray, spec: InputSpec) -> dict[str, torch.Tensor]:
    """What the model of `detectron2_model` makes of a photograph (H, W, 3) uint8 RGB, given our bytes of its input."""
    pixels, original = resize_image(image, spec)[:, :, ::-1], image.shape[:2]
    if hasattr(model, "port"):
        mean = np.array(spec.mean, np.float32)
        return ports.milvlg_outputs(model, pixels - mean, original, spec.scale(*original))
    return detectron2_outputs(model, pixels, original)


def our_outputs(
    network: nn.Module, image: np.ndarray, as_extracted: bool = False, score: float = 0.05
) -> dict[str, torch.Tensor]:
    """The same from our network and the photograph itself (H, W, 3) uint8 RGB.

    `as_extracted`: in channels-last memory. Otherwise in detectron2's own, which decides about the last bits.
    """
    spec = network.meta.input
    batch = make_batch([resize_image(image, spec)], [0], [image.shape[:2]], spec)
    pixels = batch.pixels if as_extracted else batch.pixels.contiguous()
    if isinstance(network, PanopticFPN):
        (result,) = network.panoptic(pixels, batch.sizes, batch.original_sizes)
        return {
            "boxes": result.boxes,
            "scores": result.scores,
            "classes": result.classes,
            "masks": result.masks.sum((1, 2)),
            "semantic": result.semantic_logits,
            "map": result.segment_map,
        }
    scale = spec.scale(*image.shape[:2])
    (result,) = network.regions(pixels, batch.sizes, [scale])
    if network.meta.inclusive:  # the regions of the port's script, which has no detections
        keep, boxes, _ = choose_regions(result, "caffe", ports.REGIONS, (1 / scale,) * 2)
        scores, classes = result.probabilities[keep].max(dim=1)
    else:
        rows, classes = (
            i.reshape(-1) for i in torch.meshgrid(*map(torch.arange, result.probabilities.shape), indexing="ij")
        )
        regressed = result.regressed(rows, classes).view(len(result.boxes), -1)
        scores = nn.functional.pad(result.probabilities, (0, 1))
        boxes, scores, classes, _ = select_detections(regressed, scores, batch.sizes[0], score, 0.5, 100)
    attributes = {} if result.attribute_probabilities is None else {"attributes": result.attribute_probabilities}
    return attributes | {
        "proposals": result.boxes,
        "features": result.features,
        "probabilities": result.probabilities,
        # As the store has it: what the extractor cuts off must not be seen less than what the network gets wrong.
        "grid": inside(network.grid(pixels)[0], batch.sizes[0], network.grid_stride),
        "boxes": boxes,
        "scores": scores,
        "classes": classes,
    }


def match_boxes(ours: torch.Tensor, theirs: torch.Tensor, places: int = 0) -> torch.Tensor:
    """For each of their boxes (m, 4) the place of the same one, to a tenth of a pixel, among ours (n, 4), or -1: (m,).

    `places`: how far apart in the two orders they may be.
    """
    result = torch.full((len(theirs),), -1)
    for shift in sorted(range(-places, places + 1), key=abs):
        for i in torch.nonzero(result < 0).flatten().tolist():
            if 0 <= i + shift < len(ours) and bool(((ours[i + shift] - theirs[i]).abs() <= 0.1).all()):
                result[i] = i + shift
    return result


def compare(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], places: int = 0) -> dict[str, float]:
    """Relative differences of numbers, shares of equal boxes and labels; `detections` and `segments` are counts.

    Numbers of a box are compared where both have that box. `places`: see `match_boxes`.
    """
    result: dict[str, float] = {}

    def share(name: str) -> tuple[torch.Tensor, float]:
        match = match_boxes(ours[name], theirs[name], places)
        most = max(len(ours[name]), len(theirs[name]))
        return match, float((match >= 0).sum()) / most if most else 1.0

    def difference(name: str, match: torch.Tensor | None = None) -> float:
        a, b = ours[name].float(), theirs[name].float()
        largest = b.abs().max() if b.numel() else torch.tensor(1.0)
        if match is not None:
            both = torch.nonzero((match >= 0) & (match < len(a)))[:, 0]
            both = both[both < len(b)]
            a, b = a[match[both]], b[both]
        if a.shape != b.shape:
            return float("inf")
        return float((a - b).abs().max() / largest) if b.numel() else 0.0

    match, result["boxes"] = share("boxes")
    result["scores"] = difference("scores", match)
    found = match >= 0
    equal = ours["classes"][match[found]] == theirs["classes"][found]
    result["classes"] = float(equal.float().mean()) if len(equal) else 1.0
    result["detections"] = len(theirs["boxes"])
    if "map" in theirs:
        result["semantic"] = difference("semantic")
        same_shape = ours["map"].shape == theirs["map"].shape
        result["map"] = float((ours["map"] == theirs["map"]).float().mean()) if same_shape else 0.0
        result["masks"] = difference("masks", match)
        result["segments"] = len(theirs["map"].unique())
    else:
        match, result["proposals"] = share("proposals")
        result["features"] = difference("features", match)
        for name in ("probabilities", "attributes"):
            if name in theirs:
                result[name] = difference(name, match)
        result["grid"] = difference("grid")
    return result


def input_difference(image: np.ndarray, spec: InputSpec, folder: Path | None) -> float | None:
    """How far our resized pixels are from those that the other program resizes itself, of 255; None where it is not at hand."""
    ours = resize_image(image, spec)[:, :, ::-1].astype(np.float32)
    if spec.resize == "pillow":
        from detectron2.data.transforms import ResizeShortestEdge

        resize = ResizeShortestEdge([spec.min_size] * 2, spec.max_size)
        theirs = resize.get_transform(image).apply_image(image)[:, :, ::-1]
    elif folder is None:
        return None
    else:
        theirs, scale = ports.resized(image[:, :, ::-1], (0.0,) * 3, folder)
        if scale != spec.scale(*image.shape[:2]):
            return float("inf")
    return float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else float("inf")


def run_case(
    case: Case, images: dict[str, np.ndarray], as_extracted: bool = False, folder: Path | None = None
) -> Iterator[tuple[str, dict[str, float]]]:
    """(photograph, its `compare`) for one architecture at full size.

    `as_extracted`: norms merged and channels-last memory, as extraction has it; numbers then differ in the last bits, and
    boxes of nearly equal scores may change places. `folder`: of the ports' code.
    """
    model = detectron2_model(case, folder)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model_final.pkl"
        state = {name: value.numpy() for name, value in model.state_dict().items()}
        path.write_bytes(pickle.dumps({"model": state, "__author__": "seeded"}))
        network = case.build(folder is not None)
        load_checkpoint(network, path)
    if as_extracted:
        fold_norms(network)
        network.to(memory_format=torch.channels_last)
    spec = network.meta.input
    for name, image in images.items():
        ours = our_outputs(network, image, as_extracted, case.score)
        row = compare(ours, their_outputs(model, image, spec), places=3 if as_extracted else 0)
        between = input_difference(image, spec, folder)
        yield name, row if between is None else row | {"input": between}


def summary(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Worst difference, mean share (weighted by the number of boxes) and total count over photographs."""
    result: dict[str, float] = {"photographs": len(rows)}
    for key in rows[0]:
        values = np.array([row[key] for row in rows])
        if key in ("detections", "segments"):
            result[key] = int(values.sum())
        elif key in ("boxes", "classes"):
            weights = np.array([row["detections"] for row in rows])
            result[key] = float((values * weights).sum() / max(1, weights.sum()))
        else:
            result[key] = float(values.mean() if key in ("map", "proposals") else values.max())
    return result


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    columns = (
        "detections",
        "boxes",
        "classes",
        "scores",
        "proposals",
        "features",
        "attributes",
        "grid",
        "semantic",
        "segments",
        "map",
        "input",
    )
    lines = [f"| architecture | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name, row in results.items():
        cells = []
        for column in columns:
            value = row.get(column)
            if value is None:
                cells.append("")
            elif column in ("detections", "segments"):
                cells.append(f"{value:,}")
            elif column in ("boxes", "classes", "proposals", "map"):
                cells.append(f"{100 * value:.3f} %")
            else:
                cells.append(f"{value:.0e}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _place(item: tuple[str, Any]) -> tuple[int, str]:
    return list(CASES).index(item[0].split()[0]), item[0]


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("benchmarks.parity", __doc__)
    parser.add_argument("architectures", nargs="*", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument(
        "--out", type=Path, help="folder for parity.json and parity.md; architectures of earlier calls stay"
    )
    parser.add_argument("--as-extracted", action="store_true", help="with merged norms and in channels-last memory")
    parser.add_argument("--ports", type=Path, help="folder with clones of both ports, see benchmarks/ports.py")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    unknown = [name for name in args.architectures if name not in CASES]
    if unknown:
        raise UserError(f"unknown architecture {unknown[0]!r}; choose from {', '.join(CASES)}")
    try:
        import detectron2
    except ImportError as error:
        raise UserError("this comparison needs detectron2; envs/detectron2.yaml installs it") from error
    wanted = args.architectures or list(CASES)
    without = [name for name in wanted if CASES[name].port and not args.ports]
    left_out = [name for name in without if CASES[name].needs_port()]
    if without:
        print(f"without --ports: no attributes of {', '.join(without)}; left out: {', '.join(left_out) or 'none'}")
    torch.set_num_threads(args.threads)
    images = photographs()
    results: dict[str, dict[str, float]] = {}
    if args.out and (args.out / "parity.json").exists():
        results = json.loads((args.out / "parity.json").read_text())["architectures"]
    for name in wanted:
        if name in left_out:
            continue
        rows = []
        label = f"{name} (as extracted)" if args.as_extracted else name
        for photo, row in run_case(CASES[name], images, args.as_extracted, args.ports):
            rows.append(row)
            print(f"{label} {photo}: " + " ".join(f"{key}={value:.3g}" for key, value in row.items()), flush=True)
        results[label] = summary(rows)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            ordered = dict(sorted(results.items(), key=_place))
            content = {"detectron2": detectron2.__version__, "torch": torch.__version__, "architectures": ordered}
            (args.out / "parity.json").write_text(json.dumps(content, indent=1) + "\n")
            (args.out / "parity.md").write_text(table(ordered) + "\n")
    print(table(dict(sorted(results.items(), key=_place))))


if __name__ == "__main__":
    run_cli(main)
