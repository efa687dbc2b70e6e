"""Zarr v3 feature stores: plan, write shards, seal, read."""

from __future__ import annotations

from typing import Any

__all__ = ["Store", "open_store"]


def __getattr__(name: str) -> Any:
    # Lazy: `import stores.plan` in a Snakefile must not pay for numpy and the codecs.
    if name in __all__:
        from stores import reader

        return getattr(reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
