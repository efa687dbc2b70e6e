"""Defaults of a run's settings: the paper's recipe for COCO regions. The configuration's own model validates ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from console import UserError

MODEL: dict[str, Any] = {
    "embed_size": 1024,
    "spatial_size": 128,
    "pool_position_size": 32,
    "pool_hidden_size": 32,
    "dropout": 0.1,
    "seg_map_encoding": "raw",
    "class_order": "coco",
    "void_value": 133,
}

TEXT: dict[str, Any] = {
    "pretrained": "bert-base-uncased",
    # The next six describe an encoder trained from scratch (pretrained: null).
    "layers": 2,
    "hidden_size": 128,
    "heads": 2,
    "intermediate_size": 512,
    "vocabulary_size": 8000,
    "min_frequency": 2,
    "dropout": 0.1,
    "max_tokens": 128,
}

TRAINING: dict[str, Any] = {
    "epochs": 25,
    "batch_size": 256,
    "learning_rate": 5e-4,
    "text_lr_factor": 0.1,
    "lr_decay_epochs": [15],
    "lr_decay_factor": 0.1,
    "lr_warmup_steps": 0,
    "weight_decay": 1e-4,
    "gradient_clip": 2.0,
    "margin": 0.2,
    "all_negatives_epochs": 1,
    "mask_same_image": False,
    "token_drop": 0.2,
    "word_augmentation": 0.2,
    "captions_per_image": 5,
    "precision": "fp32",
    "preload": "auto",
    "preload_gib": 2.0,
    "workers": 2,
    "validate_every": 1,
    "save_every": 200,
    "compile": False,
}

SECTIONS = {"model": MODEL, "text": TEXT, "training": TRAINING}


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fill a run's settings with defaults.

    Args:
        settings: `{train_split, val_split, seed, model, text, training}`, any of them missing.

    Raises:
        UserError: unknown keys, all of them listed.
    """
    given = dict(settings)
    result: dict[str, Any] = {
        "train_split": given.pop("train_split", "train"),
        "val_split": given.pop("val_split", "val"),
        "seed": given.pop("seed", 0),
    }
    unknown = []
    for section, defaults in SECTIONS.items():
        values = dict(given.pop(section, {}))
        unknown += [f"{section}.{key}" for key in values if key not in defaults]
        result[section] = defaults | values
    unknown += list(given)
    if unknown:
        raise UserError(f"unknown training settings: {', '.join(sorted(unknown))}")
    return result
