"""What each part of an extraction takes: seconds, operations, and the share of this machine's product rate it reaches."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from benchmarks import common
from extractors import regions
from extractors.images import ImageBatch
from extractors.loading import NetworkExtractor
from extractors.networks import rcnn

REST = "rest"


def places(network: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """(part, owner, name of its function): what is called of a detector's parts, whole before their own parts."""
    body = getattr(network.backbone, "bottom_up", network.backbone)
    heads, proposals = getattr(network, "roi_heads", None), getattr(network, "proposal_generator", None)
    yield "stem", body.stem, "forward"
    for stage in body.stages:
        yield stage, getattr(body, stage), "forward"
    if body is not network.backbone:
        yield "pyramid", network.backbone, "forward"
    yield "proposals: network", proposals.rpn_head, "forward"
    yield "proposals: choice", proposals, "forward"
    for pooler in ("pooler", "box_pooler", "mask_pooler"):
        if getattr(heads, pooler, None) is not None:
            yield "pooling", getattr(heads, pooler), "pool"
    for part in ("res5", "box_head", "box_predictor", "attribute_predictor", "mask_head"):
        if getattr(heads, part, None) is not None:
            yield part.replace("_", " "), getattr(heads, part), "forward"
    if hasattr(network, "sem_seg_head"):
        yield "semantic branch", network.sem_seg_head, "forward"
        yield "logits brought to size", network.sem_seg_head, "upsample"
    yield "logits brought to size", rcnn, "resize_logits"
    yield "masks brought to size", rcnn, "paste_masks"
    yield "panoptic merge", rcnn, "merge_panoptic"
    yield "choice of regions", regions, "choose_regions"


def _fused(
    x: Sequence[int], second: Sequence[int], third: Sequence[int] | None, *_: Any, out_shape: Any, **__: Any
) -> int:
    """Of oneDNN's convolution with what follows it; with a shortcut the weights come third."""
    weight = third if third is not None and len(third) == 4 else second
    return conv_flop_count(x, weight, out_shape)


def counter() -> FlopCounterMode:
    """torch's counter, which knows of oneDNN's convolutions too."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._convolution_pointwise: _fused})


class Watch:
    """A part's own seconds, without those of the parts it calls, and the same of its operations."""

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        self.device, self.clock = device, clock
        self.seconds: dict[str, float] = defaultdict(float)
        self.operations: dict[str, int] = defaultdict(int)
        self.counted: FlopCounterMode | None = None
        self._inner = [(0.0, 0)]

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            begin, done = self._now()
            self._inner.append((0.0, 0))
            result = function(*args, **kwargs)
            now, count = self._now()
            seconds, operations = self._inner.pop()
            if self.counted is None:
                self.seconds[part] += now - begin - seconds
            else:
                self.operations[part] += count - done - operations
            outer = self._inner.pop()
            self._inner.append((outer[0] + now - begin, outer[1] + count - done))
            return result

        return run

    def _now(self) -> tuple[float, int]:
        common.synchronise(self.device)
        return self.clock(), self.counted.get_total_flops() if self.counted else 0


@contextmanager
def watched(network: nn.Module, watch: Watch) -> Iterator[None]:
    """Within it every part is timed."""
    with ExitStack() as stack:
        for part, owner, name in places(network):
            stack.enter_context(patch.object(owner, name, watch.timed(part, getattr(owner, name))))
        yield


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds of this process on the CPU where it has one thread, which others' work does not lengthen; else of the wall."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def profile(
    extractor: NetworkExtractor, batches: Sequence[ImageBatch], device: torch.device, precision: str, repetitions: int
) -> list[dict[str, Any]]:
    """One row per part: `part`, `seconds` and `operations` of an image, `share` of the product rate, `of_all` seconds.

    The batches are looked at once to count, then `repetitions` times; the medians' place is taken by the means.
    """
    watch = Watch(device, clock(device))
    images = sum(len(batch.rows) for batch in batches)
    look = watch.timed(REST, lambda: [extractor(batch) for batch in batches])
    rate = common.product_rate(device, precision, clock=watch.clock)
    with watched(extractor.runner.network, watch):
        with counter() as watch.counted:
            look()
        watch.counted = None
        for _ in range(repetitions):
            look()
    total = sum(watch.seconds.values())
    rows = []
    for part, seconds in sorted(watch.seconds.items(), key=lambda item: -item[1]):
        each, operations = seconds / repetitions / images, watch.operations[part] / images
        share = operations / each / rate if operations else None
        rows.append(
            {"part": part, "seconds": each, "operations": operations, "share": share, "of_all": seconds / total}
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| part | s an image | of all | GFLOP | of the product rate |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        share = "" if row["share"] is None else f"{100 * row['share']:.0f} %"
        operations = f"{row['operations'] / 1e9:.1f}" if row["operations"] else ""
        lines.append(f"| {row['part']} | {row['seconds']:.3f} | {100 * row['of_all']:.1f} % | {operations} | {share} |")
    return "\n".join(lines)
