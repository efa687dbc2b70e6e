"""The image files of a folder, found without opening any. Cheap to import: the workflow asks at every start."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator

from core.console import UserError
from core.files import digest_file
from core.remembered import remembered
from core.samples import marks

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


#: Folders that systems and network drives put among the user's own: small pictures of each photograph, what was thrown away.
_OF_SYSTEMS = {
    "@eadir", "__macosx", "#recycle", "@recycle", "$recycle.bin", "lost+found", "system volume information",
}  # fmt: skip


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's: macOS puts a `._photo.jpg` beside every `photo.jpg` on foreign disks."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


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
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from files_below(entry.path, (*above, here))
            elif entry.is_file() or entry.is_symlink():
                yield entry


def is_image(name: str) -> bool:
    """Whether a file's name is one of an image."""
    return name.lower().endswith(SUFFIXES)


def sort_files(folder: str) -> tuple[list[str], list[str]]:
    """Paths of the images in `folder` and below, and those of the other files, each sorted, folder by folder; hidden ones are left out."""
    images: list[str] = []
    others: list[str] = []
    for entry in files_below(folder):
        (images if is_image(entry.name) else others).append(entry.path)
    return tuple(sorted(paths, key=lambda path: path.replace(os.sep, "\0")) for paths in (images, others))


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


def folder_state(folder: str, *, images_only: bool = True) -> str:
    """Digest of files' names and contents: changes when one is added, replaced or removed; a touched or copied one does not count.

    Of many bytes samples are read, see `core.samples`. A folder's own time says nothing of its subfolders and of replaced files,
    and changes with every file that is no image.
    """
    found: list[tuple[str, str, os.stat_result | None]] = []
    start = len(os.path.join(folder, ""))
    for path in sorted(e.path for e in files_below(folder) if not images_only or is_image(e.name)):
        try:
            status = os.stat(path)
        except OSError:  # a link to nowhere is an unreadable file, as its reader will say
            status = None
        found.append((path[start:], path, status))
    name = f"{os.path.abspath(folder)} ({'images' if images_only else 'files'})"
    # Remembered as one: a note for each of many small files would take longer to read than they do.
    facts = _digest(
        (key, f"{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}" if s else "none") for key, _, s in found
    )
    # Contents decide, but the workflow asks at every start: reading so much takes a moment.
    if sum(status.st_size for _, _, status in found if status) <= _READ_WHOLE:
        return remembered(name, facts, lambda: _digest((key, _content(path)) for key, path, _ in found))

    def sampled() -> str:
        there = [(key, path, status) for key, path, status in found if status]
        known = dict(zip((key for key, _, _ in there), marks(name, there), strict=True))
        return _digest((key, known.get(key, "none")) for key, _, _ in found)

    return remembered(name, facts, sampled)


def _digest(known: Iterable[tuple[str, str]]) -> str:
    """Of paths and what is known of each."""
    digest = hashlib.sha256()
    for path, facts in known:
        digest.update(f"{path}\0{facts}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _content(path: str) -> str:
    try:
        return digest_file(path)
    except OSError:
        return "none"
