"""UPSNet's panoptic head, which has no parameters, and its merge (Xiong et al. 2019; as released).

Classes are in UPSNet's order: stuff first, then things. The head says which of the stuff classes, of the instances and
of "unknown" each pixel of the network's input is. Most pixels of that input are never asked for when the result is
brought back to the original size, as that takes the nearest; so everything here is worked out for given rows and columns
of the input only, and in parts that stay small: the logits of all classes at full resolution would fill half a gigabyte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from extractors.networks.deform import weighted_rows

# The semantic branch's stride.
_STRIDE = 4
# Pixels whose logits are worked out at a time.
_CHUNK = 2**14


@dataclass
class Instance:
    """An instance that mask removal left, or the stand-in where there is none.

    Attributes:
        index: among the candidates, -1 for the stand-in. thing: class, -1 for the stand-in. score: its probability.
        box: (x0, y0, x1, y1) in pixels of the network's input, ends included.
        mask: (h, w) logits inside the box, whose first pixel is (int(y0), int(x0)).
    """

    index: int
    thing: int
    score: float
    box: tuple[float, float, float, float]
    mask: Tensor


def remove_masks(
    boxes: Tensor, scores: Tensor, classes: Tensor, masks: Tensor, size: tuple[int, int], max_overlap: float
) -> list[Instance]:
    """Instances in the candidates' order, without those that lie on kept ones of their class.

    A mask's pixels are those with a positive logit. A candidate goes if it has none, or if more than `max_overlap` of
    them are taken. If all go, the first stays, without a mask; if there is no candidate, a stand-in of no class stays.

    Args:
        boxes: (n, 4) in pixels of the network's input, ends included, best first. scores, classes: (n,).
        masks: (n, m, m) logits. size: (height, width) of the input with its padding.
    """
    taken: dict[int, Tensor] = {}
    kept = []
    candidates = zip(boxes.tolist(), scores.tolist(), classes.tolist(), strict=True)
    for i, (box, score, thing) in enumerate(candidates):
        left, top, right, bottom = (int(v) for v in box)
        shape = max(bottom - top + 1, 1), max(right - left + 1, 1)
        mask = F.interpolate(masks[None, i : i + 1].float(), size=shape, mode="bilinear", align_corners=False)[0, 0]
        mask = mask[: size[0] - top, : size[1] - left]
        positive = mask > 0
        area = int(positive.sum())
        if thing not in taken:
            taken[thing] = torch.zeros(size, dtype=torch.bool, device=mask.device)
        there = taken[thing][top : top + mask.shape[0], left : left + mask.shape[1]]
        if area == 0 or int((positive & there).sum()) / area > max_overlap:
            continue
        there |= positive
        kept.append(Instance(i, thing, score, tuple(box), mask))
    if kept:
        return kept
    empty = masks.new_zeros((0, 0), dtype=torch.float32)
    if len(boxes):
        return [Instance(0, int(classes[0]), float(scores[0]), tuple(boxes[0].tolist()), empty)]
    return [Instance(-1, -1, 1.0, (0.0, 0.0, 0.0, 0.0), empty)]


def source_pixels(size: int, original: int, scale: float) -> np.ndarray:
    """(original,) int64: which of the `size` rows (or columns) of the network's input each one of the original is taken from.

    OpenCV's nearest neighbour with fx = 1 / scale: floor(i / fx), the scale in single, the rest in double precision.
    """
    inverse = 1.0 / float(np.float32(scale))
    return np.minimum(np.floor(np.arange(original) / inverse).astype(np.int64), size - 1)


def upsampled(logits: Tensor, rows: np.ndarray, columns: np.ndarray) -> Iterator[tuple[slice, Tensor]]:
    """Logits at pixels of the network's input, bilinear between those at stride 4.

    Args:
        logits: (C, h, w). rows: (R,). columns: (S,), both ascending.

    Yields:
        a slice of the rows and (r, S, C) float32.
    """
    classes, height, width = logits.shape
    table = logits.float().permute(1, 2, 0).reshape(height * width, classes)
    tops, row_shares = _between(rows, height, logits.device)
    lefts, column_shares = _between(columns, width, logits.device)
    step = max(1, _CHUNK // len(columns))
    for start in range(0, len(rows), step):
        part = slice(start, min(start + step, len(rows)))
        places = (tops[part, None, :, None] * width + lefts[None, :, None, :]).flatten(0, 1).flatten(1)
        weights = (row_shares[part, None, :, None] * column_shares[None, :, None, :]).flatten(0, 1).flatten(1)
        yield part, weighted_rows(table, places, weights).view(-1, len(columns), classes)


def _between(pixels: np.ndarray, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(P, 2) int32: the two of `size` coarse rows (or columns) that each pixel lies between; (P, 2) float32 their shares."""
    places = np.maximum((pixels + 0.5) / _STRIDE - 0.5, 0.0)
    first = places.astype(np.int64)
    share = (places - first).astype(np.float32)
    both = np.stack([first, np.minimum(first + 1, size - 1)], axis=1).astype(np.int32)
    shares = np.stack([1 - share, share], axis=1)
    return torch.from_numpy(both).to(device), torch.from_numpy(shares).to(device)


def semantic_labels(logits: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """(R, S) uint8: the best class of logits (C, h, w) at pixels of the network's input."""
    result = torch.empty((len(rows), len(columns)), dtype=torch.uint8, device=logits.device)
    for part, values in upsampled(logits, rows, columns):
        result[part] = values.argmax(dim=2)
    return result


def panoptic_logits(
    logits: Tensor, instances: Sequence[Instance], rows: np.ndarray, columns: np.ndarray, num_stuff: int
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """The channels of the panoptic head.

    stuff: the semantic logits. instance i of class c: those of c inside its box, 0 outside, plus its mask's logits.
    unknown: the largest of all thing classes less the largest of the instances' semantic part, zeros included.

    Args: as of `upsampled`; the logits are of `num_stuff` stuff classes and then of things.

    Yields:
        a slice of the rows, semantic (r, S, C), instances (n, r, S), unknown (r, S).
    """
    for part, values in upsampled(logits, rows, columns):
        own = values.new_zeros((len(instances), *values.shape[:2]))
        for channel, instance in zip(own, instances, strict=True):
            if instance.thing >= 0:
                left, top = (int(v) for v in instance.box[:2])
                # One pixel further than the mask where the end rounds up; half to even, as numpy rounds.
                right, bottom = (round(v) + 1 for v in instance.box[2:])
                window = _inside(rows[part], top, bottom), _inside(columns, left, right)
                channel[window] = values[(*window, num_stuff + instance.thing)]
        unknown = values[..., num_stuff:].amax(dim=2) - own.amax(dim=0)
        for channel, instance in zip(own, instances, strict=True):
            left, top = (int(v) for v in instance.box[:2])
            height, width = instance.mask.shape
            window = _inside(rows[part], top, top + height), _inside(columns, left, left + width)
            ys = torch.from_numpy(rows[part][window[0]] - top).to(own.device)
            xs = torch.from_numpy(columns[window[1]] - left).to(own.device)
            channel[window] += instance.mask[ys][:, xs]
        yield part, values, own, unknown


def _inside(pixels: np.ndarray, first: int, end: int) -> slice:
    """Where ascending `pixels` are from `first` to before `end`."""
    return slice(*np.searchsorted(pixels, [first, end]).tolist())


def panoptic_labels(
    logits: Tensor, instances: Sequence[Instance], rows: np.ndarray, columns: np.ndarray, num_stuff: int
) -> tuple[Tensor, Tensor]:
    """What each pixel is, and its best class. Arguments as of `panoptic_logits`.

    Returns:
        (R, S) int64: stuff class, or `num_stuff` + the number of an instance, or `num_stuff` + n for unknown; and (R, S)
        uint8 as `semantic_labels`. The first of equals wins.
    """
    shape = len(rows), len(columns)
    ids = torch.empty(shape, dtype=torch.int64, device=logits.device)
    semantic = torch.empty(shape, dtype=torch.uint8, device=logits.device)
    for part, values, own, unknown in panoptic_logits(logits, instances, rows, columns, num_stuff):
        best, label = values[..., :num_stuff].max(dim=2)
        thing, thing_label = values[..., num_stuff:].max(dim=2)
        semantic[part] = torch.where(thing > best, thing_label + num_stuff, label)
        instance, number = own.max(dim=0)
        label = torch.where(instance > best, number + num_stuff, label)
        ids[part] = label.masked_fill_(unknown > torch.maximum(best, instance), num_stuff + len(instances))
    return ids, semantic


def panoptic_probabilities(
    logits: Tensor, instances: Sequence[Instance], rows: np.ndarray, columns: np.ndarray, num_stuff: int
) -> Tensor:
    """(C, R, S) float32: the softmax of `panoptic_logits`, instances of a class added up, unknown left out."""
    result = torch.zeros((len(logits), len(rows), len(columns)), device=logits.device)
    for part, values, own, unknown in panoptic_logits(logits, instances, rows, columns, num_stuff):
        stuff = values[..., :num_stuff].permute(2, 0, 1)
        probabilities = torch.cat([stuff, own, unknown[None]]).softmax(dim=0)
        result[:num_stuff, part] = probabilities[:num_stuff]
        for probability, instance in zip(probabilities[num_stuff:-1], instances, strict=True):
            result[num_stuff + instance.thing, part] += probability
    return result


def merge_labels(
    ids: Tensor, semantic: Tensor, instances: Sequence[Instance], num_stuff: int, stuff_area_limit: int
) -> tuple[Tensor, list[dict]]:
    """The panoptic result of an image at its original size.

    An instance over which the semantic branch mostly (at least half) sees one stuff class, and its own class less, turns
    into that. Stuff of which there are fewer than `stuff_area_limit` pixels in all is void. A pixel of the stand-in (see
    `remove_masks`) is of the last stuff class.

    Args:
        ids, semantic: (H, W) as from `panoptic_labels`.

    Returns:
        (H, W) int32 segment ids (0 = void) and the segments [{id, is_thing, category, instance, area[, score]}]: `category`
        is the thing class, or 1 + the stuff class; `instance` the number UPSNet gives, 0 for stuff.
    """
    labels = num_stuff + len(instances)
    counts = (ids * 256 + semantic).flatten().bincount(minlength=256 * (labels + 1)).view(labels + 1, 256).cpu().numpy()
    areas = counts.sum(axis=1).tolist()
    # Of every label but unknown its class and instance number.
    kinds = [(stuff, 0) for stuff in range(num_stuff)]
    scores: dict[int, float] = {}
    for instance, area, sees in zip(instances, areas[num_stuff:], counts[num_stuff:], strict=False):
        own, seen = num_stuff + instance.thing, int(sees.argmax())
        if area == 0:
            kinds.append((own, 0))
            continue
        number = len(scores) + 1
        scores[number] = instance.score
        kinds.append((seen, 0) if seen != own and seen < num_stuff and sees[seen] / area >= 0.5 else (own, number))
    sizes: Counter[tuple[int, int]] = Counter()
    stuff_sizes: Counter[int] = Counter()
    for kind, area in zip(kinds, areas, strict=False):
        sizes[kind] += area
        stuff_sizes[kind[0]] += area
    segments: list[dict] = []
    names: dict[tuple[int, int], int] = {}
    for (category, number), area in sorted(sizes.items()):
        is_thing = category >= num_stuff
        if area == 0 or (not is_thing and stuff_sizes[category] < stuff_area_limit):
            continue
        name = names[category, number] = len(segments) + 1
        index = category - num_stuff if is_thing else category + 1
        segment = {"id": name, "is_thing": is_thing, "category": index, "instance": number, "area": area}
        segments.append(segment | ({"score": scores[number]} if number else {}))
    lookup = [names.get(kind, 0) for kind in kinds] + [0]
    return torch.tensor(lookup, dtype=torch.int32, device=ids.device)[ids], segments
