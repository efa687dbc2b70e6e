"""Anchors and the box code against their definitions."""

import torch

from extractors.networks.boxes import AnchorGenerator, clip_boxes, decode_boxes, encode_boxes


def test_anchors_are_centred_on_cell_corners_row_major_with_ratios_innermost():
    anchors = AnchorGenerator(((32, 64),), (0.5, 1.0), (16,))([torch.zeros(1, 1, 2, 3)])[0]
    assert anchors.shape == (2 * 3 * 4, 4)
    for row in range(2):
        for column in range(3):
            for k, (size, ratio) in enumerate([(32, 0.5), (32, 1.0), (64, 0.5), (64, 1.0)]):
                box = anchors[(row * 3 + column) * 4 + k]
                width, height = box[2] - box[0], box[3] - box[1]
                torch.testing.assert_close(width * height, torch.tensor(float(size**2)), rtol=1e-5, atol=0)
                torch.testing.assert_close(height / width, torch.tensor(ratio), rtol=1e-5, atol=0)
                centre = (box[:2] + box[2:]) / 2
                torch.testing.assert_close(centre, torch.tensor([column * 16.0, row * 16.0]))


def test_decoding_undoes_encoding():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(50, 2, generator=generator) * 100
    source = torch.cat([corner, corner + 5 + torch.rand(50, 2, generator=generator) * 80], 1)
    target = source + torch.randn(50, 4, generator=generator)
    deltas = encode_boxes(source, target, (10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(decode_boxes(deltas, source, (10.0, 10.0, 5.0, 5.0)), target, rtol=1e-4, atol=1e-3)


def test_decoding_limits_growth():
    box = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    grown = decode_boxes(torch.tensor([[0.0, 0.0, 50.0, 50.0]]), box, (1.0, 1.0, 1.0, 1.0))
    torch.testing.assert_close(grown[0, 2] - grown[0, 0], torch.tensor(1000.0), rtol=1e-4, atol=0)


def test_clipping_uses_height_and_width():
    clipped = clip_boxes(torch.tensor([[-5.0, -5.0, 500.0, 500.0]]), (100, 200))
    assert clipped.tolist() == [[0.0, 0.0, 200.0, 100.0]]
