"""Published results to show beside ours on the field's benchmarks, each with its source. All numbers are percentages.

Only what its source prints is here; None stands for what it does not.
"""

from __future__ import annotations

from dataclasses import dataclass

PRINTED = (1, 5, 10)  # the cut-offs of the values below
#: Images of each benchmark's test set: on another number of images the published results are not comparable.
IMAGES = {"coco": 5000, "flickr30k": 1000}
#: Stands below tables that show them.
TIES = (
    "Equal scores count as misses in our rows; published ones were ranked by sorting, so that where scores tie a script of theirs may "
    "print a higher image-to-text recall than ours."
)
_VSE_INFTY = "Chen et al., Learning the Best Pooling Strategy for Visual Semantic Embedding, CVPR 2021, supplementary material, table "


@dataclass(frozen=True)
class Published:
    """One published row.

    Attributes:
        benchmark: coco or flickr30k. block: recall (the whole test set), folds (the mean over five folds of 1,000
            images), cxc or cxc_intra (CxC between and within the modalities).
        system: the model and what it looks at (WSL: cells of a ResNeXt-101 pretrained on Instagram's tags, trained along); with
            BERT-base as text encoder where none is said.
        values: R@1, R@5, R@10 image to text, the same text to image, rSum; in cxc_intra image to image, text to text.
        source: where they are printed.
    """

    benchmark: str
    block: str
    system: str
    values: tuple[float | None, ...]
    source: str


#: Source -> its rows: benchmark, block, system, values.
_BY_SOURCE = {
    _VSE_INFTY + "4": (
        ("coco", "folds", "VSE∞ region", (79.7, 96.4, 98.9, 64.8, 91.4, 96.3, 527.5)),
        ("coco", "folds", "VSE∞ grid", (80.4, 96.8, 99.1, 66.4, 92.1, 96.7, 531.6)),
        ("coco", "folds", "VSE∞ region+grid", (82.2, 97.5, 99.5, 68.1, 92.9, 97.2, 537.4)),
        ("flickr30k", "recall", "VSE∞ region", (81.7, 95.4, 97.6, 61.4, 85.9, 91.5, 513.5)),
        ("flickr30k", "recall", "VSE∞ grid", (81.5, 97.1, 98.5, 63.7, 88.3, 93.2, 522.3)),
        ("flickr30k", "recall", "VSE∞ region+grid", (85.3, 97.2, 98.9, 66.7, 89.9, 94.0, 532.0)),
        ("coco", "folds", "VSE∞ WSL grid", (84.5, 98.1, 99.4, 72.0, 93.9, 97.5, 545.4)),
        ("coco", "folds", "VSE∞ WSL grid, two runs", (85.6, 98.0, 99.4, 73.1, 94.3, 97.7, 548.1)),
        ("flickr30k", "recall", "VSE∞ WSL grid", (88.4, 98.3, 99.5, 74.2, 93.7, 96.8, 550.9)),
        ("flickr30k", "recall", "VSE∞ WSL grid, two runs", (88.7, 98.9, 99.8, 76.1, 94.5, 97.1, 555.1)),
        ("coco", "folds", "VSE∞ region, BiGRU", (78.5, 96.0, 98.7, 61.7, 90.3, 95.6, 520.8)),
        ("coco", "folds", "VSE∞ grid, BiGRU", (78.0, 95.8, 98.5, 62.6, 90.6, 96.0, 521.5)),
        ("coco", "folds", "VSE∞ region+grid, BiGRU", (80.0, 97.0, 99.0, 64.8, 91.6, 96.5, 528.8)),
        ("flickr30k", "recall", "VSE∞ region, BiGRU", (76.5, 94.2, 97.7, 56.4, 83.4, 89.9, 498.1)),
        ("flickr30k", "recall", "VSE∞ grid, BiGRU", (77.9, 93.7, 97.4, 57.5, 83.4, 90.2, 500.2)),
        ("flickr30k", "recall", "VSE∞ region+grid, BiGRU", (80.7, 96.4, 98.3, 60.8, 86.3, 92.3, 514.8)),
    ),
    "the authors' log of running their code again, README of github.com/XuriGe1995/3SHNet": (
        ("coco", "folds", "3SHNet region", (83.6, 97.4, 99.2, 68.7, 92.6, 96.6, 538.0)),
    ),
    _VSE_INFTY + "5": (
        ("coco", "recall", "VSE∞ region", (58.3, 85.3, 92.3, 42.4, 72.7, 83.2, 434.3)),
        ("coco", "recall", "VSE∞ grid", (59.1, 85.9, 92.8, 44.1, 74.1, 84.0, 440.0)),
        ("coco", "recall", "VSE∞ region+grid", (62.5, 87.8, 94.0, 46.0, 75.8, 85.7, 451.8)),
        ("coco", "recall", "VSE∞ WSL grid", (66.4, 89.3, 94.6, 51.6, 79.3, 87.6, 468.9)),
        ("coco", "recall", "VSE∞ WSL grid, two runs", (68.1, 90.2, 95.2, 52.7, 80.2, 88.3, 474.8)),
        ("coco", "recall", "VSE∞ region, BiGRU", (56.6, 83.6, 91.4, 39.3, 69.9, 81.1, 421.9)),
        ("coco", "recall", "VSE∞ grid, BiGRU", (56.2, 83.7, 90.9, 40.8, 70.6, 81.5, 423.7)),
        ("coco", "recall", "VSE∞ region+grid, BiGRU", (59.8, 86.1, 92.8, 42.7, 72.8, 83.3, 437.5)),
    ),
    "README of the authors' repository, github.com/woodfrog/vse_infty": (
        ("coco", "cxc", "VSE∞ grid", (60.6, None, None, 46.2, None, None, None)),
        ("coco", "cxc_intra", "VSE∞ grid", (44.4, None, None, 45.9, None, None)),
        ("coco", "cxc", "VSE∞ WSL grid", (67.9, None, None, 53.6, None, None, None)),
        ("coco", "cxc_intra", "VSE∞ WSL grid", (51.3, None, None, 46.7, None, None)),
    ),
    _VSE_INFTY + "4 (quoted there)": (
        ("coco", "folds", "SCAN t2i+i2t, BiGRU", (72.7, 94.8, 98.4, 58.8, 88.4, 94.8, 507.9)),
        ("flickr30k", "recall", "SCAN t2i+i2t, BiGRU", (67.4, 90.3, 95.8, 48.6, 77.7, 85.2, 465.0)),
    ),
    _VSE_INFTY + "5 (quoted there)": (
        ("coco", "recall", "SCAN t2i+i2t, BiGRU", (50.4, 82.2, 90.0, 38.6, 69.3, 80.4, 410.9)),
    ),
}
PUBLISHED = tuple(Published(*row, source) for source, rows in _BY_SOURCE.items() for row in rows)
