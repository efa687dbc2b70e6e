"""The image files of a folder, found without opening any. Cheap to import: the workflow asks at every start."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator

from core.console import UserError
from core.files import digest_file

# Of photographs and pictures in any format that Pillow reads without help.
SUFFIXES = (
    *(
        ".apng",
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".j2c",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpc",
        ".jpe",
        ".jpeg",
        ".jpf",
        ".jpg",
    ),
    *(".jpx", ".mpo", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp"),
)


_READ_WHOLE = 1 << 26  # bytes of a folder
_NAMED = 5  # files of a kind that are left out


def is_archive(path: str) -> bool:
    """Whether images are packed in a zip file."""
    return path.lower().endswith(".zip")


def files_below(folder: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[os.DirEntry[str]]:
    """Entries of files that are not hidden, in a folder and below; linked folders are entered as well, unless they lead back up."""
    try:
        status, entries = os.stat(folder), os.scandir(folder)
    except OSError as error:
        raise UserError(f"folder {folder!r} cannot be read ({error.strerror}); see to its permissions") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with entries:
        for entry in entries:
            # Hidden files are no photographs: macOS puts a `._photo.jpg` beside every `photo.jpg` on foreign disks.
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from files_below(entry.path, (*above, here))
            elif entry.is_file() or entry.is_symlink():
                yield entry


def is_image(name: str) -> bool:
    """Whether a file's name is one of an image."""
    return name.lower().endswith(SUFFIXES)


def sort_files(folder: str) -> tuple[list[str], list[str]]:
    """Paths of the images in `folder` and below, and those of the other files, each sorted; hidden ones are left out."""
    images: list[str] = []
    others: list[str] = []
    for entry in files_below(folder):
        (images if is_image(entry.name) else others).append(entry.path)
    return tuple(sorted(paths, key=lambda path: path.split(os.sep)) for paths in (images, others))


def image_files(folder: str) -> list[str]:
    """Paths of the images in `folder` and below, sorted; hidden files and folders are left out."""
    return sort_files(folder)[0]


def left_out(others: Iterable[str], before: str = "") -> str:
    """`3 files left out, no images by their suffix: 2 .heic (a.heic, b.heic), 1 .svg (c.svg)`, or nothing where there are none."""
    kinds: dict[str, list[str]] = {}
    for path in others:
        kinds.setdefault(os.path.splitext(path)[1].lower() or "without suffix", []).append(path)
    if not kinds:
        return ""
    shown = ", ".join(
        f"{len(names)} {kind} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
        for kind, names in sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    )
    return f"{before}{sum(map(len, kinds.values()))} files left out, no images by their suffix: {shown}"


def folder_state(folder: str) -> str:
    """Digest of the images' names and of what they hold (see `files_state`): changes when an image is added, replaced or removed.

    A folder's own modification time says nothing of its subfolders and of replaced files, and changes with every file
    that is no image.
    """
    return files_state(entry.path for entry in files_below(folder) if is_image(entry.name))


def files_state(paths: Iterable[str]) -> str:
    """Digest of files' paths and contents; where they are many bytes, of their sizes and modification times in place of contents."""
    found: list[tuple[str, os.stat_result | None]] = []
    for path in sorted(paths):
        try:
            found.append((path, os.stat(path)))
        except OSError:  # a link to nowhere is an unreadable file, as its reader will say
            found.append((path, None))
    # Contents decide, but the workflow asks at every start: reading so much takes a moment.
    small = sum(status.st_size for _, status in found if status) <= _READ_WHOLE
    digest = hashlib.sha256()
    for path, status in found:
        facts = f"{status.st_size}\0{status.st_mtime_ns}" if status else "none"
        if small and status:
            facts = _content(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        digest.update(f"{path}\0{facts}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


@functools.lru_cache(maxsize=100_000)
def _content(path: str, size: int, time: int, changed: int, inode: int) -> str:
    try:
        return digest_file(path)
    except OSError:
        return "none"
