"""The three panoptic arrays against torch's own pooling and plain counting."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from catalog.categories import UPSNET_TO_COCO
from core.console import UserError
from extractors.images import InputSpec, iterate_batches
from extractors.loading import NetworkRunner
from extractors.networks import build
from extractors.networks.rcnn import Meta, Panoptic
from extractors.networks.upsnet import UPSNetPanoptic, UPSNetSemantic
from extractors.panoptic import (
    PanopticExtractor,
    area_fractions,
    category_map,
    category_presence,
    nearest_map,
    soft_probabilities,
)

META = Meta(
    input=InputSpec(8, 8, "RGB", (0.0,) * 3, (1.0,) * 3, 32), thing_categories=(3, 7), stuff_categories=(90, 100)
)


def random_categories(shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice(np.array([0, 5, 80, 132, 255], np.uint8), shape)


def test_area_fractions_are_average_pooled_one_hots():
    for shape in ((20, 31), (7, 7), (64, 48), (5, 3), (1, 1)):
        categories = random_categories(shape)
        onehot = F.one_hot(torch.from_numpy(categories).long(), 256)[..., :133].permute(2, 0, 1).float()
        expected = F.adaptive_avg_pool2d(onehot, 7).numpy()
        np.testing.assert_allclose(area_fractions(categories), expected, atol=1e-3)


def test_a_cell_sums_to_one_without_void():
    categories = random_categories((33, 21))
    void = F.adaptive_avg_pool2d(torch.from_numpy(categories == 255).float()[None], 7)[0].numpy()
    np.testing.assert_allclose(area_fractions(categories).astype("f4").sum(0), 1 - void, atol=2e-3)


def test_nearest_map_takes_the_first_pixel_of_each_cell():
    for shape in ((128, 64), (427, 640), (33, 100), (1, 1)):
        categories = np.arange(shape[0] * shape[1]).reshape(shape)
        rows, columns = ([math.floor(i * side / 64) for i in range(64)] for side in shape)
        np.testing.assert_array_equal(nearest_map(categories), categories[np.ix_(rows, columns)])


def test_presence_needs_more_than_the_limit():
    categories = np.full((20, 20), 255, np.uint8)
    categories[:10, :10] = 4  # exactly 100 pixels
    categories[10:, :11] = 6  # 110 pixels
    presence = category_presence(categories, 100)
    assert presence.sum() == 1 and presence[6] == 1


def make_result():
    segment_map = torch.zeros(4, 6, dtype=torch.int32)
    segment_map[:2, :3] = 1
    segment_map[2:, :] = 2
    masks = torch.zeros(2, 4, 6)
    masks[0, :2, :3] = 0.9
    masks[1, :2, :4] = 0.8
    return Panoptic(
        segment_map=segment_map,
        segments=[
            {"id": 1, "is_thing": True, "category": 1, "score": 0.9},
            {"id": 2, "is_thing": False, "category": 2, "area": 12},
        ],
        semantic_logits=torch.zeros(3, 4, 6),
        masks=masks >= 0.5,
        mask_probabilities=masks,
        scores=torch.tensor([0.9, 0.5]),
        classes=torch.tensor([1, 1]),
        boxes=torch.zeros(2, 4),
    )


def test_categories_follow_the_merge():
    categories = category_map(make_result(), META)
    assert categories[0, 0] == 7 and categories[3, 0] == 100 and categories[0, 5] == 255


def test_soft_probabilities_never_exceed_one():
    soft = soft_probabilities(make_result(), META)
    assert soft.shape == (133, 4, 6)
    assert float(soft.sum(0).max()) <= 1 + 1e-6
    # thing 0.9*0.9 = 0.81 beside two stuff classes of 1/3 each, scaled to sum to one
    torch.testing.assert_close(soft[7, 0, 0], torch.tensor(0.81 / (0.81 + 2 / 3)))
    torch.testing.assert_close(soft[7, 0, 3], torch.tensor(0.4 / (0.4 + 2 / 3)))
    torch.testing.assert_close(soft[90, 3, 5], torch.tensor(1 / 3))


class Stub(torch.nn.Module):
    """A network with UPSNet's answers: class u, in its order, in row u % 4; the panoptic result has void and one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.meta = Meta(input=META.input, thing_categories=tuple(range(80)), stuff_categories=tuple(range(80, 133)))

    def results(self, sizes):
        labels = torch.tensor([0, 52, 53, 132], dtype=torch.uint8)[torch.arange(sizes[0][0]) % 4][:, None]
        probabilities = F.one_hot(labels.long(), 133).permute(2, 0, 1).float()
        return labels.expand(sizes[0]), lambda: probabilities

    def semantic(self, pixels, sizes, original_sizes):
        return [UPSNetSemantic(*self.results(original_sizes))] * len(sizes)

    def panoptic(self, pixels, sizes, original_sizes):
        labels, probabilities = self.results(original_sizes)
        segments = [
            {"id": 1, "is_thing": True, "category": 79, "instance": 1, "area": 1},
            {"id": 2, "is_thing": False, "category": 53, "instance": 0, "area": 1},
        ]
        segment_map = torch.tensor([0, 2, 1, 1])[torch.arange(labels.shape[0]) % 4][:, None].expand(labels.shape)
        return [UPSNetPanoptic(labels, probabilities, segment_map, segments, [])] * len(sizes)


def rows_of(path, **settings):
    extractor = PanopticExtractor(NetworkRunner(Stub(), "digest"), **settings)
    (batch,) = iterate_batches([path], [0], extractor.input, 1)
    (row,) = extractor(batch)
    return row, extractor.attributes


def test_upsnets_classes_come_in_our_order(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    row, attributes = rows_of(path)
    assert attributes["source"] == "semantic" and attributes["class_order"] == "coco"
    expected = [UPSNET_TO_COCO[u] for u in (0, 52, 53, 132)]
    assert row["seg_maps"][:4, 0].tolist() == expected == [80, 132, 0, 79]
    assert np.flatnonzero(row["category_onehots"]).tolist() == sorted(expected)
    row, attributes = rows_of(path, source="panoptic")
    assert attributes["source"] == "panoptic" and row["seg_maps"][:4, 0].tolist() == [255, 132, 79, 79]
    for source in ("semantic", "panoptic"):
        row, _ = rows_of(path, source=source, seg_features="soft")
        np.testing.assert_allclose(row["seg_features"].sum((1, 2))[expected], 49 / 4, atol=1.5)
        np.testing.assert_allclose(row["seg_features"].astype("f4").sum(0), 1, atol=1e-3)


def test_a_source_that_the_network_lacks_is_refused():
    runner = NetworkRunner(build("scenes_panoptic"), "digest")
    assert PanopticExtractor(runner).attributes["source"] == "panoptic"
    with pytest.raises(UserError, match="source: semantic needs .* such as upsnet_r50; that of PanopticFPN does not"):
        PanopticExtractor(runner, source="semantic")
    with pytest.raises(UserError, match="unknown source 'segments'; choose one of semantic, panoptic"):
        PanopticExtractor(runner, source="segments")
