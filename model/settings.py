"""The settings of a run: network, text encoder, recipe. The only place of their names, ranges and defaults.

Defaults are those of the paper for COCO regions. torch is not imported here: rules read these sections.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_serializer, model_validator

from core.console import UserError
from core.features import Feature, Visual
from core.hub import no_name
from core.kinds import wrong_file
from core.messages import did_you_mean
from core.section import FilePath, NameOrPath, Positive, Section, Seed, Share
from published.registry import PREFIX

#: The kinds of network: what `model.kind` calls each, and the file of its `RetrievalNetwork`.
KINDS = {
    "3shnet": "model/three_shnet.py",
    "vse_infinity": "model/vse_infinity.py",
    "scan": "model/scan.py",
}
DEFAULT_KIND = "3shnet"
_ROOT = Path(__file__).parents[1]

Even = Annotated[int, Field(ge=2, multiple_of=2)]


#: Published recipes of the kinds, where they differ from `Training`'s defaults, which are 3SHNet's. A configuration's own
#: keys go before. Sources: the authors' scripts and defaults (`lib/arguments.py` and `train_region.sh`; SCAN's `train.py`).
PUBLISHED = {
    "vse_infinity": {"batch_size": 128},
    "scan": {
        "batch_size": 128,
        "epochs": 30,
        "learning_rate": 2e-4,  # Flickr30K; COCO: 5e-4, 20 epochs, decay after 10
        "lr_decay_epochs": [15],
        "optimizer": "adam",
        "weight_decay": 0.0,
        "all_negatives_epochs": 0,
        "token_drop": 0.0,
        "word_augmentation": 0.0,
        "keep_last_batch": True,
    },
}
#: Of VSE-infinity by text encoder and visual tokens.
_VSE_BIGRU_REGIONS = {"weight_decay": 0.01}
_VSE_GRIDS = {"keep_last_batch": True, "token_drop_varies": True}


class Network(Section):
    """What networks of every kind have: an embedding."""

    kind: str = DEFAULT_KIND
    embed_size: Even = 1024  # of images and captions alike

    def missing(self) -> Iterator[str]:
        """What is wrong with the files that it names: key, value and fix."""
        yield from ()

    def numbers(self) -> dict[str, Any]:
        """The sizes of the image side that do not follow from the stores."""
        return self.model_dump(exclude={"kind", "options"})


class Model(Network):
    """What all but SCAN have besides: generalised pooling (of captions at least)."""

    pool_position_size: Even = 32  # of the encoding of ranks
    pool_hidden_size: Positive = 32  # of the GRU that weighs ranks


class ThreeSHNetModel(Model):
    """3SHNet: sizes of the image side, and how it reads class maps."""

    kind: Literal["3shnet"] = "3shnet"
    spatial_size: Positive = 128  # channels of the spatial branch
    dropout: Share = 0.1  # of the three concept embeddings
    seg_map_encoding: Literal["raw", "standardised"] = (
        "raw"  # class numbers themselves, or as an earlier loader of the authors
    )
    class_order: Literal["coco", "upsnet"] = (
        "coco"  # in which the map's classes are numbered when they are read as numbers
    )
    void_value: Annotated[int, Field(ge=0, le=255)] = 133  # read where a map has no class

    @model_serializer(mode="wrap")
    def _without_kind(self, dump: Any) -> dict[str, Any]:
        # Runs that were trained before there were other kinds are not out of date.
        return _without(dump(self), ("kind",))


class VSEInfinityModel(Model):
    """VSE-infinity, on regions or grids."""

    kind: Literal["vse_infinity"] = "vse_infinity"
    mlp: bool = True  # beside the projection; the authors' grid models, which train their CNN along, have none
    normalise_images: bool = True
    normalise_captions: bool = True


class ScanModel(Network):
    """SCAN: how the score of an image's regions and a caption's words is made. Names and defaults are its authors'.

    Published: Flickr30K and COCO t2i with LogSumExp (lambda_lse 6, lambda_softmax 9) or Mean (9), i2t with LogSumExp
    (lambda_lse 5 on Flickr30K, 20 on COCO, lambda_softmax 4) or Mean (4).
    """

    kind: Literal["scan"] = "scan"
    cross_attn: Literal["t2i", "i2t"] = "t2i"  # words attend to regions, or regions to words
    raw_feature_norm: Literal["clipped_l2norm", "l2norm", "softmax", "clipped", "no_norm"] = "clipped_l2norm"
    agg_func: Literal["LogSumExp", "Mean", "Max", "Sum"] = "LogSumExp"
    lambda_lse: Annotated[float, Field(gt=0)] = 6.0  # sharpness of LogSumExp
    lambda_softmax: Annotated[float, Field(gt=0)] = 9.0  # sharpness of the attention
    weight_norm: bool = False  # of the projection
    normalise_images: bool = True
    normalise_captions: bool = True


class OtherModel(Model):
    """A network of another kind: one of `KINDS` without settings of its own, or a file of yours.

    `options` are the fields of its `Sizes` that no key here is called like.
    """

    kind: str
    options: dict[str, bool | int | float | str] = {}

    def mistakes(self) -> Iterator[str]:
        if self.kind not in KINDS and not self.kind.endswith(".py"):
            hint = did_you_mean(self.kind, KINDS, f"choose one of {', '.join(KINDS)}.")
            yield f"kind: {self.kind!r} is no kind of network; {hint} (A file of your own ends in .py.)"

    def missing(self) -> Iterator[str]:
        if self.kind not in KINDS and self.kind.endswith(".py"):
            try:
                needs, known = kind_needs(self.kind), _size_fields(self.kind)
            except UserError as error:
                yield f"kind: {error}"
                return
            if known is not None:
                yield from self.option_faults(known, needs)

    def option_faults(self, known: Mapping[str, bool], needs: Sequence[str]) -> Iterator[str]:
        """Options that its network's `Sizes` does not have, or lacks.

        Args:
            known: the fields of `Sizes`, and whether each must be given. needs: what it reads of an image.
        """
        stores = ["img_dim", "num_categories"] if "panoptic" in needs else ["img_dim"]
        given = (*self.numbers(), *stores)
        for name in self.options:
            if name in given:
                where = "follows from the stores" if name in stores else "has a key of its own"
                yield f"options.{name}: {name} {where}; remove it from the options"
            elif name not in known:
                others = [key for key in known if key not in given]
                hint = did_you_mean(name, others, f"its options are: {', '.join(others) or 'none'}")
                yield f"options.{name}: no size of the network in {self.kind}; {hint}"
        for name, needed in known.items():
            if needed and name not in given and name not in self.options:
                yield f"options.{name}: missing; the Sizes in {self.kind} give it no default"


def _network_kind(section: Any) -> str:
    kind = section.get("kind", DEFAULT_KIND) if isinstance(section, dict) else getattr(section, "kind", DEFAULT_KIND)
    return kind if isinstance(kind, str) and kind in KINDS else "other"


AnyModel = Annotated[
    Annotated[ThreeSHNetModel, Tag("3shnet")]
    | Annotated[VSEInfinityModel, Tag("vse_infinity")]
    | Annotated[ScanModel, Tag("scan")]
    | Annotated[OtherModel, Tag("other")],
    Discriminator(_network_kind),
]


class Text(Section):
    """The text encoder: a pretrained one, or (pretrained: null) a small BERT trained from scratch."""

    kind: Literal["bert"] = "bert"
    pretrained: NameOrPath | None = "bert-base-uncased"
    layers: Positive = 2
    hidden_size: Positive = 128
    heads: Positive = 2
    intermediate_size: Positive = 512
    vocabulary_size: Annotated[int, Field(ge=100)] = 8000
    min_frequency: Positive = 2  # rarer words are spelt
    dropout: Share = 0.1
    max_tokens: Annotated[int, Field(ge=3, le=512)] = 128

    def mistakes(self) -> Iterator[str]:
        if self.pretrained is None and self.hidden_size % self.heads:
            yield f"hidden_size: {self.hidden_size} is not a multiple of heads ({self.heads}); change one of them"

    def missing(self) -> Iterator[str]:
        """What is wrong with the folder that it names; names on a hub are looked up when they are fetched."""
        if self.pretrained is not None and os.path.isdir(self.pretrained):
            from model.encoder_folder import folder_faults

            yield from (f"pretrained: {line}" for line in folder_faults(Path(self.pretrained)))
        elif self.pretrained is not None:
            yield from no_name("pretrained", self.pretrained, "encoder, with its config.json and tokenizer")

    @model_serializer(mode="wrap")
    def _without_kind(self, dump: Any) -> dict[str, Any]:
        return _without(dump(self), ("kind",))


class WordText(Section):
    """A GRU over words, both ways, from random weights: what SCAN and the first VSE-infinity read captions with.

    `vocabulary` is a file of SCAN's format (`coco_precomp_vocab.json`); without one the words that the training captions
    have `min_count` times are taken.
    """

    pretrained: ClassVar[None] = None

    kind: Literal["bigru"] = "bigru"
    vocabulary: FilePath | None = None
    min_count: Positive = 4
    word_size: Positive = 300
    bidirectional: bool = True
    lowercase: Literal["text", "ascii"] = "text"  # ascii: A to Z alone, as SCAN did
    max_tokens: Annotated[int, Field(ge=3)] = 512

    def missing(self) -> Iterator[str]:
        if self.vocabulary is not None:
            wrong = list(wrong_file("vocabulary", self.vocabulary, "correct the path, or leave it out"))
            yield from wrong or _no_words(self.vocabulary)


def _no_words(path: str) -> Iterator[str]:
    from model.words import WordTokenizer

    try:
        WordTokenizer.from_file(path)
    except UserError as error:
        yield f"vocabulary: {error}"


def _kind(section: Any) -> str:
    return str(section.get("kind", "bert") if isinstance(section, dict) else getattr(section, "kind", "bert"))


AnyText = Annotated[Annotated[Text, Tag("bert")] | Annotated[WordText, Tag("bigru")], Discriminator(_kind)]


class Training(Section):
    """The recipe: it travels whole to `model.training.loop.train`."""

    #: What may change between two starts of one training: its result stays.
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"preload", "preload_gib", "workers", "save_every", "compile"})

    #: Not said where they have these values: runs that were trained before there were these keys are not out of date.
    FORMER: ClassVar[dict[str, Any]] = {"optimizer": "adamw", "keep_last_batch": False, "token_drop_varies": False}

    epochs: Positive = 25
    batch_size: Annotated[int, Field(ge=2)] = 256  # of all processes; batch statistics and negatives need two pairs
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    text_lr_factor: Annotated[float, Field(gt=0)] = 0.1  # of the rate, for what a text encoder was published with
    lr_decay_epochs: list[Positive] = [15]  # at the start of each, from 0, the rate is multiplied by
    lr_decay_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 0  # linear, from zero
    optimizer: Literal["adamw", "adam"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    gradient_clip: Annotated[float, Field(ge=0)] = 2.0  # largest norm of the gradient; 0: none
    margin: Annotated[float, Field(gt=0)] = 0.2  # of similarity; VSE++
    all_negatives_epochs: Annotated[int, Field(ge=0)] = (
        1  # so many first epochs; then the hardest negatives alone count
    )
    mask_same_image: bool = False  # in the reference captions of one image are each other's negatives
    token_drop: Share = 0.2  # of visual tokens, anew for each batch
    # As VSE-infinity drops grid cells: of an image that draws u from [0, 1) the share token_drop * u; below 0.2 none.
    token_drop_varies: bool = False
    word_augmentation: Share = 0.2  # of words that are masked, replaced or left out
    keep_last_batch: bool = False  # of an epoch, which has fewer pairs
    captions_per_image: Positive = 5  # the first so many; a few COCO images have more
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast
    preload: bool | Literal["auto"] = "auto"  # features in memory; auto: if they take at most
    preload_gib: Annotated[float, Field(gt=0)] = 2.0
    workers: Annotated[int, Field(ge=0)] = 2  # threads that prepare batches
    validate_every: Positive = 1  # epochs, and after the last
    save_every: Positive = 200  # steps between saved states; one is also saved after each epoch
    compile: bool = False  # torch.compile for the layers of the text encoder

    def validates_after(self, epoch: int) -> bool:
        """Whether the validation split is scored after this epoch (from 1)."""
        return epoch % self.validate_every == 0 or epoch == self.epochs

    def mistakes(self) -> Iterator[str]:
        ascending = sorted(set(self.lr_decay_epochs))
        if self.lr_decay_epochs != ascending:
            yield f"lr_decay_epochs: {self.lr_decay_epochs} must ascend without repeats; write {ascending}"


class Recipe(Section):
    """All that decides about a run besides its data: what `python -m model.train --settings` takes."""

    train_split: str = "train"
    val_split: str | None = "val"  # its rSum picks the weights that are kept; null: the last
    val_images: Positive | None = None  # the first so many of that split; the authors take 1,000
    seed: Seed | None = None
    model: AnyModel = ThreeSHNetModel()
    text: AnyText = Text()
    training: Training = Training()

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, given: Any) -> Any:
        """What a configuration does not say of a kind other than 3SHNet is as that kind was published."""
        return _with_published(given) if isinstance(given, dict) else given

    @model_serializer(mode="wrap")
    def _as_ever(self, dump: Any) -> dict[str, Any]:
        # Runs that were trained before there were these keys are not out of date.
        found = _without(dump(self), (key for key in _LATER_KEYS if getattr(self, key, None) is None))
        if self.model.kind == DEFAULT_KIND and "training" in found:
            same = (key for key, value in Training.FORMER.items() if getattr(self.training, key) == value)
            found["training"] = _without(found["training"], same)
        return found

    def mistakes(self) -> Iterator[str]:
        for key in ("model", "text", "training"):
            yield from (f"{key}.{line}" for line in getattr(self, key).mistakes())

    def missing(self) -> Iterator[str]:
        """What is wrong with the files that it names: key, value and fix."""
        for key in ("model", "text"):
            yield from (f"{key}.{line}" for line in getattr(self, key).missing())


class Run(Recipe):
    """One model: which dataset, which visual tokens, and how it is trained.

    With a `checkpoint` of authors it is not trained: `model.kind` says whose it is, `vocabulary` is the file of its words or
    word pieces, and `dataset` is one whose features are like those it was trained on, as far as is known. Other keys of `model`
    and `text` count where the file does not say them, and are a mistake where it says something else.
    """

    dataset: str
    visual: Visual
    checkpoint: FilePath | None = None
    vocabulary: FilePath | None = None

    def mistakes(self) -> Iterator[str]:
        yield from super().mistakes()
        if self.vocabulary is not None and self.checkpoint is None:
            yield "vocabulary: is that of a checkpoint; of a run that is trained write text.vocabulary"
        if self.checkpoint is not None and self.model.kind not in KINDS:
            yield f"checkpoint: of model.kind {self.model.kind!r} none is read; choose one of {', '.join(KINDS)}"

    def missing(self) -> Iterator[str]:
        for key in ("checkpoint", "vocabulary"):
            file = getattr(self, key)
            if file is not None and not file.startswith(PREFIX):
                yield from wrong_file(key, file)
        if self.checkpoint is None:
            yield from super().missing()

    def idle(self) -> list[str]:
        """Keys that somebody wrote beside a checkpoint, and that only a training reads."""
        if self.checkpoint is None:
            return []
        own = {"train_split", "val_split", "val_images", "seed", "training"}
        parts = {"model": {"dropout"}, "text": {"pretrained", "dropout", "min_frequency", "min_count"}}
        found = sorted(self.model_fields_set & own)
        return found + [
            f"{part}.{key}"
            for part, keys in parts.items()
            for key in sorted(getattr(self, part).model_fields_set & keys)
        ]

    def features(self) -> tuple[Feature, ...]:
        """What its network takes of an image; where that cannot be said, the visual tokens at least."""
        try:
            needs = kind_needs(self.model.kind)
        except UserError:
            needs = ("visual",)
        return tuple(self.visual if need == "visual" else need for need in needs)


_LATER_KEYS = ("val_images", "checkpoint", "vocabulary")


def _without(values: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    left_out = set(keys)
    return {key: value for key, value in values.items() if key not in left_out}


def _with_published(given: dict[str, Any]) -> dict[str, Any]:
    kind, text = _network_kind(given.get("model", {})), given.get("text", {})
    checkpoint = given.get("checkpoint") is not None
    if kind == DEFAULT_KIND and checkpoint and isinstance(given.get("model", {}), dict):
        return given | {"model": {"class_order": "upsnet"} | given.get("model", {})}  # as its authors number classes
    if kind not in PUBLISHED:
        return given
    if kind == "scan":
        if "text" not in given:
            text = {"kind": "bigru"}
        if isinstance(text, dict) and text.get("kind") == "bigru":
            text = {"lowercase": "ascii"} | text
    recipe = dict(PUBLISHED[kind])
    if kind == "vse_infinity":
        grids, words = given.get("visual") == "grids", _kind(text) == "bigru"
        recipe |= (_VSE_GRIDS if grids else {}) | (_VSE_BIGRU_REGIONS if words and not grids else {})
    training = given.get("training", {})
    whole = {"training": recipe | training} if isinstance(training, dict) and not checkpoint else {}
    return given | ({"text": text} if text else {}) | whole


def kind_file(kind: str) -> Path:
    """The file of a kind of network: one of ours, or `kind` itself."""
    return _ROOT / KINDS[kind] if kind in KINDS else Path(kind)


def own_file(kind: str) -> str | None:
    """The file of a kind that is the user's own: an input of the jobs that use it. None for ours."""
    return None if kind in KINDS else kind


def kind_needs(kind: str) -> tuple[str, ...]:
    """What networks of a kind read of an image, as their class says: ("visual",) or ("visual", "panoptic").

    The file is read, not run: this imports nothing.

    Raises:
        UserError: there is no such file, or its text does not say so.
    """
    path, network = _class_of(kind)
    needs = _said(network, "needs")
    if needs not in (("visual",), ("visual", "panoptic")):
        raise UserError(
            f"{os.fspath(path)!r}: {network.name} must say what it reads of an image, written out in its body: "
            'needs = ("visual",) or needs = ("visual", "panoptic")'
        )
    return needs


def scores_pairs(kind: str) -> bool:
    """Whether networks of a kind score pairs of sets, as SCAN does, instead of comparing two vectors. Raises as above."""
    return _said(_class_of(kind)[1], "scores") == "pairs"


def _size_fields(kind: str) -> dict[str, bool] | None:
    """The fields of a kind's `Sizes`, and whether each must be given; None where the file itself does not write them out."""
    tree = ast.parse(kind_file(kind).read_bytes())
    sizes = next((node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "Sizes"), None)
    if sizes is None or sizes.bases:
        return None
    fields = (node for node in sizes.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name))
    return {node.target.id: node.value is None for node in fields if "ClassVar" not in ast.unparse(node.annotation)}


def _class_of(kind: str) -> tuple[Path, ast.ClassDef]:
    path = kind_file(kind)
    try:
        tree = ast.parse(path.read_bytes())
    except OSError as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(f"file {os.fspath(path)!r} {why}; correct the path") from error
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{os.fspath(path)!r} is not Python: {error}") from error
    networks = [node for node in tree.body if isinstance(node, ast.ClassDef) and _is_network(node)]
    if len(networks) != 1:
        found = ", ".join(node.name for node in networks) or "none"
        raise UserError(f"{os.fspath(path)!r} must define one subclass of RetrievalNetwork; it defines {found}")
    return path, networks[0]


def _said(network: ast.ClassDef, name: str) -> Any:
    """What a class's body assigns to a name, None if nothing."""
    return next((_literal(node) for node in network.body if _assigns(node, name)), None)


def _is_network(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).split(".")[-1] == "RetrievalNetwork" for base in node.bases)


def _assigns(node: ast.stmt, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _literal(node: ast.Assign | ast.AnnAssign) -> Any:
    try:
        return ast.literal_eval(node.value)
    except (ValueError, TypeError):
        return None
