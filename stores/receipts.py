"""Receipts: what a shard job leaves beside the store when all its data is on disk, and what seal believes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core import layout
from core.files import digest_json, write_json
from stores.places import Location

RECEIPT_VERSION = 1


def write_receipt(
    path: str | Path,
    *,
    description: dict[str, Any],
    shard: int,
    rows: range,
    failures: list[dict[str, str]],
    seconds: dict[str, float],
    device: str,
    files: dict[str, str],
    taken_over: int = 0,
    notes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a shard's receipt, atomically, and return it.

    Args:
        description: `schema.describe_store`. rows: of the shard.
        failures: per bad image {image_id, path, error}, in row order.
        seconds: `total`, `startup` (imports, weights), `decode` (waiting for images), `network`, `write`.
        device: the network's, in words. files: sha256 of every shard file by its path relative to the store.
        taken_over: how many of the rows came from a former store; the images per second are of the others.
        notes: further entries, for people: nothing is decided by them.
    """
    busy = seconds["total"] - seconds["startup"]
    receipt = {
        "receipt_version": RECEIPT_VERSION,
        "fingerprint": digest_json(description),
        "feature": description["feature"],
        "shard": shard,
        "shards": description["plan"]["shards"],
        "rows": [rows.start, rows.stop],
        "images": len(rows),
        "taken_over": taken_over,
        "failures": failures,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "images_per_second": round((len(rows) - taken_over) / busy, 2) if busy > 0 else 0.0,
        "device": device,
        "files": files,
        "store": description,
        **(notes or {}),
    }
    write_json(path, receipt)
    return receipt


def read_receipt(path: str | Path) -> dict[str, Any]:
    """A receipt, checked for form. ValueError: what is wrong with it. FileNotFoundError: there is none."""
    try:
        receipt = json.loads(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"is not text ({error})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error})") from error
    version = receipt.get("receipt_version") if isinstance(receipt, dict) else None
    if version != RECEIPT_VERSION:
        raise ValueError(f"has receipt version {version}, this program reads {RECEIPT_VERSION}")
    keys = ("fingerprint", "shard", "rows", "failures", "files", "store")
    if missing := [key for key in keys if key not in receipt]:
        raise ValueError(f"lacks {', '.join(missing)}")
    if digest_json(receipt["store"]) != receipt["fingerprint"]:
        raise ValueError("was edited: its fingerprint is not that of what it describes")
    return receipt


def recorded_contents(store: Location, plan: Mapping[str, Any]) -> str:
    """Digest of all data that the receipts beside a store of this plan list; "" where they are not all there, as in a bucket."""
    try:
        receipts = [read_receipt(layout.receipt_of(store, shard)) for shard in range(plan["shards"])]
    except (OSError, ValueError, KeyError):
        return ""
    return digest_json([receipt["files"] for receipt in receipts])
