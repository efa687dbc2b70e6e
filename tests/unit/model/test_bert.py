from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from core.console import UserError
from model.bert import Bert, BertConfig, config_from_weights
from model.pretrained import load_encoder, resolve_pretrained
from model.tokenizer import SPECIAL_TOKENS


@pytest.fixture(scope="module")
def library_model():
    from transformers.models.bert.configuration_bert import BertConfig as LibraryConfig
    from transformers.models.bert.modeling_bert import BertModel

    torch.manual_seed(0)
    config = LibraryConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=20, hidden_act="gelu",
    )  # fmt: skip
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


def test_hidden_states_equal_the_librarys(library_model, tmp_path):
    write_folder(tmp_path, library_model)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    bert, tokenizer = load_encoder(str(tmp_path), dropout=0.25, max_tokens=30)
    assert isinstance(bert, Bert) and bert.config.dropout == 0.25
    assert tokenizer.vocabulary[:5] == list(SPECIAL_TOKENS) and not tokenizer.lowercase and tokenizer.max_tokens == 20
    ids = torch.randint(1, 40, (5, 20), generator=torch.Generator().manual_seed(0))
    ids[torch.arange(20) >= torch.tensor([20, 2, 7, 13, 1])[:, None]] = 0
    with torch.no_grad():
        expected = library_model(ids, attention_mask=(ids != 0).long()).last_hidden_state
        found = bert.eval()(ids, ids != 0)
    valid = ids != 0
    assert (found - expected)[valid].abs().max() < 1e-5
    sizes = config_from_weights(bert.state_dict(), heads=4, dropout=0.25)
    assert sizes == bert.config
    assert config_from_weights({k: torch.zeros(v.shape) for k, v in bert.state_dict().items()}).heads == 1


def test_from_scratch_weights_are_drawn_like_berts():
    torch.manual_seed(0)
    bert = Bert(BertConfig(500, 64, 2, 2, 128, 30))
    words = bert.embeddings.word_embeddings.weight
    assert (words[0] == 0).all() and words[1:].std().item() == pytest.approx(0.02, rel=0.05)
    assert (bert.encoder["layer"][1].intermediate.dense.bias == 0).all()
    with pytest.raises(ValueError, match="31 tokens exceed this text encoder's 30 positions"):
        bert(torch.ones(1, 31, dtype=torch.long), torch.ones(1, 31, dtype=torch.bool))


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


def test_states_that_are_not_wanted_cost_nothing_and_change_nothing(monkeypatch):
    """Only the captions' own tokens go through the layers; the others come back as zeros."""
    torch.manual_seed(0)
    bert = Bert(BertConfig(50, 32, 2, 4, 64, 20, dropout=0.0))
    lengths = torch.tensor([9, 2, 5])
    ids = torch.randint(1, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    ids[torch.arange(9) >= lengths[:, None]] = 0
    wanted = ids != 0
    arriving = torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(1)) * wanted[:, :, None]
    results, rows = [], []
    monkeypatch.setattr(
        bert.encoder["layer"][1].intermediate.dense, "forward",
        lambda x, dense=bert.encoder["layer"][1].intermediate.dense: (
            rows.append(len(x)), torch.nn.functional.linear(x, dense.weight, dense.bias)
        )[1],
    )  # fmt: skip
    for options in ((), (lengths,)):
        bert.zero_grad()
        states = bert(ids, wanted, *options)
        (states * arriving).sum().backward()
        results.append([states[wanted], *(p.grad.clone() for p in bert.parameters() if p.requires_grad)])
    assert rows == [27, 16] and (states[~wanted] == 0).all()
    for all_rows, own_rows in zip(*results, strict=True):
        torch.testing.assert_close(own_rows, all_rows, rtol=1e-4, atol=1e-5)
