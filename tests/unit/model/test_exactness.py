"""The paper's sizes (E = 1024, D = 2048, 64 x 64 maps) against the formulae in float64.

In float32 the embeddings agree to 1e-5. Gradients need float64 on our side too: among 1024 features x 122 tokens some
pairs are closer than float32 resolves, so that a few columns sort in another order and their gradient goes to another
token. In float64 nothing is that close, and every gradient agrees.
"""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks import data
from model.data import image_tensors
from model.layers import sinusoidal_positions
from model.losses import triplet_loss
from model.small_encoder import SmallConfig, SmallEncoder
from model.three_shnet import ThreeSHNet
from tests.unit.model import naive
from tests.unit.model.helpers import image_encoder, text_encoder

E, D = 1024, 2048


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = ThreeSHNet(
        image_encoder(D, E, dropout=0.0), text_encoder(SmallEncoder(SmallConfig(50, 32, 1, 2, 64, 64, dropout=0.0)), E)
    )
    with torch.no_grad():
        for name, values in made.state_dict().items():
            if values.is_floating_point() and ("norm" in name or "running" in name):
                values.copy_(torch.rand_like(values) + 0.5)
    return made


@pytest.fixture(autouse=True)
def one_position_table(monkeypatch):
    """The reference computes its position encodings in float32; a table in float64 differs by 1e-5 itself."""
    monkeypatch.setattr(naive, "positions", lambda length, width: sinusoidal_positions(length, width).double())


def batch_of(lengths, *, longest=None, seed=0):
    found = data.image_arrays(len(lengths), tokens=longest or max(lengths), width=D, seed=seed)
    found["counts"][:] = lengths
    visual, *rest = image_tensors(found)
    extra = (longest or max(lengths)) - visual.shape[1]
    return torch.nn.functional.pad(visual, (0, 0, 0, extra)), *rest


def oracle(network, batch, weights, **options):
    visual, lengths, maps, onehots, segments = batch
    numbers = network.image.spatial.map_values.double()[maps.long()]
    return naive.encode_images(weights, visual, lengths, numbers, onehots, segments.float(), **options)


def double_weights(network, *, grad=False):
    weights = {key: value.detach().double() for key, value in network.state_dict().items()}
    if grad:
        for name, _ in network.named_parameters():
            weights[name].requires_grad_()
    return weights


@torch.no_grad()
def test_image_embeddings_for_any_length_and_batch(network):
    network = copy.deepcopy(network).eval()
    lengths = [1, 2, 17, 36, 60]
    batch = batch_of(lengths)
    expected = oracle(network, batch, double_weights(network))
    assert (network.encode_images(*batch) - expected).abs().max() < 1e-5
    for chosen, longest in (([0], 1), ([2, 0], 17), ([3, 1, 3], 36), ([4, 0, 2], 60)):
        visual, *rest = (part[chosen] for part in batch)
        assert (network.encode_images(visual[:, :longest], *rest) - expected[chosen]).abs().max() < 1e-5


@torch.no_grad()
def test_caption_embeddings_for_any_length_and_batch(network):
    network = copy.deepcopy(network).eval()
    lengths = torch.tensor([2, 3, 15, 40])
    ids = torch.randint(1, 50, (4, 40), generator=torch.Generator().manual_seed(0))
    ids[torch.arange(40) >= lengths[:, None]] = 0
    expected = naive.encode_captions(double_weights(network), network.text.bert(ids, lengths), lengths)
    assert (network.encode_captions(ids, lengths) - expected).abs().max() < 1e-5
    for i, n in enumerate(lengths):
        assert (network.encode_captions(ids[i : i + 1, :n], lengths[i : i + 1])[0] - expected[i]).abs().max() < 1e-5


def test_training_mode_losses_and_gradients(network):
    """Batch statistics include the padded rows; one image is far shorter than the longest, and one column is all padding."""
    network = copy.deepcopy(network).train()
    batch = batch_of([36, 1, 20], longest=37, seed=1)
    captions = torch.nn.functional.normalize(torch.randn(3, E, generator=torch.Generator().manual_seed(2)), dim=1)
    weights = double_weights(network, grad=True)
    expected = oracle(network, batch, weights, training=True)
    single = copy.deepcopy(network)
    in_single = single.encode_images(*batch)
    assert (in_single - expected).abs().max() < 1e-5
    network.double()
    in_double = network.encode_images(*batch)
    assert in_double.dtype == torch.float64 and (in_double - expected).abs().max() < 1e-12

    names = [name for name, parameter in network.image.named_parameters() if parameter.requires_grad]
    assert len(names) > 60  # the others are biases that a norm behind them takes back
    leaves = (
        [weights[f"image.{name}"] for name in names],
        [single.image.get_parameter(name) for name in names],
        [network.image.get_parameter(name) for name in names],
    )
    # One forward pass serves both losses.
    for hardest in (False, True):
        loss = naive.triplet_loss(expected, captions.double(), 0.2, hardest)
        losses = [triplet_loss(found, captions.to(found.dtype), hardest=hardest) for found in (in_single, in_double)]
        assert losses[0].item() == pytest.approx(loss.item(), abs=1e-5)
        assert losses[1].item() == pytest.approx(loss.item(), abs=1e-12)
        gradients = (gradients_of(found, own) for found, own in zip((loss, *losses), leaves, strict=True))
        for name, gradient, rounded, exact in zip(names, *gradients, strict=True):
            # A bias before a batch norm has no gradient at all: what is there is rounding, hence the absolute part.
            assert (exact - gradient).abs().max() < 1e-9 * gradient.abs().max() + 1e-13, (name, hardest)
            assert (rounded - gradient).norm() < 0.02 * gradient.norm() + 1e-5, (name, hardest)


def gradients_of(loss, parameters):
    return torch.autograd.grad(loss, parameters, retain_graph=True)
