from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from core.console import UserError
from model.library_encoder import LibraryEncoder, bert_config
from model.pretrained import load_encoder, resolve_pretrained
from model.small_encoder import SmallConfig, SmallEncoder
from model.text import encoder_of
from model.tokenizer import SPECIAL_TOKENS

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
}
SMALL = SmallConfig(50, 32, 2, 4, 64, 20, dropout=0.0)
BERT = bert_config(
    vocabulary_size=50, hidden_size=32, layers=2, heads=4, intermediate_size=64, max_positions=20, dropout=0.0
)


@pytest.fixture(scope="module")
def library_model():
    from transformers.models.bert.configuration_bert import BertConfig as LibraryConfig
    from transformers.models.bert.modeling_bert import BertModel

    torch.manual_seed(0)
    config = LibraryConfig(**SIZES)
    model = BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def write_folder(folder, model, *, prefix="bert.", rename=True):
    weights = {f"{prefix}{key}": value.contiguous() for key, value in model.state_dict().items()}
    if rename:  # as the oldest published files spell it
        weights = {
            k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
            for k, v in weights.items()
        }
    weights["cls.predictions.bias"] = torch.zeros(40)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *(f"w{i}" for i in range(35))]) + "\n")


def test_published_files_of_any_age_are_read(library_model, tmp_path):
    """The first name norms gamma and beta, prefix everything, hold the heads of the pretraining and say no `model_type`."""
    write_folder(tmp_path, library_model)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    config = library_model.config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps({key: config[key] for key in SIZES}))
    bert, tokenizer = load_encoder(str(tmp_path), dropout=0.25, max_tokens=30)
    assert bert.config.packed and bert.model.embeddings.dropout.p == bert.config.library["hidden_dropout_prob"] == 0.25
    assert tokenizer.vocabulary[:5] == list(SPECIAL_TOKENS) and not tokenizer.lowercase and tokenizer.max_tokens == 20
    ids, lengths = captions()
    with torch.no_grad():
        expected = library_model(ids, attention_mask=(ids != 0).long()).last_hidden_state
        found = bert.eval()(ids, lengths)
    assert (found - expected)[ids != 0].abs().max() < 1e-5
    keys = [parameter for name, parameter in bert.named_parameters() if name.endswith("key.bias")]
    assert len(keys) == 3 and not any(parameter.requires_grad for parameter in keys)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(
        bert.state_dict().values(), (v for k, v in library_model.state_dict().items() if "pooler" not in k), strict=True
    ))  # fmt: skip


def captions():
    """(5, 20) ids, and lengths."""
    lengths = torch.tensor([20, 2, 7, 13, 1])
    ids = torch.randint(1, 40, (5, 20), generator=torch.Generator().manual_seed(0))
    return ids * (torch.arange(20) < lengths[:, None]), lengths


def test_the_small_encoder_is_a_bert(library_model):
    """And what version 0.1 described, whose weights had the same names, is run by the library."""
    small = SmallEncoder(SmallConfig(40, 32, 3, 4, 48, 20)).eval()
    weights = {key: value for key, value in library_model.state_dict().items() if "pooler" not in key}
    small.load_state_dict(weights)
    former = small.config.to_dict() | {"token_types": 2, "activation": "gelu", "layer_norm_eps": 1e-12}
    again = encoder_of(json.loads(json.dumps(former))).eval()
    again.load_state_dict(weights | {"pooler.dense.weight": torch.zeros(32, 32)})
    ids, lengths = captions()
    with torch.no_grad():
        expected = library_model(ids, attention_mask=(ids != 0).long()).last_hidden_state
        for encoder in (small, again):
            found = encoder(ids, lengths)
            assert (found - expected)[ids != 0].abs().max() < 1e-5 and (found[ids == 0] == 0).all()


def test_from_scratch_weights_are_drawn_like_berts():
    torch.manual_seed(0)
    small = SmallEncoder(SmallConfig(500, 64, 2, 2, 128, 30))
    words = small.embeddings["word_embeddings"].weight
    assert (words[0] == 0).all() and words[1:].std().item() == pytest.approx(0.02, rel=0.05)
    assert (small.encoder["layer"][1].intermediate["dense"].bias == 0).all()


def test_what_is_not_a_bert_is_named(library_model, tmp_path):
    write_folder(tmp_path, library_model)
    config = json.loads((tmp_path / "config.json").read_text())

    def load():
        load_encoder(str(tmp_path), dropout=0.1, max_tokens=20)

    (tmp_path / "config.json").write_text(json.dumps(config | {"position_embedding_type": "relative_key_query"}))
    with pytest.raises(UserError, match="is a 'bert' model with relative_key_query positions"):
        load()
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(UserError, match=r"do not fit its config.json"):
        load()
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model.safetensors"):
        load()
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"lacks vocab.txt"):
        load()


def test_a_name_that_cannot_be_fetched_is_explained(monkeypatch):
    import huggingface_hub

    def fail(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=r"'some/bert' is not a local folder and could not be.*no network.*null"):
        resolve_pretrained("some/bert")


@pytest.mark.parametrize("made", [lambda: SmallEncoder(SMALL), lambda: LibraryEncoder(BERT)], ids=["small", "library"])
@pytest.mark.parametrize(("lengths", "rows"), [([9, 2, 5], 16), ([9, 9, 9], 27)], ids=["padded", "full"])
def test_only_captions_own_tokens_go_through_the_layers(made, lengths, rows, monkeypatch):
    """Each caption alone gives the same states and gradients."""
    torch.manual_seed(0)
    bert, lengths = made(), torch.tensor(lengths)
    ids = torch.randint(1, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    arriving = torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(1))
    seen = []
    (dense,) = (part for name, part in bert.named_modules() if name.endswith("layer.1.intermediate.dense"))
    dense.register_forward_hook(lambda module, given, found: seen.append(given[0].flatten(0, -2).shape[0]))
    together = bert(ids, lengths)
    (together * arriving).sum().backward()
    gradients = {
        name: p.grad.clone() for name, p in bert.named_parameters() if p.requires_grad and "key.bias" not in name
    }
    bert.zero_grad()
    for i, n in enumerate(lengths.tolist()):
        alone = bert(ids[i : i + 1, :n], lengths[i : i + 1])
        (alone * arriving[i, :n]).sum().backward()
        torch.testing.assert_close(together[i, :n], alone[0], rtol=1e-4, atol=1e-5)
        assert (together[i, n:] == 0).all()
    for name, gradient in gradients.items():
        torch.testing.assert_close(bert.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-5)
    assert seen[0] == rows


def test_layers_are_compiled_whole():
    """No graph break, and what was compiled for one layer and batch serves others: packings are no constants."""
    torch.manual_seed(0)
    bert = LibraryEncoder(BERT).eval()
    ids = torch.randint(1, 50, (4, 9), generator=torch.Generator().manual_seed(0))
    batches = [(ids[:3], [9, 2, 5]), (ids[:2, :4], [4, 1]), (ids, [9, 3, 3, 8])]
    batches = [(part, torch.tensor(lengths)) for part, lengths in batches]
    with torch.no_grad():
        expected = [bert(*batch) for batch in batches]
        layers = list(bert.compiled())
        for layer in layers:
            layer.compile(dynamic=True, fullgraph=True, backend="eager")
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        found = [bert(*batch) for batch in batches]
    assert len(layers) == 2 and torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
