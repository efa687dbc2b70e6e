"""Mask pasting and the panoptic merge against naive versions."""

import torch

from extractors.networks.semantic import merge_panoptic, paste_masks


def naive_paste(mask, box, size):
    """Bilinear sample of the map at every pixel centre, zero beyond the map's edge cells."""
    side = mask.shape[0]
    out = torch.zeros(size)
    x0, y0, x1, y1 = box.tolist()
    for y in range(size[0]):
        for x in range(size[1]):
            u = (x + 0.5 - x0) / (x1 - x0) * side - 0.5
            v = (y + 0.5 - y0) / (y1 - y0) * side - 0.5
            for i in (int(torch.floor(torch.tensor(v))), int(torch.floor(torch.tensor(v))) + 1):
                for j in (int(torch.floor(torch.tensor(u))), int(torch.floor(torch.tensor(u))) + 1):
                    if 0 <= i < side and 0 <= j < side:
                        out[y, x] += max(0, 1 - abs(u - j)) * max(0, 1 - abs(v - i)) * mask[i, j]
    return out


def test_pasting_samples_at_pixel_centres():
    torch.manual_seed(0)
    mask = torch.rand(1, 4, 4)
    box = torch.tensor([[2.3, 1.7, 9.1, 12.4]])
    pasted = paste_masks(mask, box, (14, 11))[0]
    torch.testing.assert_close(pasted, naive_paste(mask[0], box[0], (14, 11)), rtol=1e-4, atol=1e-4)


def test_merge_prefers_confident_instances_then_fills_with_large_stuff():
    semantic = torch.ones(10, 10, dtype=torch.int64)
    semantic[5:] = 2
    semantic[:, 9] = 3  # 10 pixels: under the limit
    semantic[0, :] = 0  # thing pixels without an instance stay void
    masks = torch.zeros(4, 10, 10, dtype=torch.bool)
    masks[0, 4:8, 2:6] = True
    masks[1, 4:8, 2:7] = True  # mostly covered by the better instance 0: dropped
    masks[2, 6:10, 0:4] = True  # a quarter covered: keeps the rest
    masks[3, 0:3, 0:3] = True  # too unsure
    panoptic, segments = merge_panoptic(
        masks,
        torch.tensor([0.9, 0.8, 0.7, 0.4]),
        torch.tensor([5, 6, 7, 8]),
        semantic,
        stuff_area_limit=15,
    )
    assert [(s["is_thing"], s["category"]) for s in segments] == [(True, 5), (True, 7), (False, 1), (False, 2)]
    assert int((panoptic == 1).sum()) == 16
    assert int((panoptic == 2).sum()) == 16 - 4
    assert panoptic[0].eq(0).all() and panoptic[:, 9].eq(0).all()
    assert panoptic[1, 0] == 3 and panoptic[9, 8] == 4
