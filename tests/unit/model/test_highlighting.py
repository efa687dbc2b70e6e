from __future__ import annotations

import pytest

from catalog.categories import UPSNET_TO_COCO
from model.highlighting import map_values


def test_map_values_encode_void_and_class_order():
    raw = map_values(133, "raw", "coco", 133)
    assert raw[:133].tolist() == list(range(133)) and raw[255] == 133
    upsnet = map_values(133, "raw", "upsnet", 0)
    assert [upsnet[UPSNET_TO_COCO[u]].item() for u in range(133)] == list(range(133)) and upsnet[255] == 0
    standardised = map_values(133, "standardised", "coco", 133)
    assert standardised[7].item() == pytest.approx((7 / 133 - 0.3342) / 0.0621)
    with pytest.raises(ValueError, match="seg_map_encoding is 'rwa'"):
        map_values(133, "rwa", "coco", 133)
    with pytest.raises(ValueError, match="class_order is 'voc'"):
        map_values(133, "raw", "voc", 133)
    with pytest.raises(ValueError, match="not 5"):
        map_values(5, "raw", "upsnet", 5)
