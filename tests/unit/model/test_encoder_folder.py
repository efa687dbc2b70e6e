"""What a published encoder's folder says is honoured; what it leaves out follows from its vocabulary or is refused."""

import json

import pytest

from core.console import UserError
from model.encoder_folder import doubts, encoder_files, folder_faults, tokenizer_settings
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
        (None, {"normalizer": {"type": "Lowercase"}}, "changes text by Lowercase"),
        (None, {"normalizer": {"type": "BertNormalizer", "clean_text": False}}, "or does not clean it"),
        (None, {"model": {"vocab": {"[PAD]": 0, "dog": 1}}}, "has other pieces than vocab.txt"),
        (None, {"added_tokens": [{"content": "[MASK]"}, {"content": "<new>"}]}, "added tokens such as '<new>'"),
        ({"added_tokens_decoder": {"9": {"content": "<new>"}}}, None, "added tokens such as '<new>'"),
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

    from model.bert import load_pretrained
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
    assert load_pretrained(str(tmp_path))[1:] == (tmp_path / "vocab.txt", lowercase)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match="git-lfs pointer"):
        load_encoder(str(tmp_path), dropout=0.1, max_tokens=20)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("special_tokens_map.json", '{"cls_token": {"content": "<s>"}}', "cls_token is '<s>', not .CLS."),
        ("special_tokens_map.json", '{"cls_token": "[CLS]", "cls_token": "<s>"}', "the key 'cls_token' stands twice"),
        ("added_tokens.json", '{"<new>": 9}', "added tokens such as '<new>'"),
        (
            "tokenizer_config.json",
            '{"do_lower_case": true, "do_lower_case": false}',
            "the key 'do_lower_case' stands twice",
        ),
        ("tokenizer_config.json", None, "cannot be read .No such file"),
    ],
)
def test_every_file_that_says_something_of_the_tokenizer_is_read(tmp_path, name, content, message):
    folder(tmp_path, LOWER)
    (tmp_path / name).symlink_to(tmp_path / "nowhere") if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        tokenizer_settings(tmp_path)


def test_the_most_tokens_and_contradictions(tmp_path):
    assert tokenizer_settings(folder(tmp_path, LOWER, {"model_max_length": 77})).max_tokens == 77
    assert tokenizer_settings(folder(tmp_path, LOWER, {"model_max_length": 1e30})).max_tokens is None
    assert list(doubts(tmp_path)) == []
    (note,) = doubts(folder(tmp_path, CASED, {"do_lower_case": True}))
    assert "so that 3 pieces of its vocabulary such as 'A' are never used" in note
    twice, capitals = doubts(folder(tmp_path, [*LOWER, "dog"], {"do_lower_case": False}))
    assert "has pieces twice" in twice and "words with capitals are unknown" in capitals


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (["a"], "lacks [PAD], [UNK], [CLS], [SEP], [MASK]"),
        (["a", *SPECIAL_TOKENS], "has [PAD] at line 2, not in the first"),
        ([*SPECIAL_TOKENS, *"abcdef"], "has 11 pieces, more than the 9 of config.json"),
        (["\ufeff[PAD]", *SPECIAL_TOKENS[1:], "a"], None),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_known_before_any_job(tmp_path, vocabulary, message):
    (tmp_path / "config.json").write_text('{"vocab_size": 9}')
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    lines = list(folder_faults(tmp_path))
    assert lines == [] if message is None else message in lines[0]


def test_what_decides_about_an_encoder(tmp_path):
    names = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "spm.model",
        "vocab.txt",
    ]
    for name in [*names, "README.md", "onnx.bin", "training_args.json"]:
        (tmp_path / name).touch()
    assert encoder_files(tmp_path) == [str(tmp_path / name) for name in names]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def test_all_parts_of_the_weights_are_looked_at(tmp_path):
    folder(tmp_path, LOWER)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "config.json").write_text('{"vocab_size": 1000}')
    index, parts = tmp_path / "model.safetensors.index.json", [f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)]
    index.write_text(json.dumps({"weight_map": dict(zip("abcd", (*parts, parts[0]), strict=True))}))
    whole = (2).to_bytes(8, "little") + b"{}"
    for part, content in zip(parts, (whole, POINTER, whole[:-1]), strict=True):
        (tmp_path / part).write_bytes(content)
    pointer, cut = folder_faults(tmp_path)
    assert f"{parts[1]} is a git-lfs pointer" in pointer and f"{parts[2]} is cut off" in cut
    (tmp_path / parts[1]).unlink(), (tmp_path / parts[2]).write_bytes(whole)
    assert [*folder_faults(tmp_path)] == [
        f"{tmp_path} lacks {parts[1]}, which {index.name} names; copy it again from where it is published"
    ]
    for content, message in (
        ("{}", "names no parts of weights"),
        ("{", "not valid JSON"),
        ('{"weight_map": {"a": 1}}', "names no parts"),
    ):
        index.write_text(content)
        (line,) = folder_faults(tmp_path)
        assert message in line


@pytest.mark.parametrize("name", ["merges.txt", "vocab.json", "sentencepiece.bpe.model", "tokenizer.json"])
def test_no_file_of_another_tokenizer_may_be_a_pointer(tmp_path, name):
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / "spiece.model").write_bytes(b"x")
    assert not list(folder_faults(tmp_path))
    (tmp_path / name).write_bytes(POINTER)
    (line,) = folder_faults(tmp_path)
    assert f"{name} is a git-lfs pointer" in line


@pytest.mark.parametrize(
    ("name", "key"),
    [("tokenizer_config.json", "added_tokens_decoder"), *(("tokenizer.json", key) for key in ("model", "normalizer", "pre_tokenizer", "added_tokens"))],
)  # fmt: skip
def test_other_kinds_of_values_than_the_library_writes(tmp_path, name, key):
    folder(tmp_path, LOWER)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    for value in (1, "x", True, {"a": 1} if key == "added_tokens" else [1]):
        (tmp_path / name).write_text(json.dumps({key: value}))
        (line,) = folder_faults(tmp_path)
        assert f"{name}: {key} is a {type(value).__name__}, not a " in line
