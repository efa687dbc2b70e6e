"""Encoders that are like none of `test_library_encoder.py`, with weights as the library draws them: nothing in them stands out."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from core.console import UserError
from model.library_encoder import padded_states
from model.pretrained import load_encoder
from model.text import encoder_of

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *(f"w{i}" for i in range(35))]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"max_position_embeddings": 40, "vocab_size": 40, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "vocab_size": 40, "bos_token_id": 2}
SEES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32}
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
CAPTIONS = ["w1", "", "w2 w3 w4", " ".join(WORDS[5:40]), " ".join(["w7 w9"] * 30)]


def folder(path, kind, **sizes):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, kind)(**sizes)
    transformers.AutoModel.from_config(config).save_pretrained(path)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer.save(str(path / "tokenizer.json"))
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    return str(path)


FAMILIES = {  # the library's configuration, its sizes, the most tokens that it reads
    "gpt2": ("GPT2Config", GPT | {"eos_token_id": 39, "pad_token_id": 39}, 40),  # padding is the end, as often with GPT-2
    "clip": ("CLIPTextConfig", SIZES | {"eos_token_id": 39, "pad_token_id": 39}, 40),
    "siglip": ("SiglipConfig", {"text_config": SIZES | {"projection_size": 32}, "vision_config": SEES | {"patch_size": 8}}, 40),
    "chinese_clip": ("ChineseCLIPConfig", {"text_config": SIZES, "vision_config": SEES | {"patch_size": 8}}, 40),
    "bart": ("BartConfig", BART | {k: SIZES[k] for k in ("vocab_size", "pad_token_id", "max_position_embeddings")}, 40),
    "roberta": ("RobertaConfig", SIZES, 38),
    "esm": ("EsmConfig", SIZES | {"mask_token_id": 4, "token_dropout": True, "initializer_range": 0.3, "vocab_size": 4000}, 38),
    "squeezebert": ("SqueezeBertConfig", SIZES | {"embedding_size": 32, "q_groups": 2, "k_groups": 2, "v_groups": 2}, 40),
    "xlnet": ("XLNetConfig", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "vocab_size": 40, "pad_token_id": 1}, 50),
    "roformer": ("RoFormerConfig", SIZES, 40),
    "jina_v3": ("JinaEmbeddingsV3Config", SIZES, 40),
    "deberta-v3": ("DebertaV2Config", SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": True}, 40),
}  # fmt: skip
RELATIVE = {"roformer", "jina_v3", "deberta-v3"}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_positions_are_read_and_all_that_counts_learns(family, tmp_path):
    kind, sizes, most = FAMILIES[family]
    encoder, reader = load_encoder(folder(tmp_path, kind, **sizes), dropout=0.0, max_tokens=50)
    ids, lengths = (torch.from_numpy(part) for part in reader.encode(CAPTIONS))
    assert reader.max_tokens == lengths.max() == most
    ids[2, 1] = WORDS.index("<mask>")  # as augmentation puts it there
    valid = torch.arange(most) < lengths[:, None]
    again = encoder_of(json.loads(json.dumps(encoder.config.to_dict()))).eval()
    again.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        found, plain = encoder.eval()(ids, lengths), encoder_of(encoder.config.to_dict() | {"packed": False}).eval()
        plain.load_state_dict(encoder.state_dict())
        assert torch.equal(again(ids, lengths), found)
        assert (found - padded_states(plain.model, ids, valid))[valid].abs().max() < 1e-5
    torch.manual_seed(0)
    (encoder.train()(ids, lengths) * torch.randn_like(found)).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in encoder.parameters() if p.requires_grad)
    ends = (".key.bias", ".k_proj.bias", "key_proj.bias")
    keys = [part for name, part in encoder.named_parameters() if name.endswith(ends)]
    assert all(part.requires_grad == (family in RELATIVE) for part in keys)


@pytest.mark.parametrize("family", ["siglip", "chinese_clip", "bert"])
def test_a_packed_row_may_be_longer_than_any_caption(family, tmp_path):
    """Some models refuse a row that has more tokens than they have positions, however short its captions are."""
    kind, sizes, _ = FAMILIES.get(family, ("BertConfig", SIZES, 40))
    encoder, reader = load_encoder(folder(tmp_path, kind, **sizes), dropout=0.0, max_tokens=8)
    ids, lengths = (torch.from_numpy(part) for part in reader.encode(["w1 w2 w3"] * 20))
    assert encoder.config.packed == (family == "bert") and lengths.sum() > 40
    with torch.no_grad():
        found = encoder.eval()(ids, lengths)
        torch.testing.assert_close(found, encoder(ids[:1], lengths[:1]).expand_as(found))


def test_all_dropouts_are_replaced_and_layers_never_dropped(tmp_path):
    for name in ("gpt", "bart"):
        (tmp_path / name).mkdir()
    gpt, _ = load_encoder(
        folder(tmp_path / "gpt", *FAMILIES["gpt2"][:1], **FAMILIES["gpt2"][1]), dropout=0.3, max_tokens=9
    )
    assert {part.p for part in gpt.modules() if isinstance(part, torch.nn.Dropout)} == {0.3}
    sizes = FAMILIES["bart"][1] | {"encoder_layerdrop": 0.5, "dropout": 0.4}
    bart, _ = load_encoder(folder(tmp_path / "bart", "BartConfig", **sizes), dropout=0.3, max_tokens=9)
    assert (bart.model.config.dropout, bart.model.config.encoder_layerdrop) == (0.3, 0.0)


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        (
            "FSMTConfig",
            {"langs": ["en", "de"], "src_vocab_size": 40, "tgt_vocab_size": 40} | BART,
            "'fsmt' model in .* has a decoder",
        ),
        # Attends to all of a short text, and to some of a long one, from the first short one on to all of any.
        ("BigBirdConfig", SIZES | {"block_size": 4, "num_random_blocks": 1}, "beside it or before it"),
        (
            "EuroBertConfig",
            SIZES
            | {"mask_token_id": 4, "rope_parameters": {"rope_type": "longrope", "factor": 4.0, "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 16}},
            "depends on the captions beside it",
        ),
    ],
)  # fmt: skip
def test_what_depends_on_other_captions_or_decodes_is_refused(kind, sizes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_encoder(folder(tmp_path, kind, **sizes), dropout=0.0, max_tokens=50)


@pytest.mark.parametrize(
    ("kind", "sizes", "name", "pieces"),
    [
        (
            "AlbertConfig",
            SIZES | {"embedding_size": 16},
            "spiece.model",
            ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
        ),
        ("DebertaV2Config", SIZES, "spm.model", ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]),
        ("XLMRobertaConfig", SIZES, "sentencepiece.bpe.model", ["<unk>", "<s>", "</s>"]),
    ],
)
def test_sentencepiece_files_alone_are_enough(kind, sizes, name, pieces, tmp_path):
    from transformers.utils import sentencepiece_model_pb2_new as format

    folder(tmp_path, kind, **sizes)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).unlink()
    proto = format.ModelProto()
    proto.trainer_spec.unk_id = next(i for i, piece in enumerate(pieces) if "unk" in piece.lower())
    for piece in (*pieces, "▁", "▁dog", "▁runs", *"dogruns"):
        added = proto.pieces.add()
        added.piece, added.score = piece, -float(len(proto.pieces))
        added.type = 1 if piece not in pieces else 2 if "unk" in piece.lower() else 3
    (tmp_path / name).write_bytes(proto.SerializeToString())
    _, reader = load_encoder(str(tmp_path), dropout=0.0, max_tokens=30)
    ids, lengths = reader.encode(["dog runs"])
    inside = [reader.vocabulary[i] for i in ids[0, len(reader.prefix) : lengths[0] - len(reader.suffix)]]
    assert inside == ["▁dog", "▁runs"] and len(reader.prefix) == len(reader.suffix) == 1


def test_a_tokenizer_that_does_more_than_its_file_says_is_refused(tmp_path, monkeypatch):
    import transformers

    path = folder(tmp_path, "RobertaConfig", **SIZES)
    called = transformers.PreTrainedTokenizerBase.__call__
    adds = lambda self, texts: called(self, [f"w9 {text}" for text in texts])  # noqa: E731
    monkeypatch.setattr(transformers.PreTrainedTokenizerBase, "__call__", adds)
    with pytest.raises(UserError, match="does more than its tokenizer.json says"):
        load_encoder(path, dropout=0.0, max_tokens=60)


def test_what_a_kind_of_model_never_does_is_known_before_any_job(tmp_path):
    from model.settings import Text

    folder(tmp_path, "FNetConfig", **SIZES)
    (line,) = Text(pretrained=str(tmp_path)).missing()
    assert "padding is not masked" in line
    folder(tmp_path, "RobertaConfig", **SIZES)
    (tmp_path / "tokenizer.json").unlink(), (tmp_path / "vocab.json").write_text("{}")
    (line,) = Text(pretrained=str(tmp_path)).missing()
    assert "lacks merges.txt" in line


@pytest.mark.parametrize(
    "changes",
    [{"gradient_checkpointing": True}, {"chunk_size_feed_forward": 7}, {"attn_implementation": "flash_attention_2"}],
)
def test_how_an_encoder_was_run_elsewhere_is_no_matter(changes, tmp_path):
    path = folder(tmp_path, "RobertaConfig", **SIZES)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    encoder, reader = load_encoder(path, dropout=0.0, max_tokens=30)
    ids, lengths = (torch.from_numpy(part) for part in reader.encode(CAPTIONS))
    encoder.train()(ids, lengths).square().sum().backward()
    assert encoder.config.packed and encoder.model.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_a_configuration_that_does_not_say_of_what_is_no_bert(tmp_path):
    path = folder(tmp_path, "RobertaConfig", **SIZES)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("model_type")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="says no model_type, and that it is a RobertaModel"):
        load_encoder(path, dropout=0.0, max_tokens=30)


def test_an_encoder_that_cannot_be_run_in_bfloat16_says_so_at_once(tmp_path):
    from model.build import new_network
    from model.settings import Recipe

    sizes = SIZES | {"languages": ["en_XX"], "default_language": "en_XX"}
    recipe = {"model": {"kind": "vse_infinity", "embed_size": 8}, "training": {"precision": "bf16"}}
    recipe["text"] = {"pretrained": folder(tmp_path, "XmodConfig", **sizes), "max_tokens": 20}
    with pytest.raises(UserError, match="set training.precision: fp32"):
        new_network(Recipe(**recipe), [], img_dim=8)
    recipe["training"]["precision"] = "fp32"
    network, _ = new_network(Recipe(**recipe), [], img_dim=8)
    assert network.text.bert.config.packed
