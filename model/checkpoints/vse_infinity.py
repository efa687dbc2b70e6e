"""Checkpoints of VSE-infinity's authors (woodfrog/vse_infty): on regions or grids, with BERT or words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.checkpoints import read_checkpoint, split_cnn
from model.checkpoints.heads import SWITCHES, family
from model.checkpoints.reading import loaded, options_of, pool_sizes, read_text, renamed, sizes_told, wrong_family
from model.vse_infinity import VSEInfinity

# Prefixes of the authors' image encoder -> ours. Source: their `lib/encoders.py`.
IMAGE_PREFIXES = {"fc": "projection", "mlp": "mlp", "gpool.gru": "pool.gru", "gpool.linear": "pool.score"}


def load_vse_infinity(
    path: str | Path,
    vocabulary: str | Path | None = None,
    *,
    heads: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> VSEInfinity:
    """Load a checkpoint of VSE-infinity's authors, without running anything that is in it.

    Of a grid checkpoint this is the head, which takes the (up to) 256 cells of the file's own CNN as visual tokens.

    Args:
        path: a `model_best.pth` of theirs. vocabulary: of its words (`*_precomp_vocab.json`), to be checked against it.
        heads: attention heads of its BERT; they leave no trace in the weights, so by default 64 features each.
        options: in place of the file's own: no_imgnorm, no_txtnorm.

    Returns:
        The network in eval mode on the CPU. Sizes are read from the weights, `no_imgnorm` and `no_txtnorm` from the options.

    Raises:
        UserError: not such a file, a vocabulary that does not fit, or keys that are missing, unexpected or of unexpected
            shape: all of them are listed.
    """
    image_state, text_state, own = read_checkpoint(path, "VSE-infinity's authors")
    given = options_of(own, options, tuple(SWITCHES))
    if (found := family(image_state)) != "vse_infinity":
        raise wrong_family(path, "vse_infinity", found)
    _, head, problems = split_cnn(image_state)
    image, unknown = renamed({key.removeprefix("image_encoder."): v for key, v in head.items()}, IMAGE_PREFIXES)
    problems += [f"image encoder: unexpected {key}" for key in unknown]
    with sizes_told(path, problems):
        embed_size, img_dim = image["projection.weight"].shape
        image_sizes = {
            "img_dim": img_dim,
            "embed_size": embed_size,
            **pool_sizes(image),
            "mlp": any(key.startswith("mlp.") for key in image),
            "normalise_images": not given.get("no_imgnorm", False),
        }
        normalise = not given.get("no_txtnorm", False)
        text_sizes, text, unknown = read_text(text_state, pooled=True, normalise=normalise, heads=heads)
        problems += [f"text encoder: unexpected {key}" for key in unknown]
    return loaded(
        "vse_infinity",
        (image_sizes, image),
        (text_sizes, text),
        path=path,
        problems=problems,
        vocabulary=vocabulary,
        masked=True,
    )
