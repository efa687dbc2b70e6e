"""What published weights there are: names, addresses, licences, digests where their publishers give them.

Sources: detectron2's MODEL_ZOO.md and detectron2/model_zoo/model_zoo.py (which state that a file's name ends in the first
digits of its md5), the READMEs of grid-feats-vqa, bottom-up-attention.pytorch, py-bottom-up-attention and UPSNet, and
google-bert/bert-base-uncased on the Hugging Face hub. What a publisher does not state is None. There is no entry for
grid-feats-vqa's `R-50-updn`: its configuration was published, its weights were not (`bua-d2-frcn-r50` follows it).
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from core.console import UserError

PREFIX = "published:"  # marks a registry name where a configuration expects a path
KINDS = {
    "detector": "detector",
    "backbone": "backbone",
    "text": "text encoder",
    "checkpoint": "retrieval model",
    "names": "names of classes",
}  # in words


@dataclass(frozen=True)
class File:
    """One file of an entry.

    Args:
        name: as published. address: None where only a share page for people is offered.
        size: bytes. sha256, md5_prefix: hex digits as published. None where not known.
    """

    name: str
    address: str | None
    size: int | None = None
    sha256: str | None = None
    md5_prefix: str | None = None


@dataclass(frozen=True)
class Entry:
    """Weights under one name.

    Args:
        name: in the registry. files: of a detector or backbone one, of a text encoder and of names those of its folder.
        kind: "detector", "backbone" (ImageNet, to train a detector from), "text", "names" of a detector's classes, or "checkpoint" of a retrieval
            model. what: in words.
        licence: as stated where the weights are published. page: where that is.
        architecture: the key of `extractors.networks.architectures.ARCHITECTURES` that a detector fits, or the CNN in a
            retrieval model's checkpoint; None for the others.
        reads: the visual tokens that a retrieval model was trained on: of one with an `architecture`, the cells of its own CNN.
        note: what whoever fetches it is told.
    """

    name: str
    kind: Literal["detector", "backbone", "text", "names", "checkpoint"]
    what: str
    licence: str
    page: str
    files: tuple[File, ...]
    architecture: str | None = None
    note: str = ""
    reads: Literal["regions", "grids"] | None = None

    @property
    def in_folder(self) -> bool:
        """Whether its folder stands for it, not its one file."""
        return self.kind in ("text", "names")

    def path(self, folder: str | os.PathLike[str]) -> str:
        """Where it is kept: the folder, or the one file."""
        own = os.path.join(folder, self.name)
        return own if self.in_folder else os.path.join(own, self.files[0].name)

    def file_path(self, file: File, folder: str | os.PathLike[str]) -> Path:
        """Where one of its files is kept."""
        return Path(folder, self.name, file.name)

    def address(self, file: File, mirror: str | None) -> str | None:
        """Where a file is fetched from: its own address, or the same path below `mirror`.

        A mirror keeps files without an address of their own as `NAME/FILE`.
        """
        if mirror is None:
            return file.address
        path = urlsplit(file.address).path.lstrip("/") if file.address else f"{self.name}/{file.name}"
        return f"{mirror.rstrip('/')}/{path}"

    @property
    def size(self) -> int | None:
        """Bytes of all files, None where not known."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(sizes)


_ZOO = "https://dl.fbaipublicfiles.com/detectron2/"
_ZOO_PAGE = "https://github.com/facebookresearch/detectron2/blob/main/MODEL_ZOO.md"
_ZOO_LICENCE = "CC-BY-SA-3.0"
_GRID_PAGE = "https://github.com/facebookresearch/grid-feats-vqa"
_MILVLG_PAGE = "https://github.com/MILVLG/bottom-up-attention.pytorch#pre-trained-models"
_AIRSPLAY_PAGE = "https://github.com/airsplay/py-bottom-up-attention"
# Of the repositories; none of the three says anything else of its weights.
_REPOSITORY_LICENCE = "Apache-2.0"
_UPSNET_PAGE = "https://github.com/uber-research/UPSNet"
# Of the repository and, as it says nothing else of them, of the weights.
_UPSNET_LICENCE = "Uber Non-Commercial"
_BERT_PAGE = "https://huggingface.co/google-bert/bert-base-uncased"
_BERT = f"{_BERT_PAGE}/resolve/86b5e0934494bd15c9632b12f734a8a67f723594/"


def _zoo(config: str, suffix: str, what: str, architecture: str) -> Entry:
    """A model of detectron2's zoo; `suffix` is model id and file, whose name ends in the first digits of the md5."""
    file = suffix.rpartition("/")[2]
    prefix = re.search(r"_([0-9a-f]{6})\.pkl$", file)[1]
    return Entry(
        name=config.rpartition("/")[2],
        kind="detector",
        what=what,
        licence=_ZOO_LICENCE,
        page=_ZOO_PAGE,
        files=(File(file, f"{_ZOO}{config}/{suffix}", md5_prefix=prefix),),
        architecture=architecture,
    )


def _grid(model: str, file: str, what: str, architecture: str) -> Entry:
    address = f"https://dl.fbaipublicfiles.com/grid-feats-vqa/{model}/{file}"
    files = (File(file, address),)
    return Entry(f"grid-feats-vqa-{model}", "detector", what, _REPOSITORY_LICENCE, _GRID_PAGE, files, architecture)


# At its last commit; none of its files is larger than names need.
_MILVLG_FILES = "https://raw.githubusercontent.com/MILVLG/bottom-up-attention.pytorch/4dbce869ad17117ca9f1df55bc5604cdbcd47f59/evaluation/"


def _milvlg(name: str, what: str, architecture: str) -> Entry:
    files = (File(f"{name}.pth", None),)
    return Entry(name, "detector", what, _REPOSITORY_LICENCE, _MILVLG_PAGE, files, architecture)


def _airsplay(name: str, what: str, architecture: str) -> Entry:
    files = (File(f"{name}.pkl", f"http://nlp.cs.unc.edu/models/{name}.pkl"),)
    return Entry(name, "detector", what, _REPOSITORY_LICENCE, _AIRSPLAY_PAGE, files, architecture)


def _upsnet(name: str, what: str, architecture: str) -> Entry:
    # The address that its repository gives leads nowhere any more.
    files = (File(f"{name}.pth", None),)
    note = "its licence allows non-commercial use only"
    return Entry(name, "detector", what, _UPSNET_LICENCE, _UPSNET_PAGE, files, architecture, note)


def _backbone(name: str, path: str, what: str) -> Entry:
    files = (File(path.rpartition("/")[2], f"{_ZOO}ImageNetPretrained/{path}"),)
    return Entry(name, "backbone", what, _ZOO_LICENCE, _ZOO_PAGE, files)


_VSE_PAGE = "https://huggingface.co/cccjc/vse-infty"
_3SHNET_PAGE = "https://drive.google.com/drive/folders/1lU3I7J8XIquCtQ2lIML9w_9tDdRZWXm4"


def _vse_infinity(data: str, look: str, text: str) -> Entry:
    # Its READMEs name the page and the folders; where in them the file lies we could not look up.
    files = (File("model_best.pth", None),)
    name, what = f"vse-infinity-{data}_{look}_{text.lower()}", f"VSE-infinity, {data}, {look}, {text}"
    cnn = {"butd_grid": "vse_grid_detector", "wsl_grid": "vse_grid_wsl"}.get(look)
    return Entry(name, "checkpoint", what, "MIT", _VSE_PAGE, files, cnn, reads="grids" if cnn else "regions")


def _3shnet(level: Literal["region", "grid"]) -> Entry:
    files = (File("model_best.pth", None),)
    name, what = f"3shnet-{level}", f"3SHNet, {level}"
    return Entry(name, "checkpoint", what, "not stated", _3SHNET_PAGE, files, reads=f"{level}s")


ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        # Visual Genome: bottom-up attention.
        _milvlg("bua-caffe-frcn-r101-k36", "Visual Genome regions, R-101-C4, Caffe's 36-box model", "vg_r101_c4_caffe_milvlg"),
        _milvlg("bua-caffe-frcn-r101-k10-100", "Visual Genome regions, R-101-C4, Caffe's 10-100-box model", "vg_r101_c4_caffe_milvlg"),
        _milvlg("bua-d2-frcn-r50", "Visual Genome regions, R-50-C4, trained with detectron2", "vg_r50_c4_d2"),
        _milvlg("bua-d2-frcn-r101", "Visual Genome regions, R-101-C4, trained with detectron2", "vg_r101_c4_d2"),
        _airsplay("faster_rcnn_from_caffe", "Visual Genome regions, R-101-C4, Caffe's 36-box model, no attributes", "vg_r101_c4_caffe"),
        _airsplay("faster_rcnn_from_caffe_attr", "Visual Genome regions, R-101-C4, Caffe's 36-box model", "vg_r101_c4_caffe_attr"),
        _airsplay("faster_rcnn_from_caffe_attr_original", "Visual Genome regions, R-101-C4, Caffe's 10-100-box model", "vg_r101_c4_caffe_attr"),
        # Visual Genome: grid features.
        _grid("R-50", "R-50.pth", "Visual Genome grid features, R-50", "grid_r50"),
        _grid("X-101", "X-101.pth", "Visual Genome grid features, X-101-32x8d", "grid_x101"),
        _grid("X-152", "X-152.pth", "Visual Genome grid features, X-152-32x8d", "grid_x152"),
        _grid("X-152pp", "X-152pp.pth", "Visual Genome grid features, X-152-32x8d of the 2020 VQA challenge", "grid_x152_challenge"),
        # COCO.
        _zoo("COCO-Detection/faster_rcnn_R_50_C4_3x", "137849393/model_final_f97cb7.pkl", "COCO Faster R-CNN, R-50-C4", "faster_rcnn_r50_c4"),
        _zoo("COCO-Detection/faster_rcnn_R_101_C4_3x", "138204752/model_final_298dad.pkl", "COCO Faster R-CNN, R-101-C4", "faster_rcnn_r101_c4"),
        _zoo("COCO-Detection/faster_rcnn_R_50_FPN_3x", "137849458/model_final_280758.pkl", "COCO Faster R-CNN, R-50-FPN", "faster_rcnn_r50_fpn"),
        _zoo("COCO-Detection/faster_rcnn_R_101_FPN_3x", "137851257/model_final_f6e8b1.pkl", "COCO Faster R-CNN, R-101-FPN", "faster_rcnn_r101_fpn"),
        _zoo("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x", "139173657/model_final_68b088.pkl", "COCO Faster R-CNN, X-101-FPN", "faster_rcnn_x101_fpn"),
        _zoo("COCO-PanopticSegmentation/panoptic_fpn_R_50_3x", "139514569/model_final_c10459.pkl", "COCO Panoptic FPN, R-50", "panoptic_fpn_r50"),
        _zoo("COCO-PanopticSegmentation/panoptic_fpn_R_101_3x", "139514519/model_final_cafdb1.pkl", "COCO Panoptic FPN, R-101", "panoptic_fpn_r101"),
        _zoo("Misc/panoptic_fpn_R_101_dconv_cascade_gn_3x", "139797668/model_final_be35db.pkl", "COCO Panoptic FPN, R-101, deformable, cascade", "panoptic_fpn_r101_dconv_cascade"),
        _upsnet("upsnet_resnet_50_coco_90000", "COCO UPSNet, R-50", "upsnet_r50"),
        _upsnet("upsnet_resnet_101_dcn_coco_270000", "COCO UPSNet, R-101, deformable", "upsnet_r101_dcn"),
        # ImageNet.
        _backbone("MSRA-R-50", "MSRA/R-50.pkl", "ImageNet ResNet-50, stride in 1x1"),
        _backbone("MSRA-R-101", "MSRA/R-101.pkl", "ImageNet ResNet-101, stride in 1x1"),
        _backbone("FAIR-X-101-32x8d", "FAIR/X-101-32x8d.pkl", "ImageNet ResNeXt-101 32x8d"),
        Entry(
            "visual-genome-names", "names", "Visual Genome's 1,600 objects and 400 attributes", _REPOSITORY_LICENCE, _MILVLG_PAGE,
            (
                File("objects_vocab.txt", f"{_MILVLG_FILES}objects_vocab.txt", 14381, "fe6070ce5b5406de3755f24afcc41251b77203674e1e9753244d40f75e53dace"),
                File("attributes_vocab.txt", f"{_MILVLG_FILES}attributes_vocab.txt", 3494, "4d64f448c402d986e8671f328d092185ca2e559fb391ef86369f478ac1d90f20"),
            ),
        ),
        # Retrieval models; SCAN's authors published none.
        _3shnet("region"),
        _3shnet("grid"),
        *(_vse_infinity(data, look, "BERT") for data in ("coco", "f30k") for look in ("butd_region", "butd_grid", "wsl_grid")),
        *(_vse_infinity(data, look, "BiGRU") for data in ("coco", "f30k") for look in ("butd_region", "butd_grid")),
        # Text.
        Entry(
            "bert-base-uncased", "text", "BERT, 12 layers, 768 wide, lower-cased English", "Apache-2.0", _BERT_PAGE,
            (
                File("config.json", f"{_BERT}config.json", 570, "7160e1553ad2ca51d8c1cb066be533db31826e12d173824c1bb0cb1a4f187d20"),
                File("vocab.txt", f"{_BERT}vocab.txt", 231508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
                File("model.safetensors", f"{_BERT}model.safetensors", 440449768, "68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3"),
            ),
        ),
    )
}  # fmt: skip


def suggestion(name: str, known: Iterable[str] = ENTRIES) -> str:
    """What to do about a name that is not in the registry."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else "`python -m published list` shows all"


def lookup(name: str) -> Entry:
    """The entry called `name`. UserError if there is none."""
    if name not in ENTRIES:
        raise UserError(f"{name!r} is no published weights; {suggestion(name)}")
    return ENTRIES[name]


def named_entry(value: str | None) -> Entry | None:
    """The entry that a configuration's `published:NAME` or `published:NAME/FILE` names; None for any other value, and where there
    is none."""
    name = (value or "").removeprefix(PREFIX)
    return ENTRIES.get(name.partition("/")[0]) if name != value else None


def resolve(value: str, folder: str, files: Mapping[str, str]) -> str:
    """The path that a configuration's `published:NAME`, or `published:NAME/FILE` of a folder, stands for; any other value stays.

    Args:
        folder: of downloads. files: local paths by name, which replace downloads.
    """
    if not value.startswith(PREFIX):
        return value
    name, _, file = value.removeprefix(PREFIX).partition("/")
    own = files[name] if name in files else lookup(name).path(folder)
    return os.path.join(own, file) if file else own


def entry_at(path: str | None, folder: str) -> Entry | None:
    """The entry whose download, or a file of it, `path` is; None for any other path."""
    for entry in ENTRIES.values():
        if path in (entry.path(folder), *(str(entry.file_path(file, folder)) for file in entry.files)):
            return entry
    return None


def by_hand(entry: Entry, file: File, folder: str | os.PathLike[str]) -> str:
    """What to do about a file that its publisher offers on a share page only."""
    return (
        f"{entry.name} is published on a share page only, without an address to fetch it from; download it by hand "
        f"({entry.page}) and put it at {entry.file_path(file, folder)}, or name your copy: published.files.{entry.name} "
        "in the configuration" + (f" ({entry.note})" if entry.note else "")
    )
