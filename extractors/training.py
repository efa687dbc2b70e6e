"""Trains the embedded detectors from nothing on freshly rendered scenes: `python -m extractors.training`.

The scenes come from seeds that no dataset uses, rendered anew for every step, so no image is ever seen twice.
Losses: Ren et al. 2015 (proposals, boxes), Anderson et al. 2018 (attributes), He et al. 2017 (masks),
Kirillov et al. 2019 (semantic branch), with detectron2's sampling rules.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou, roi_align

from catalog.scenes import DETECTOR_SEED, render_scene
from core.console import UserError, run_cli
from core.flags import add_threads, command
from extractors.images import InputSpec, resize_shortest_edge
from extractors.networks.architectures import build
from extractors.networks.boxes import encode_boxes
from extractors.networks.checkpoint import load_checkpoint, save_checkpoint
from extractors.networks.rcnn import C4RCNN, PanopticFPN

ARCHITECTURE = {"regions": "scenes_regions", "grids": "scenes_grids", "panoptic": "scenes_panoptic"}
DUSK_SHARE = 0.3


@dataclass
class Example:
    """One training image: `pixels` (3, H, W) normalised; per object `boxes` (n, 4) xyxy in network pixels, `categories` (n,)
    0..132, `colors` (n,) or -1, `is_thing` (n,), `segment_ids` (n,); `panoptic` (h, w) segment ids at original resolution."""

    pixels: Tensor
    boxes: Tensor
    categories: Tensor
    colors: Tensor
    is_thing: Tensor
    segment_ids: Tensor
    panoptic: Tensor


def make_example(index: int, spec: InputSpec, rng: np.random.Generator) -> Example:
    """Render scene `index` of the detectors' seed, JPEG-compress it like a photo and bring it to the network's input."""
    style = "dusk" if rng.random() < DUSK_SHARE else "day"
    scene = render_scene(DETECTOR_SEED, index, style)
    buffer = io.BytesIO()
    Image.fromarray(scene.image).save(buffer, "JPEG", quality=int(rng.integers(80, 96)))
    image = np.asarray(Image.open(buffer))
    original = image.shape[:2]
    image = resize_shortest_edge(image, spec.min_size, spec.max_size)
    pixels = torch.from_numpy(image.astype(np.float32))
    if spec.channels == "BGR":
        pixels = pixels.flip(-1)
    pixels = ((pixels - torch.tensor(spec.mean)) / torch.tensor(spec.std)).permute(2, 0, 1)
    scale = torch.tensor([image.shape[1] / original[1], image.shape[0] / original[0]] * 2, dtype=torch.float32)
    segments = scene.segments
    return Example(
        pixels=pixels,
        boxes=torch.tensor([s["bbox"] for s in segments], dtype=torch.float32).view(-1, 4) * scale,
        categories=torch.tensor([s["category"] for s in segments]),
        colors=torch.tensor([-1 if s["color"] is None else s["color"] for s in segments]),
        is_thing=torch.tensor([s["is_thing"] for s in segments], dtype=torch.bool),
        segment_ids=torch.tensor([s["id"] for s in segments]),
        panoptic=torch.from_numpy(scene.panoptic.astype(np.int64)),
    )


def stack_pixels(examples: Sequence[Example], divisibility: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Zero-padded batch (B, 3, H, W) and the unpadded sizes."""
    sizes = [tuple(e.pixels.shape[1:]) for e in examples]
    height = math.ceil(max(s[0] for s in sizes) / divisibility) * divisibility
    width = math.ceil(max(s[1] for s in sizes) / divisibility) * divisibility
    batch = torch.zeros(len(examples), 3, height, width)
    for i, e in enumerate(examples):
        batch[i, :, : e.pixels.shape[1], : e.pixels.shape[2]] = e.pixels
    return batch, sizes


def _sample(positive: Tensor, negative: Tensor, count: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Random indices: at most `count * fraction` of the positives, the rest negatives."""
    take = min(len(positive), int(count * fraction))
    positive = positive[torch.randperm(len(positive))[:take]]
    negative = negative[torch.randperm(len(negative))[: count - take]]
    return positive, negative


def rpn_loss(
    anchors: Tensor, logits: Tensor, deltas: Tensor, gt_boxes: Sequence[Tensor], per_image: int = 128
) -> Tensor:
    """Objectness and box loss. `anchors` (A, 4), `logits` (B, A), `deltas` (B, A, 4)."""
    total = logits.new_zeros(())
    for image_logits, image_deltas, boxes in zip(logits, deltas, gt_boxes, strict=True):
        iou = box_iou(boxes, anchors)
        best, matched = iou.max(dim=0)
        labels = torch.full((len(anchors),), -1)
        labels[best < 0.3] = 0
        labels[best >= 0.7] = 1
        # Every object owns at least its best anchors, however small their overlap.
        labels[(iou == iou.max(dim=1, keepdim=True).values.clamp(min=1e-6)).any(dim=0)] = 1
        positive, negative = _sample(torch.nonzero(labels == 1)[:, 0], torch.nonzero(labels == 0)[:, 0], per_image, 0.5)
        chosen = torch.cat([positive, negative])
        target = torch.zeros(len(chosen))
        target[: len(positive)] = 1
        total = total + F.binary_cross_entropy_with_logits(image_logits[chosen].float(), target, reduction="sum")
        goal = encode_boxes(anchors[positive], boxes[matched[positive]], (1.0, 1.0, 1.0, 1.0))
        total = total + F.l1_loss(image_deltas[positive].float(), goal, reduction="sum")
    return total / (per_image * len(gt_boxes))


def sample_regions(
    proposals: Sequence[Tensor], gt_boxes: Sequence[Tensor], per_image: int, fraction: float = 0.35
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per image: region boxes (n, 4), matched object (n,) and whether it is foreground (n,), objects added as proposals."""
    result = []
    for image_proposals, boxes in zip(proposals, gt_boxes, strict=True):
        candidates = torch.cat([image_proposals, boxes])
        best, matched = box_iou(boxes, candidates).max(dim=0)
        positive, negative = _sample(
            torch.nonzero(best >= 0.5)[:, 0], torch.nonzero(best < 0.5)[:, 0], per_image, fraction
        )
        chosen = torch.cat([positive, negative])
        foreground = torch.zeros(len(chosen), dtype=torch.bool)
        foreground[: len(positive)] = True
        result.append((candidates[chosen], matched[chosen], foreground))
    return result


def box_losses(
    logits: Tensor, deltas: Tensor, regions: Tensor, goals: Tensor, classes: Tensor, weights: Sequence[float]
) -> Tensor:
    """Class cross-entropy and box L1 of sampled regions; `classes` (R,) with background last."""
    loss = F.cross_entropy(logits.float(), classes)
    background = logits.shape[1] - 1
    foreground = torch.nonzero(classes < background)[:, 0]
    own = deltas.view(len(deltas), -1, 4)[foreground, classes[foreground]]
    target = encode_boxes(regions[foreground], goals[foreground], weights)
    return loss + F.l1_loss(own.float(), target, reduction="sum") / max(1, len(classes))


def c4_loss(network: C4RCNN, examples: Sequence[Example], class_index: Tensor, per_image: int) -> dict[str, Tensor]:
    """Losses of a C4 detector; every segment, thing or stuff, is an object."""
    pixels, sizes = stack_pixels(examples, network.meta.input.divisibility)
    feature = network.backbone(pixels.contiguous(memory_format=torch.channels_last))["res4"]
    rpn = network.proposal_generator
    logits, deltas = rpn.rpn_head([feature])
    anchors = rpn.anchor_generator([feature])
    gt = [e.boxes for e in examples]
    losses = {"rpn": rpn_loss(anchors[0], logits[0], deltas[0], gt)}
    proposals = [b for b, _ in rpn.select(anchors, [logits[0].detach()], [deltas[0].detach()], sizes)]
    heads = network.roi_heads
    sampled = sample_regions(proposals, gt, per_image)
    features = heads.region_features([feature], [s[0] for s in sampled]).float()
    class_logits, box_deltas = heads.box_predictor(features)
    classes = torch.cat(
        [
            torch.where(fg, class_index[e.categories[m]], torch.tensor(heads.num_classes))
            for e, (_, m, fg) in zip(examples, sampled, strict=True)
        ]
    )
    goals = torch.cat([e.boxes[m] for e, (_, m, _) in zip(examples, sampled, strict=True)])
    losses["box"] = box_losses(
        class_logits, box_deltas, torch.cat([s[0] for s in sampled]), goals, classes, heads.box_weights
    )
    colors = torch.cat(
        [torch.where(fg, e.colors[m], torch.tensor(-1)) for e, (_, m, fg) in zip(examples, sampled, strict=True)]
    )
    known = torch.nonzero(colors >= 0)[:, 0]
    if len(known):
        attribute_logits = heads.attribute_predictor(features[known], classes[known])
        losses["attribute"] = F.cross_entropy(attribute_logits.float(), colors[known])
    return losses


def panoptic_loss(
    network: PanopticFPN, examples: Sequence[Example], class_index: Tensor, semantic_index: Tensor, per_image: int
) -> dict[str, Tensor]:
    """Losses of the panoptic network: proposals, boxes, masks (things) and the semantic branch (all pixels)."""
    pixels, sizes = stack_pixels(examples, network.meta.input.divisibility)
    features = network.backbone(pixels.contiguous(memory_format=torch.channels_last))
    rpn = network.proposal_generator
    levels = [features[p] for p in network.PROPOSAL_LEVELS]
    logits, deltas = rpn.rpn_head(levels)
    anchors = rpn.anchor_generator(levels)
    gt = [e.boxes[e.is_thing] for e in examples]
    losses = {"rpn": rpn_loss(torch.cat(anchors), torch.cat(logits, 1), torch.cat(deltas, 1), gt)}
    proposals = [b for b, _ in rpn.select(anchors, [x.detach() for x in logits], [x.detach() for x in deltas], sizes)]
    sampled = sample_regions(proposals, gt, per_image)
    pyramid = [features[p] for p in network.ROI_LEVELS]
    heads = network.roi_heads
    class_logits, box_deltas = heads.box_predictor(heads.box_head(heads.box_pooler(pyramid, [s[0] for s in sampled])))
    things = [class_index[e.categories[e.is_thing]] for e in examples]
    classes = torch.cat(
        [torch.where(fg, t[m], torch.tensor(heads.num_classes)) for t, (_, m, fg) in zip(things, sampled, strict=True)]
    )
    goals = torch.cat([b[m] for b, (_, m, _) in zip(gt, sampled, strict=True)])
    losses["box"] = box_losses(
        class_logits, box_deltas, torch.cat([s[0] for s in sampled]), goals, classes, heads.box_weights
    )

    # Masks: the foreground regions only, a few per image are enough.
    mask_boxes, mask_targets, mask_classes = [], [], []
    side = 2 * heads.mask_pooler.resolution
    for e, size, t, (boxes, matched, foreground) in zip(examples, sizes, things, sampled, strict=True):
        chosen = torch.nonzero(foreground)[:6, 0]
        ids = e.segment_ids[e.is_thing][matched[chosen]]
        masks = (e.panoptic[None] == ids[:, None, None]).float()
        scale = torch.tensor([e.panoptic.shape[1] / size[1], e.panoptic.shape[0] / size[0]] * 2)
        rois = torch.cat([torch.arange(len(chosen))[:, None].float(), boxes[chosen] * scale], dim=1)
        mask_targets.append(roi_align(masks[:, None], rois, (side, side), 1.0, 0, True)[:, 0] >= 0.5)
        mask_boxes.append(boxes[chosen])
        mask_classes.append(t[matched[chosen]])
    own_classes = torch.cat(mask_classes)
    if len(own_classes):
        mask_logits = heads.mask_head(heads.mask_pooler(pyramid, mask_boxes))
        own = mask_logits[torch.arange(len(own_classes)), own_classes]
        losses["mask"] = F.binary_cross_entropy_with_logits(own.float(), torch.cat(mask_targets).float())

    semantic = network.sem_seg_head(features)
    target = torch.full((len(examples), *pixels.shape[-2:]), 255)
    for i, (e, size) in enumerate(zip(examples, sizes, strict=True)):
        lookup = torch.full((int(e.panoptic.max()) + 1,), 255)
        lookup[e.segment_ids] = semantic_index[e.categories]
        small = F.interpolate(lookup[e.panoptic][None, None].float(), size=size, mode="nearest")[0, 0]
        target[i, : size[0], : size[1]] = small.long()
    losses["semantic"] = F.cross_entropy(network.sem_seg_head.upsample(semantic), target, ignore_index=255)
    return losses


def train(
    *,
    network_name: str,
    output: Path,
    steps: int,
    batch_size: int,
    lr: float,
    init: Path | None,
    per_image: int,
    seed: int,
    log_every: int = 50,
    save_every: int = 250,
) -> None:
    """Train one embedded detector and write its weights.

    Args:
        network_name: "regions", "grids" or "panoptic". output: safetensors file. init: weights to start from: those
            parts whose names and shapes agree are taken.
        steps, batch_size, lr: one-cycle AdamW over `steps` batches of freshly rendered scenes.
        per_image: regions sampled per image for the box losses.
    """
    from extractors.networks.checkpoint import read_state

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    architecture = ARCHITECTURE[network_name]
    extra = {"semantic_norm": "BN"} if network_name == "panoptic" else {}
    network = build(architecture, norm="BN", **extra).train()
    if init is not None:
        if not init.is_file():
            raise UserError(f"--init {init} does not exist; make it first or leave the option out")
        own = network.state_dict()
        taken = {k: v for k, v in read_state(init).items() if k in own and own[k].shape == v.shape}
        if network_name == "panoptic":
            body = {"backbone.bottom_up." + k.removeprefix("backbone."): v for k, v in read_state(init).items()}
            taken |= {k: v for k, v in body.items() if k in own and own[k].shape == v.shape}
        network.load_state_dict({k: v.to(own[k].dtype) for k, v in taken.items()}, strict=False)
        print(f"{len(taken)} of {len(own)} tensors start from {init}", flush=True)
    network = network.to(memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
    )
    class_index = torch.full((133,), -1)
    semantic_index = torch.full((133,), 0)
    meta = network.meta
    if network_name == "panoptic":
        class_index[list(meta.thing_categories)] = torch.arange(len(meta.thing_categories))
        semantic_index[list(meta.stuff_categories)] = torch.arange(1, len(meta.stuff_categories) + 1)
    else:
        from catalog.scenes_things import STUFFS, THINGS

        class_index[[*THINGS, *STUFFS]] = torch.arange(len(THINGS) + len(STUFFS))
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.08)
    index = seed * 1_000_000
    sums: dict[str, float] = {}
    start = time.perf_counter()
    for step in range(1, steps + 1):
        examples = [make_example(index + i, meta.input, rng) for i in range(batch_size)]
        index += batch_size
        if network_name == "panoptic":
            losses = panoptic_loss(network, examples, class_index, semantic_index, per_image)
        else:
            losses = c4_loss(network, examples, class_index, per_image)
        loss = sum(losses.values())
        if not torch.isfinite(loss):
            raise UserError(
                f"loss became {float(loss.detach())} at step {step} of {network_name}; lower --lr (now {lr})"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        if step % log_every == 0:
            means = " ".join(f"{k} {v / log_every:.3f}" for k, v in sums.items())
            rate = step * batch_size / (time.perf_counter() - start)
            print(f"{network_name} step {step}/{steps} {means} | {rate:.1f} images/s", flush=True)
            sums = {}
        if step % save_every == 0 or step == steps:
            recipe = {
                "network": network_name,
                "step": step,
                "steps": steps,
                "batch_size": batch_size,
                "lr": lr,
                "seed": seed,
            }
            save_checkpoint(average.module, output, {"architecture": architecture, "training": json.dumps(recipe)})
    # What was saved must load into the network the extractors build.
    load_checkpoint(build(architecture), output)


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("extractors.training", __doc__)
    parser.add_argument("--network", dest="network_name", required=True, choices=sorted(ARCHITECTURE))
    parser.add_argument("--output", required=True, type=Path, help="safetensors file to write")
    parser.add_argument("--init", type=Path, help="weights whose agreeing parts are the starting point")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--per-image", type=int, default=24, help="regions sampled per image")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    add_threads(parser, 1)
    options = vars(parser.parse_args(argv))
    torch.set_num_threads(options.pop("threads"))
    train(**options)


if __name__ == "__main__":
    run_cli(main)
