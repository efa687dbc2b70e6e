"""What a checkpoint of authors says of the network in it, from its head alone: without torch, before any job."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from core.checkpoint_head import Head, architecture_of, read_head

#: How families of checkpoints tell, in this order: a key's beginning in the image encoder's state, and whose it is.
FAMILIES = (
    ("crossmodalfusion_s", "3shnet"),
    ("backbone.", "vse_infinity"),
    ("image_encoder.", "vse_infinity"),
    ("gpool.", "vse_infinity"),
    ("fc.", "scan"),
)
AUTHORS = "3SHNet's, VSE-infinity's or SCAN's authors"
#: Options of SCAN that decide about the score and leave no trace in the weights.
SCORE = ("cross_attn", "raw_feature_norm", "agg_func", "lambda_lse", "lambda_softmax")
#: Options of SCAN and VSE-infinity that switch something off, and the setting of `model` that is true without them.
SWITCHES = {"no_imgnorm": "normalise_images", "no_txtnorm": "normalise_captions"}


@dataclass(frozen=True)
class Published:
    """A checkpoint's network.

    Attributes:
        kind: see `model.settings.KINDS`; None of none that is known. cells: the architecture of the CNN that it brings, whose cells it
            reads; "" without one.
        img_dim: width of a visual token; categories: of 3SHNet's panoptic input. None where the file does not tell.
        words: how many its text encoder knows, <mask> included, or word pieces. None without a text encoder.
        options: names of those in the file.
        says: settings of a run that the file decides, by key (`model.embed_size`), and their values in it.
    """

    kind: str | None
    cells: str = ""
    img_dim: int | None = None
    categories: int | None = None
    words: int | None = None
    options: frozenset[str] = frozenset()
    says: dict[str, Any] = field(default_factory=dict)

    @property
    def text_kind(self) -> str | None:
        """`text.kind` of its text encoder; None without one."""
        return self.says.get("text.kind")


def family(names: Iterable[str]) -> str | None:
    """The kind of network (see `model.settings.KINDS`) whose image encoder's state has these names; None if no kind's."""
    names = list(names)
    return next((kind for start, kind in FAMILIES if any(name.startswith(start) for name in names)), None)


def published(path: str | os.PathLike[str]) -> Published:
    """What a checkpoint says.

    Raises:
        UserError: it is no checkpoint, or holds more than plain data.
    """
    head = read_head(path, AUTHORS)
    image = {name.removeprefix("image_encoder."): shape for name, shape in head.image.items()}
    kind = family(head.image)
    weight = image.get("fc.weight", image.get("fc.weight_v", ()))
    return Published(
        kind,
        cells=_cnn(path, head),
        img_dim=weight[1] if len(weight) == 2 else None,
        categories=_side(image, "embed_category.0.weight", 1),
        words=_side(head.text, "embed.weight", 0) or _side(head.text, "bert.embeddings.word_embeddings.weight", 0),
        options=frozenset(head.options),
        says=dict(_said(kind, image, head)),
    )


def _cnn(path: str | os.PathLike[str], head: Head) -> str:
    if not any(name.startswith("backbone.") for name in head.image):
        return ""
    return architecture_of(path, head.image.get("backbone.base.4.0.conv2.weight"), head.options)


def _side(state: dict[str, tuple[int, ...]], name: str, axis: int) -> int | None:
    shape = state.get(name, ())
    return shape[axis] if len(shape) > axis else None


def _said(kind: str | None, image: dict[str, tuple[int, ...]], head: Head) -> Iterator[tuple[str, Any]]:
    """Settings and their values in the file; of a shape that is none nothing, as the file's reader tells it."""
    text = head.text
    sizes = {
        "model.embed_size": _side(image, "fc.bias", 0),
        "model.spatial_size": _side(image, "crossmodalfusion_sp.embedding_Seg.0.weight", 0),
        "model.pool_position_size": _side(image, "gpool.gru.weight_ih_l0", 1),
        "model.pool_hidden_size": _side(image, "gpool.gru.weight_hh_l0", 1),
    }
    if "embed.weight" in text:
        sizes["text.word_size"] = _side(text, "embed.weight", 1)
        yield from (("text.kind", "bigru"), ("text.bidirectional", "rnn.weight_hh_l0_reverse" in text))
    elif text:
        layers = {name.split(".")[3] for name in text if name.startswith("bert.encoder.layer.")}
        sizes |= {
            "text.hidden_size": _side(text, "bert.embeddings.LayerNorm.weight", 0),
            "text.intermediate_size": _side(text, "bert.encoder.layer.0.intermediate.dense.weight", 0),
            "text.layers": len(layers) or None,
            "text.vocabulary_size": _side(text, "bert.embeddings.word_embeddings.weight", 0),
        }
        yield "text.kind", "bert"
    yield from ((key, value) for key, value in sizes.items() if value is not None)
    if kind == "vse_infinity":
        yield "model.mlp", any(name.startswith("mlp.") for name in image)
    if kind == "scan":
        yield "model.weight_norm", "fc.weight_v" in image
        yield from ((f"model.{name}", head.options[name]) for name in SCORE if head.options.get(name) is not None)
    if kind in ("vse_infinity", "scan"):
        yield from (
            (f"model.{ours}", not head.options[off])
            for off, ours in SWITCHES.items()
            if head.options.get(off) is not None
        )
