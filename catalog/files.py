"""The image files of a folder, found without opening any. Cheap to import: the workflow asks at every start."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

from core.console import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def is_archive(path: str) -> bool:
    """Whether images are packed in a zip file."""
    return path.lower().endswith(".zip")


def _scan(folder: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[os.DirEntry[str]]:
    """Entries of image files; linked folders are entered as well, unless they lead back up."""
    try:
        status, entries = os.stat(folder), os.scandir(folder)
    except OSError as error:
        raise UserError(f"image folder {folder!r} cannot be read ({error.strerror}); see to its permissions") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with entries:
        for entry in entries:
            # Hidden files are no photographs: macOS puts a `._photo.jpg` beside every `photo.jpg` on foreign disks.
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _scan(entry.path, (*above, here))
            elif entry.name.lower().endswith(SUFFIXES) and (entry.is_file() or entry.is_symlink()):
                yield entry


def image_files(folder: str) -> list[str]:
    """Paths of the images in `folder` and below, sorted; hidden files and folders are left out."""
    return sorted((entry.path for entry in _scan(folder)), key=lambda path: path.split(os.sep))


def folder_state(folder: str) -> str:
    """Digest of the images' names, sizes and modification times: changes when an image is added, replaced or removed.

    A folder's own modification time says nothing of its subfolders and of replaced files, and changes with every file
    that is no image.
    """
    states = []
    for entry in _scan(folder):
        try:
            status = entry.stat()
            facts = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:  # a link to nowhere is an unreadable image, as the index will say
            facts = "none"
        states.append(f"{entry.path}\0{facts}\n".encode("utf-8", "surrogateescape"))
    digest = hashlib.sha256()
    for state in sorted(states):
        digest.update(state)
    return digest.hexdigest()
