"""Embedding whole splits: batches of one length, beside one another."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from benchmarks import data
from model import embed
from model.embed import embed_captions, embed_images
from model.small_encoder import SmallConfig, SmallEncoder
from model.three_shnet import ThreeSHNet
from tests.unit.model.helpers import image_encoder, text_encoder


@pytest.fixture
def world():
    """A small network in eval mode, features of 13 images, a tokenizer and captions of 2 to 9 words, some twice."""
    torch.manual_seed(0)
    tokenizer = data.tokenizer()
    text = SmallEncoder(SmallConfig(len(tokenizer.vocabulary), 16, 1, 2, 32, 16))
    network = ThreeSHNet(image_encoder(8, 16, 4), text_encoder(text, 16)).eval()
    captions = [" ".join(f"w{i * n}" for i in range(2 + n % 8)) for n in range(30)] + ["w1 w1"] * 3
    return network, data.features_in_memory(13, tokens=4, width=8), tokenizer, captions


def embedded(world, **options):
    network, features, tokenizer, captions = world
    return embed_images(network, features, np.arange(13), batch_size=3), embed_captions(
        network, tokenizer, captions, **options
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_beside_one_another_give_what_each_gives_alone(world, threads, monkeypatch):
    network, features, tokenizer, captions = world
    before = torch.get_num_threads()
    alone = [embed_captions(network, tokenizer, [caption])[0] for caption in captions]
    seen = []
    original = type(network).encode_captions

    def watched(self, tokens, lengths):
        assert lengths.tolist() == [tokens.shape[1]] * len(tokens), "nothing is padded"
        seen.append((threading.get_ident(), torch.get_num_threads(), torch.is_inference_mode_enabled()))
        return original(self, tokens, lengths)

    monkeypatch.setattr(type(network), "encode_captions", watched)
    try:
        torch.set_num_threads(threads)
        images, found = embedded(world, batch_size=2)
        assert torch.get_num_threads() == threads, "as it was"
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-6)
    assert all(row == 1 and inference for _, row, inference in seen)
    assert (len({thread for thread, *_ in seen}) > 1) == (threads > 1)
    one = [embed_images(network, features, np.array([row]))[0] for row in range(13)]
    np.testing.assert_allclose(images, one, rtol=1e-5, atol=1e-6)


def test_rounding_reaches_every_thread(world, monkeypatch):
    exact = embedded(world)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = embedded(world)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(exact, rounded, strict=True):
        assert (np.abs(one - other).max(axis=1) > 1e-5).all() and np.abs(one - other).max() < 0.05


def test_an_error_in_a_batch_is_told_and_threads_come_back(world):
    network, _, tokenizer, captions = world
    before = torch.get_num_threads()
    network.text.projection.forward = lambda _: (_ for _ in ()).throw(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        embed_captions(network, tokenizer, captions, batch_size=2)
    assert torch.get_num_threads() == before


def test_lengths_share_no_batch():
    lengths = np.array([3, 1, 3, 3, 2, 1, 3])
    found = embed._of_one_length(lengths, 2)
    assert [own.tolist() for own in found] == [[1, 5], [4], [0, 2], [3, 6]]
    assert embed._of_one_length(lengths[:0], 2) == []
