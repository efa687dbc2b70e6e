"""The baseline computes what our network computes; else a ratio of times would mean nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import baseline, data
from model import ranking
from model.data import image_tensors
from model.library_encoder import LibraryEncoder, bert_config
from model.three_shnet import ThreeSHNet
from model.tokenizer import SPECIAL_TOKENS, CaptionTokenizer
from tests.unit.model.helpers import image_encoder, text_encoder

WORDS = ("a", "dog", "red", "runs", "on", "##s", "grass")


@pytest.fixture
def network():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 64, "max_positions": 64}
    bert = LibraryEncoder(bert_config(vocabulary_size=len(SPECIAL_TOKENS) + len(WORDS), dropout=0.0, **sizes))
    made = ThreeSHNet(image_encoder(24, 16, 8, dropout=0.0), text_encoder(bert, 16))
    with torch.no_grad():
        for name, values in made.state_dict().items():
            if values.is_floating_point() and ("norm" in name or "running" in name):
                values.copy_(torch.rand_like(values) + 0.5)
    return made


@pytest.fixture
def tokenizer():
    return CaptionTokenizer([*SPECIAL_TOKENS, *WORDS])


def captions_of(count: int) -> list[str]:
    generator = np.random.default_rng(1)
    return [" ".join(generator.choice(WORDS[:5], generator.integers(1, 9))) for _ in range(count)]


@pytest.mark.parametrize("training", [False, True])
def test_embeddings_and_gradients_are_our_networks(network, tokenizer, training):
    network.train(training)
    found = data.image_arrays(6, tokens=36, width=24)
    generator = np.random.default_rng(0)
    visual, lengths, *rest = image_tensors(found, token_drop=0.2, generator=generator)
    assert len(set(lengths.tolist())) > 1
    tokens, token_lengths = (torch.from_numpy(part) for part in tokenizer.encode(captions_of(6)))
    directions = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(3))
    original = baseline.Baseline(network)
    results = []
    for images, captions in (
        (network.encode_images(visual, lengths, *rest), network.encode_captions(tokens, token_lengths)),
        (
            original.encode_images(visual.float(), lengths.float(), *(part.float() for part in rest)),
            original.encode_captions(tokens, token_lengths),
        ),
    ):
        network.zero_grad()
        ((images * directions[0]).sum() + (captions * directions[1]).sum()).backward()
        results.append(
            (
                images.detach(),
                captions.detach(),
                {name: p.grad.clone() for name, p in network.named_parameters() if p.requires_grad},
            )
        )
    (images, captions, ours), (their_images, their_captions, theirs) = results
    assert (images - their_images).abs().max() < 1e-5
    assert (captions - their_captions).abs().max() < 1e-5
    assert images.std() > 0.05 and captions.std() > 0.05
    for name in ours:
        scale = theirs[name].abs().max()
        assert (ours[name] - theirs[name]).abs().max() < 1e-3 * scale + 1e-6, name


def test_loader_and_evaluation_give_what_ours_give(network, tokenizer):
    network.eval()
    found = data.image_arrays(4, tokens=9, width=24)
    captions = captions_of(20)
    pairs = baseline.PairsInMemory(data.as_baseline_reads(found), captions, tokenizer, train=False)
    images, texts = baseline.encode(baseline.Baseline(network), baseline.loader(pairs, 8), torch.device("cpu"))
    with torch.no_grad():
        expected = network.encode_images(*image_tensors(found))
        expected_texts = network.encode_captions(*map(torch.from_numpy, tokenizer.encode(captions)))
    assert images.shape == (20, 16) and images.dtype == np.float64
    assert np.abs(images - expected.repeat_interleave(5, 0).numpy()).max() < 1e-5
    assert np.abs(texts - expected_texts.numpy()).max() < 1e-5


def test_metrics_are_ours_where_nothing_ties():
    generator = np.random.default_rng(0)
    images, captions = generator.normal(size=(30, 8)), generator.normal(size=(150, 8))
    ranks = ranking.ranks_from_embeddings(images, captions, np.repeat(np.arange(30), 5))
    expected = ranking.retrieval_scores(*ranks)
    found = baseline.metrics(baseline.similarities(images, captions))
    assert found == {key: pytest.approx(value) for key, value in expected.items()}


def test_training_items_are_augmented(tokenizer):
    found = data.as_baseline_reads(data.image_arrays(2, tokens=30, width=4))
    pairs = baseline.PairsInMemory(found, captions_of(10), tokenizer, train=True)
    visual, lengths, *_, tokens, token_lengths, indices = next(iter(baseline.loader(pairs, 8)))
    assert visual.shape[1] == lengths.max() < 30 and tokens.shape == (8, int(token_lengths.max()))
    assert (tokens[:, 0] == tokenizer.start).all() and len(set(indices.tolist())) == 8
