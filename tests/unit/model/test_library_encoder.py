"""Encoders of the transformers library: packed or not, each equals the library's own padded result; each tokenizer keeps words."""

from __future__ import annotations

import hashlib
import json
import sys
from fnmatch import fnmatch

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from core.console import UserError
from model.build import new_text_encoder
from model.library_tokenizer import LibraryTokenizer
from model.pretrained import load_encoder, provenance, resolve_pretrained
from model.runs import load_run, save_run
from model.settings import Model, Text
from model.text import encoder_of

CAPTIONS = ["a dog runs on the sand", "two red dogs", "a man. he runs", "<mask> naïve </s>", "", "dog"]


def word_pieces():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CAPTIONS, trainers.WordPieceTrainer(vocab_size=70, special_tokens=special))
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    return tokenizer, names


ROBERTA = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}


def byte_pairs():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=list(ROBERTA.values()), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer, ROBERTA


def unigram(splits=True):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    if splits:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    else:  # as tokenizers whose pieces may cross words are written
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", special_tokens=list(ROBERTA.values()))
    tokenizer.train_from_iterator([" ".join(CAPTIONS).replace("<mask>", ""), *CAPTIONS[:3]], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer, ROBERTA


def crossing():
    return unigram(splits=False)


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
ENDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
FAMILIES = {  # the library's configuration, its sizes, a tokenizer, whether it can be packed
    "bert": ("BertConfig", SIZES, byte_pairs, True),
    "roberta": ("RobertaConfig", SIZES | ENDS, byte_pairs, True),
    "xlm-roberta": ("XLMRobertaConfig", SIZES | ENDS, unigram, True),
    "mpnet": ("MPNetConfig", SIZES | ENDS, word_pieces, False),
    "distilbert": (
        "DistilBertConfig",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40},
        word_pieces,
        True,
    ),
    "modernbert": (
        "ModernBertConfig",
        SIZES | ENDS | {"local_attention": 6, "global_attn_every_n_layers": 2, "cls_token_id": 0, "sep_token_id": 2},
        byte_pairs,
        True,
    ),
    "electra": ("ElectraConfig", SIZES | {"embedding_size": 16}, word_pieces, True),
    "eurobert": ("EuroBertConfig", SIZES | ENDS | {"num_key_value_heads": 2, "mask_token_id": 4}, byte_pairs, True),
    "deberta-v2": (
        "DebertaV2Config",
        SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        crossing,
        False,
    ),
    "clip": (
        "CLIPConfig",
        {
            "text_config": {k: v for k, v in SIZES.items() if k != "max_position_embeddings"} | ENDS,
            "vision_config": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
            },
        },
        byte_pairs,
        False,
    ),
    "t5": ("T5Config", {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}, crossing, False),
}


def written(folder, kind, sizes, tokenizer):
    """A tiny published encoder; its model."""
    import transformers

    made, names = tokenizer()
    torch.manual_seed(0)
    of_text = sizes.get("text_config", sizes) | {"vocab_size": made.get_vocab_size()}
    config = getattr(transformers, kind)(**(sizes | {"text_config": of_text} if "text_config" in sizes else of_text))
    model = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(folder)
    made.enable_truncation(4)  # as some published files say, for their own use
    made.enable_padding()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    return model.encoder if hasattr(model, "decoder") else getattr(model, "text_model", model)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_equal_the_librarys_padded_ones(family, tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("a local folder touched the network"))
    kind, sizes, tokenizer, packed = FAMILIES[family]
    model = written(tmp_path, kind, sizes, tokenizer)
    encoder, reader = load_encoder(str(tmp_path), dropout=0.0, max_tokens=30)
    assert encoder.eval().config.packed == packed
    ids, lengths = (torch.from_numpy(part) for part in reader.encode(CAPTIONS))
    valid = torch.arange(ids.shape[1]) < lengths[:, None]
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=valid.long()).last_hidden_state
        found = encoder(ids, lengths)
        # Whatever stands behind a caption's end.
        found_again = encoder_of(json.loads(json.dumps(encoder.config.to_dict()))).eval()
        found_again.load_state_dict(encoder.state_dict())
        assert torch.equal(found_again(ids, lengths), found)
    assert (found - expected)[valid].abs().max() < 1e-5 and (found[~valid] == 0).all()
    kept = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    encoder.train()(ids, lengths).square().sum().backward()
    assert kept and all(parameter.grad is not None for parameter in kept)


@pytest.mark.parametrize("tokenizer", [word_pieces, byte_pairs, unigram, crossing])
def test_words_are_masked_replaced_and_left_out_whole(tokenizer):
    made, names = tokenizer()
    mask = made.token_to_id(names["mask_token"])
    reader = LibraryTokenizer(made, mask=mask, padding=made.token_to_id(names["pad_token"]), max_tokens=20)
    captions = ["two sandy  dogs", "dog runs", ""] * 400
    pieces = reader.split(captions)
    assert [len(set(pieces.words[slice(*pieces.offsets[i : i + 2])])) for i in range(3)] == [3, 2, 0]
    assert reader.words("two sandy  dogs") == ["two", "sandy", "dogs"]
    plain, plain_lengths = reader.batch(pieces, np.arange(3))
    whole = made.encode(captions[0])
    assert plain[0, : plain_lengths[0]].tolist() == whole.ids
    ids, lengths = reader.batch(pieces, np.arange(len(captions)), augmentation=0.5, generator=np.random.default_rng(0))
    special = [made.token_to_id(name) for key, name in names.items() if key not in ("mask_token", "unk_token")]
    own = {caption: pieces.of(i) for i, caption in enumerate(captions[:2])}
    masked = 0
    for row, length, caption in zip(ids, lengths, captions, strict=True):
        inside = row[len(reader.prefix) : length - len(reader.suffix)]
        assert row[: len(reader.prefix)].tolist() == reader.prefix
        assert not np.isin(inside, special).any() and (row[length:] == reader.padding).all()
        if caption and len(inside) == len(own[caption]):  # nothing left out: a word is masked whole or not at all
            words = pieces.words[: len(inside)] if caption == captions[0] else None
            for word in [] if words is None else np.unique(words):
                hidden = inside[words == word] == mask
                assert hidden.all() or not hidden.any()
                masked += hidden.all()
    assert masked > 20 and len({int(length) for length in lengths[::3]}) > 2


def test_names_of_special_tokens_are_text():
    made, names = byte_pairs()
    reader = LibraryTokenizer(made, mask=4, padding=1)
    ids, lengths = reader.encode(["<mask> </s>"])
    assert not np.isin(ids[0, 1 : lengths[0] - 1], [0, 1, 2, 3, 4]).any()
    with pytest.raises(UserError, match="word_augmentation: 0"):
        LibraryTokenizer(made, padding=1).batch(reader.split(["a"]), np.arange(1), augmentation=0.1)


def test_a_run_folder_keeps_encoder_and_tokenizer(tmp_path):
    from model.network import RetrievalNetwork
    from model.three_shnet import ThreeSHNet

    (tmp_path / "roberta").mkdir()
    written(tmp_path / "roberta", *FAMILIES["roberta"][:3])
    text, reader = new_text_encoder(
        Text(pretrained=str(tmp_path / "roberta"), max_tokens=8), Model(embed_size=16, pool_hidden_size=4), CAPTIONS
    )
    sizes = ThreeSHNet.Sizes(
        8,
        16,
        4,
        5,
        pool_position_size=4,
        pool_hidden_size=4,
        dropout=0.1,
        seg_map_encoding="raw",
        class_order="coco",
        void_value=5,
    )
    network: RetrievalNetwork = ThreeSHNet(ThreeSHNet.ImageEncoder(sizes), text).eval()
    save_run(tmp_path / "run", network, reader, config={"run": "run"})
    again, _, read = load_run(tmp_path / "run")
    assert read.max_tokens == 8 and read.vocabulary == reader.vocabulary
    ids, lengths = (torch.from_numpy(part) for part in read.encode(CAPTIONS))
    assert lengths.max() == 8 and torch.equal(torch.from_numpy(reader.encode(CAPTIONS)[0]), ids)
    with torch.no_grad():
        assert torch.equal(again.encode_captions(ids, lengths), network.encode_captions(ids, lengths))
    assert str(tmp_path) not in (tmp_path / "run/config.json").read_text()


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        ("FNetConfig", {k: v for k, v in SIZES.items() if k != "num_attention_heads"}, "padding is not masked"),
        (
            "ViTConfig",
            {k: v for k, v in SIZES.items() if k != "max_position_embeddings"},
            "'vit' model.*does not read text alone",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(kind, sizes, message, tmp_path):
    written(tmp_path, kind, sizes, word_pieces)
    with pytest.raises(UserError, match=message):
        load_encoder(str(tmp_path), dropout=0.0, max_tokens=20)


def test_faults_of_folders_are_named(tmp_path):
    written(tmp_path, *FAMILIES["roberta"][:3])
    config = json.loads((tmp_path / "config.json").read_text())

    def refused(message, **changes):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=message):
            load_encoder(str(tmp_path), dropout=0.0, max_tokens=20)

    refused("relative_key positions", position_embedding_type="relative_key")
    refused("has is_decoder", is_decoder=True)
    refused(r"do not fit its config.json: .* is missing", num_hidden_layers=3)
    refused("do not fit its config.json: .* has another shape", vocab_size=20)
    refused("cannot load .* as a text encoder", model_type="none-such")
    (tmp_path / "tokenizer.json").unlink()
    refused("lacks its tokenizer")


def test_without_the_library_the_small_encoder_works_and_others_say_what_they_need(tmp_path, monkeypatch):
    written(tmp_path, *FAMILIES["roberta"][:3])
    monkeypatch.setitem(sys.modules, "transformers", None)
    text, _ = new_text_encoder(Text(pretrained=None, hidden_size=8), Model(embed_size=16, pool_hidden_size=4), CAPTIONS)
    assert encoder_of(text.bert.config.to_dict()).state_dict().keys() == text.bert.state_dict().keys()
    with pytest.raises(UserError, match="needs the transformers library"):
        load_encoder(str(tmp_path), dropout=0.0, max_tokens=20)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_names_of_the_hub_are_fetched_once_at_their_revision(weights, tmp_path, monkeypatch):
    """A stand-in for the hub's client, with a cache of its own."""
    import huggingface_hub

    content = (2).to_bytes(8, "little") + b"{}"
    online, published = [], {"config.json": b"{}", "tokenizer.json": b"{}", weights: content, "README.md": b"text"}

    def client(name, *, revision, allow_patterns, local_files_only):
        folder = tmp_path / name / (revision or "0123abcd")
        if local_files_only and not folder.is_dir():
            raise FileNotFoundError(name)
        if not local_files_only:
            online.append(revision)
            folder.mkdir(parents=True, exist_ok=True)
            for file, content in published.items():
                if any(fnmatch(file, pattern) for pattern in allow_patterns):
                    (folder / file).write_bytes(content)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", client)
    assert resolve_pretrained("some/encoder@feed", weights=False).name == "feed"
    for _ in range(2):
        assert (resolve_pretrained("some/encoder@feed") / weights).is_file()
    found = provenance("some/encoder@feed")
    assert found["revision"] == "feed" and found["weights"] == {weights: hashlib.sha256(content).hexdigest()}
    assert set(online) == {"feed"} and len(online) == (2 if weights.endswith("safetensors") else 3)
    assert not (tmp_path / "some/encoder/feed/README.md").exists()
    assert provenance("some/encoder")["revision"] == "0123abcd"
