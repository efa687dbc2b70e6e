"""What a published encoder's folder says is honoured; what it leaves out follows from its vocabulary or is refused."""

import json

import pytest

from core.console import UserError
from model.encoder_folder import folder_faults, tokenizer_settings
from model.tokenizer import CaptionTokenizer
from model.vocabulary import SPECIAL_TOKENS, read_vocabulary

LOWER, CASED, ACCENTS = ["a", "dog"], ["a", "A", "dog", "Dog", "Grün"], ["a", "grün", "##é"]


def folder(path, pieces, config=None, library=None):
    (path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "[unused1]", *pieces]) + "\n", encoding="utf-8")
    for name, content in (("tokenizer_config.json", config), ("tokenizer.json", library)):
        if content is not None:
            (path / name).write_text(json.dumps(content))
    return path


def library(**normalizer):
    return {"normalizer": {"type": "BertNormalizer", **normalizer}, "model": {"type": "WordPiece"}}


@pytest.mark.parametrize(
    ("pieces", "config", "library", "expected"),
    [
        (LOWER, None, None, (True, None, True)),
        (CASED, None, None, (False, None, True)),
        (ACCENTS, None, None, (True, False, True)),
        (["a", "が\ufe0f"[:1], "🙂\ufe0f"], None, None, (True, False, True)),
        (CASED, {}, None, (False, None, True)),
        (CASED, {"do_lower_case": True}, None, (True, None, True)),
        (LOWER, {"do_lower_case": False}, None, (False, None, True)),
        (LOWER, {"do_lower_case": True, "strip_accents": False}, None, (True, False, True)),
        (LOWER, {"do_lower_case": False, "strip_accents": True}, None, (False, True, True)),
        (LOWER, {"do_lower_case": True, "strip_accents": True}, None, (True, None, True)),
        (LOWER, {"tokenize_chinese_chars": False}, None, (True, None, False)),
        (LOWER, None, library(lowercase=False, strip_accents=None, handle_chinese_chars=True), (False, None, True)),
        (CASED, {"cls_token": "[CLS]"}, library(lowercase=True, strip_accents=False, handle_chinese_chars=False), (True, False, False)),
        (CASED, {"do_lower_case": False, "tokenizer_class": "BertTokenizer", "unk_token": {"content": "[UNK]"}}, None, (False, None, True)),
    ],
)  # fmt: skip
def test_settings(tmp_path, pieces, config, library, expected):
    found = tokenizer_settings(folder(tmp_path, pieces, config, library))
    assert (found.lowercase, found.strip_accents, found.split_chinese) == expected


def test_settings_act():
    def pieces(text, **options):
        tokenizer = CaptionTokenizer([*SPECIAL_TOKENS, "grün", "grun", "Grün", "漢字", "漢", "字"], **options)
        return [tokenizer.vocabulary[i] for i in tokenizer.encode([text])[0][0][1:-1]]

    assert pieces("Grün") == ["grun"]
    assert pieces("Grün", strip_accents=False) == ["grün"]
    assert pieces("Grün", lowercase=False) == ["Grün"]
    assert pieces("漢字") == ["漢", "字"] and pieces("漢字", split_chinese=False) == ["漢字"]
    assert CaptionTokenizer([*SPECIAL_TOKENS]).unusual == {}
    assert CaptionTokenizer([*SPECIAL_TOKENS], strip_accents=False).unusual == {"strip_accents": False}


@pytest.mark.parametrize(
    ("config", "library", "message"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, None, "tokenizer_class is 'BertJapaneseTokenizer'"),
        ({"do_basic_tokenize": False}, None, "do_basic_tokenize is false"),
        ({"cls_token": "<s>"}, None, "cls_token is '<s>', not .CLS."),
        ({"do_lower_case": "yes"}, None, "do_lower_case is 'yes', not true or false"),
        (None, {"model": {"type": "BPE"}}, "has a BPE model"),
        (None, {"pre_tokenizer": {"type": "ByteLevel"}}, "splits words by ByteLevel"),
    ],
)
def test_what_this_tokenizer_does_not_do_is_refused(tmp_path, config, library, message):
    with pytest.raises(UserError, match=message):
        tokenizer_settings(folder(tmp_path, LOWER, config, library))


def test_a_vocabulary_that_tells_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="no letters of either case; add the file"):
        tokenizer_settings(folder(tmp_path, ["漢", "字", "1"]))


def test_faults_of_a_folder_are_lines(tmp_path):
    assert list(folder_faults(tmp_path)) == [
        f"{tmp_path} lacks config.json",
        f"{tmp_path} lacks vocab.txt",
        f"{tmp_path} lacks model.safetensors (or pytorch_model.bin)",
    ]
    folder(tmp_path, LOWER)
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    for content, message in (
        ("{", "not valid JSON"),
        ("[]", "holds no object"),
        ('{"vocab_size": 9, "vocab_size": 10}', "the key 'vocab_size' stands twice"),
        ('{"is_decoder": true}', "has is_decoder"),
        ('{"position_embedding_type": "relative_key"}', "is a 'bert' model with relative_key positions"),
    ):
        (tmp_path / "config.json").write_text(content)
        (line,) = folder_faults(tmp_path)
        assert message in line


def test_a_vocabulary_with_windows_line_ends(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\r\n".join([*SPECIAL_TOKENS, "a"]).encode() + b"\r\n")
    assert read_vocabulary(tmp_path / "vocab.txt") == [*SPECIAL_TOKENS, "a"]


@pytest.mark.parametrize(("pieces", "lowercase"), [(LOWER, True), (CASED, False)])
def test_a_bert_is_loaded_with_what_its_folder_says(tmp_path, pieces, lowercase):
    from safetensors.torch import save_file

    from model.pretrained import load_encoder
    from model.small_encoder import SmallConfig, SmallEncoder

    folder(tmp_path, pieces)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    sizes |= {"vocab_size": 20, "max_position_embeddings": 9}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"} | sizes))
    save_file(SmallEncoder(SmallConfig(20, 8, 1, 2, 8, 9)).state_dict(), tmp_path / "model.safetensors")
    bert, tokenizer = load_encoder(str(tmp_path), dropout=0.1, max_tokens=20)
    assert bert.config.library["num_hidden_layers"] == 1 and tokenizer.max_tokens == 9
    assert tokenizer.lowercase is lowercase and tokenizer.vocabulary[-len(pieces) :] == pieces
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match="git-lfs pointer"):
        load_encoder(str(tmp_path), dropout=0.1, max_tokens=20)
