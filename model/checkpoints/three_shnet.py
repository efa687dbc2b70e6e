"""Checkpoints published by the authors of 3SHNet (XuriGe1995/3SHNet)."""

from __future__ import annotations

from pathlib import Path

from catalog.categories import NUM_CATEGORIES, UPSNET_TO_COCO
from core.console import UserError
from model.checkpoints.heads import family
from model.checkpoints.reading import (
    loaded,
    pool_sizes,
    read_states,
    read_text,
    renamed,
    sizes_told,
    wrong_family,
)
from model.highlighting import CLASS_ORDERS, SEG_MAP_ENCODINGS
from model.settings import ThreeSHNetModel
from model.three_shnet import ThreeSHNet

# Prefixes of the authors' image encoder -> ours. Sources: their `lib/encoders_rgn_seg_sp_se.py`,
# `lib/Crossmodal_Fusion4_sm.py`, `lib/Crossmodal_Fusion4_sp.py` and `lib/modules/aggr/gpo.py`.
IMAGE_PREFIXES = {
    "fc": "token_projection",
    "mlp": "token_mlp",
    "embed_category.0": "category_embedding.linear",
    "embed_category.3": "category_embedding.norm",
    "embed_seg_C.1": "segment_embedding.linear",
    "embed_seg_C.4": "segment_embedding.norm",
    "seg_mlp": "segment_mlp",
    "crossmodalfusion_sm.MLP_image": "semantic.token_mlp",
    "crossmodalfusion_sm.embed_seg_HW.2": "semantic.query_embedding.linear",
    "crossmodalfusion_sm.embed_seg_HW.5": "semantic.query_embedding.norm",
    "crossmodalfusion_sm.MLP_seg": "semantic.query_mlp",
    "crossmodalfusion_sm.fc_scale": "semantic.scale",
    "crossmodalfusion_sm.fc_1": "semantic.output",
    "crossmodalfusion_sp.MLP_image": "spatial.token_mlp",
    "crossmodalfusion_sp.embedding_Seg.0": "spatial.map_conv",
    "crossmodalfusion_sp.embedding_Seg.1": "spatial.map_norm",
    "crossmodalfusion_sp.embed_fusion": "spatial.fusion_mlp",
    "fusion_mlp": "fusion_mlp",
    "gpool.gru": "pool.gru",
    "gpool.linear": "pool.score",
}
# Linear layers whose columns are categories.
CATEGORY_LAYERS = (
    "category_embedding.linear.weight",
    "segment_embedding.linear.weight",
    "semantic.query_embedding.linear.weight",
)


def load_reference(
    path: str | Path,
    class_order: str = "upsnet",
    seg_map_encoding: str = "raw",
    *,
    heads: int | None = None,
    void_value: int | None = None,
) -> ThreeSHNet:
    """Load a checkpoint published by the authors of 3SHNet, without running anything that is in it.

    Args:
        path: a `.pth` of theirs: a dict whose `model` holds the image and the text encoder's state.
        class_order: numbering of the 133 categories it was trained with. "upsnet" (stuff first): the weights of
            the category layers are permuted and the spatial branch renumbers the class map, so that the network takes
            inputs in our stores' COCO order. "coco": taken as they are.
        seg_map_encoding: "raw" or "standardised", what its spatial branch was trained to read.
        heads: attention heads of its BERT; they leave no trace in the weights, so by default 64 features each.
        void_value: what it reads where a map has no class; see `model.settings.ThreeSHNetModel`.

    Returns:
        The network in eval mode on the CPU. All sizes are read from the weights.

    Raises:
        UserError: not such a file, or keys that are missing, unexpected or of unexpected shape: all of them are listed.
    """
    for name, value, known in (
        ("class_order", class_order, CLASS_ORDERS),
        ("seg_map_encoding", seg_map_encoding, SEG_MAP_ENCODINGS),
    ):
        if value not in known:
            raise UserError(f"{name} is {value!r}; choose one of {', '.join(known)}")
    image_state, text_state = read_states(path, "3SHNet's authors")
    if (found := family(image_state)) in ("vse_infinity", "scan"):
        raise wrong_family(path, "3shnet", found)
    image, unknown_image = renamed(image_state, IMAGE_PREFIXES)
    problems = [f"image encoder: unexpected {key}" for key in unknown_image]
    with sizes_told(path, problems):
        categories = image["category_embedding.linear.weight"].shape[1]
        embed_size, img_dim = image["token_projection.weight"].shape
        image_sizes = ThreeSHNetModel().numbers() | {
            "img_dim": img_dim,
            "embed_size": embed_size,
            "spatial_size": image["spatial.map_conv.weight"].shape[0],
            "num_categories": categories,
            **pool_sizes(image),
            "seg_map_encoding": seg_map_encoding,
            "class_order": class_order,
            **({} if void_value is None else {"void_value": void_value}),
        }
        text_sizes, text, unknown_text = read_text(text_state, pooled=True, normalise=True, heads=heads)
        problems += [f"text encoder: unexpected {key}" for key in unknown_text]
    if class_order == "upsnet":
        if categories != NUM_CATEGORIES:
            raise UserError(
                f"{path} has {categories} categories; the UPSNet order is of {NUM_CATEGORIES}: pass class_order='coco'"
            )
        for key in CATEGORY_LAYERS:
            permuted = image[key].clone()
            permuted[:, list(UPSNET_TO_COCO)] = image[key]
            image[key] = permuted
    return loaded("3shnet", (image_sizes, image), (text_sizes, text), path=path, problems=problems)
