from __future__ import annotations

import pytest
import torch

from model.losses import triplet_loss
from model.small_encoder import SmallConfig, SmallEncoder
from model.three_shnet import ThreeSHNet
from tests.unit.model import naive
from tests.unit.model.helpers import image_encoder, text_encoder

CATEGORIES, SIDE = 133, 12


def small_network(seed: int = 0, *, dropout: float = 0.0, **image) -> ThreeSHNet:
    torch.manual_seed(seed)
    bert = SmallEncoder(SmallConfig(50, 32, 1, 2, 64, 64, dropout=dropout))
    network = ThreeSHNet(
        image_encoder(24, 16, 8, num_categories=CATEGORIES, dropout=dropout, **image), text_encoder(bert, 16)
    )
    with torch.no_grad():
        for name, values in network.state_dict().items():
            if values.is_floating_point() and ("norm" in name or "running" in name):
                values.copy_(torch.rand_like(values) + 0.5)
    return network


def batch_of(lengths, seed: int = 0, *, longest: int | None = None):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.as_tensor(lengths)
    visual = torch.randn(len(lengths), longest or int(lengths.max()), 24, generator=generator)
    visual[torch.arange(visual.shape[1]) >= lengths[:, None]] = 0
    maps = torch.randint(0, CATEGORIES, (len(lengths), SIDE // 3, SIDE // 3), generator=generator, dtype=torch.uint8)
    maps = maps.repeat_interleave(3, 1).repeat_interleave(3, 2)  # areas, as class maps have
    maps[:, 0] = 255
    onehots = (torch.rand(len(lengths), CATEGORIES, generator=generator) > 0.9).to(torch.uint8)
    segments = torch.rand(len(lengths), CATEGORIES, 7, 7, generator=generator) * onehots[:, :, None, None]
    return visual, lengths, maps, onehots, segments.half()


def double_weights(network, *, grad: bool = False):
    weights = {key: value.detach().double() for key, value in network.state_dict().items()}
    if grad:
        for name, _ in network.named_parameters():
            weights[name].requires_grad_()
    return weights


def oracle(network, batch, **options):
    visual, lengths, maps, onehots, segments = batch
    numbers = network.image.spatial.map_values.double()[maps.long()]
    weights = options.pop("weights", None) or double_weights(network)
    return naive.encode_images(weights, visual, lengths, numbers, onehots, segments.float(), **options)


@pytest.mark.parametrize(
    "settings", [{}, {"seg_map_encoding": "standardised", "class_order": "upsnet"}], ids=["raw", "standardised"]
)
def test_image_embeddings_equal_the_formulae_for_every_length(settings):
    network = small_network(**settings).eval()
    batch = batch_of(range(1, 37))
    with torch.no_grad():
        found = network.encode_images(*batch)
    assert (found - oracle(network, batch)).abs().max() < 1e-5
    torch.testing.assert_close(found.norm(dim=1), torch.ones(36))


@torch.no_grad()
def test_an_embedding_depends_on_nothing_else_in_its_batch():
    network = small_network().eval()
    visual, lengths, *rest = batch = batch_of([1, 36, 5, 0, 20])
    together = network.encode_images(*batch)
    for i, n in enumerate(lengths):
        n = max(1, int(n))
        alone = network.encode_images(visual[i : i + 1, :n], lengths[i : i + 1], *(x[i : i + 1] for x in rest))
        assert (alone[0] - together[i]).abs().max() < 1e-5
    # More padding than the longest needs, with rubbish in it.
    padded = torch.cat((visual, torch.full((5, 80, 24), 9.0)), dim=1)
    padded[torch.arange(padded.shape[1]) >= lengths[:, None]] = 9.0
    assert (network.encode_images(padded, lengths, *rest) - together).abs().max() < 1e-5


def test_training_mode_and_gradients_equal_the_formulae_with_padded_rows():
    """Batch statistics include padding; one item is far shorter than the longest, where the reference crashes."""
    network = small_network(seed=1).train()
    # Token 36 x 2 + 50 against 1 x 2 + 49: and one more padded column than the longest needs.
    batch = batch_of([36, 1, 7, 20], seed=1, longest=37)
    direction = torch.randn(4, 16, generator=torch.Generator().manual_seed(2))
    weights = double_weights(network, grad=True)
    expected = oracle(network, batch, weights=weights, training=True)
    found = network.encode_images(*batch)
    assert (found - expected).abs().max() < 1e-5
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    checked = 0
    for name, parameter in network.image.named_parameters():
        gradient = weights[f"image.{name}"].grad
        # What is frozen has no gradient: a norm behind it takes its shift back.
        found = torch.zeros_like(gradient) if not parameter.requires_grad else parameter.grad
        error = (found - gradient).abs().max()
        assert error < 1e-4 * gradient.abs().max() + 1e-6, name
        checked += 1
    assert checked == len(list(network.image.parameters())) == 73


@torch.no_grad()
def test_caption_embeddings_equal_the_formulae():
    network = small_network(seed=3).eval()
    lengths = torch.tensor([2, 9, 30, 9])
    ids = torch.randint(1, 50, (4, 30), generator=torch.Generator().manual_seed(0))
    ids[torch.arange(30) >= lengths[:, None]] = 0
    found = network.encode_captions(ids, lengths)
    hidden = network.text.bert(ids, lengths)
    assert (found - naive.encode_captions(double_weights(network), hidden, lengths)).abs().max() < 1e-5
    for i, n in enumerate(lengths):
        alone = network.encode_captions(ids[i : i + 1, :n], lengths[i : i + 1])
        assert (alone[0] - found[i]).abs().max() < 1e-5


def test_loss_gradients_of_the_whole_network_equal_the_formulae():
    network = small_network(seed=4).train()
    batch = batch_of([4, 2, 6], seed=4)
    lengths = torch.tensor([5, 4, 3])
    ids = torch.randint(1, 50, (3, 5), generator=torch.Generator().manual_seed(1)) * (
        torch.arange(5) < lengths[:, None]
    )
    for hardest in (False, True):
        network.zero_grad()
        weights = double_weights(network, grad=True)
        hidden = network.text.bert(ids, lengths).double()
        expected = naive.triplet_loss(
            oracle(network, batch, weights=weights, training=True),
            naive.encode_captions(weights, hidden, lengths),
            0.2,
            hardest,
        )
        found = triplet_loss(*network(*batch, ids, lengths), margin=0.2, hardest=hardest)
        assert found.item() == pytest.approx(expected.item(), abs=1e-5)
        found.backward()
        expected.backward()
        for name, parameter in network.named_parameters():
            if "bert" not in name:
                gradient = weights[name].grad
                found = torch.zeros_like(gradient) if not parameter.requires_grad else parameter.grad
                assert (found - gradient).abs().max() < 1e-4 * gradient.abs().max() + 1e-6, (name, hardest)


def test_inputs_move_to_the_network_and_lengths_stay_in_host_memory():
    network = small_network(seed=5).to("meta")
    visual, maps = network._here(torch.zeros(2, 3, 4, dtype=torch.float16), torch.zeros(2, 5, dtype=torch.uint8))
    assert (visual.device.type, visual.dtype, maps.device.type, maps.dtype) == (
        "meta",
        torch.float32,
        "meta",
        torch.uint8,
    )
    valid, lengths = network._mask(torch.tensor([1, 3]), visual)
    assert valid.device.type == "meta" and valid.shape == (2, 3) and lengths.tolist() == [1, 3]


def test_autocast_stays_close():
    network = small_network(seed=5).eval()
    batch = batch_of([3, 9, 12], seed=6)
    with torch.no_grad():
        exact = network.encode_images(*batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = network.encode_images(*batch)
    assert rough.dtype == torch.float32
    assert 1e-6 < (rough - exact).abs().max() < 0.05


def test_sizes_of_the_papers_network():
    with torch.device("meta"):
        image = image_encoder(2048, 1024, 128)
        text = text_encoder(SmallEncoder(SmallConfig(30522, 768, 12, 12, 3072, 512)), 1024)
    # The authors' files hold 7 second batch norms and a BERT pooler besides, which nothing ever applies.
    unused_norms = 2 * (6 * 1024 + 128)
    assert sum(p.numel() for p in image.parameters()) + unused_norms == 11_615_008
    assert sum(p.numel() for p in text.parameters()) + 768 * 768 + 768 == 110_282_400
