"""The three panoptic arrays against torch's own pooling and plain counting."""

import numpy as np
import torch
from torch.nn import functional as F

from extractors.images import InputSpec
from extractors.networks.rcnn import Meta, Panoptic
from extractors.panoptic import area_fractions, category_map, category_presence, nearest_map, soft_probabilities

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


def test_nearest_map_takes_cell_centres():
    categories = np.arange(128 * 64, dtype=np.int64).reshape(128, 64)
    small = nearest_map(categories)
    assert small.shape == (64, 64)
    assert small[0, 0] == categories[1, 0] and small[63, 63] == categories[127, 63]


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
