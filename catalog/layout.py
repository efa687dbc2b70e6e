"""Names in the layout of SCAN, VSE-infinity and 3SHNet. Cheap to import: the workflow asks at every start."""

from __future__ import annotations

from pathlib import Path

# Of each array of a store, the NAME of `{split}_NAME.npy`.
VISUAL_FILES = {"features": "ims"}
PANOPTIC_FILES = {"seg_maps": "seg_maps", "category_onehots": "cat_onehots", "seg_features": "segmentations"}
BOXES_FILE = "boxes"
CAPTIONS_PER_IMAGE = 5
# Of an HDF5 file NAME.h5 whose rows are images, NAME + one of these says whose, where the file itself does not.
H5_IDS = ("_imgid2idx.pkl", "_imgid2idx.json", "_ids.json", "_ids.txt")


def layout_files(feature: str) -> dict[str, str]:
    """Array name -> NAME of the files that a feature is read from."""
    return PANOPTIC_FILES if feature == "panoptic" else VISUAL_FILES


def array_path(folder: str | Path, prefix: str, name: str) -> Path:
    """`{folder}/{prefix}_{name}.npy`."""
    return Path(folder) / f"{prefix}_{name}.npy"
