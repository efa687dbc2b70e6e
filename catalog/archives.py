"""Images packed in a zip file, unpacked with suspicion: the archive may come from anywhere."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from catalog.files import SUFFIXES, is_hidden, is_image, left_out
from catalog.index import listing
from core.console import UserError, progress
from core.encodings import python_name, readings
from core.kinds import other_kind

# Photographs hardly get smaller in a zip; a thousandfold is an attack. What is small anyway may be anything.
_MAX_RATIO = 50
_ALWAYS_ALLOWED = 100 << 20
_MAX_NAME_BYTES = 255
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_DEFLATE64 = 9
_MAX_PATH_BYTES = 1024
_OF_PCS = (
    "cp850",
    "cp1252",
    "latin1",
    "cp1250",
    "cp1254",
    "iso-8859-2",
    "macintosh",
)  # names of which cp437 makes as much


def lies_hidden(member: str) -> bool:
    """Whether a file of an archive, by its path there, is none of its content: hidden, or added by a system (`__MACOSX`)."""
    return any(is_hidden(part) for part in PurePosixPath(member).parts)


def _complaint(member: zipfile.ZipInfo) -> str | None:
    """Why a member must not be unpacked; None if it may."""
    # Older programs of Windows write `a\\b.jpg`, which means the same there.
    name = member.orig_filename.replace("\\", "/")
    parts = PurePosixPath(name).parts
    kind = stat.S_IFMT(member.external_attr >> 16)
    if name.startswith("/") or (len(name) > 1 and name[1] == ":"):
        return "absolute paths, or paths of another system"
    if ".." in parts:
        return "paths that lead out of the archive"
    if any(unicodedata.category(c) == "Cc" for c in name):
        return "names with control characters"
    if any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in parts) or len(os.fsencode(name)) > _MAX_PATH_BYTES:
        return "names that are too long"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "links or devices"
    if member.flag_bits & 1:
        return "encrypted files"
    return None


def _named(member: zipfile.ZipInfo, encoding: str | None) -> str:
    """A member's name. Many programs write UTF-8, or what their country uses, without saying so, which is then taken for the letters
    of old PCs. encoding: of names that are neither."""
    if member.flag_bits & 0x800 or member.filename.isascii():
        return member.filename
    for tried in ("utf-8", encoding or "utf-8"):
        with contextlib.suppress(UnicodeError):
            return member.filename.encode("cp437").decode(tried)
    return member.filename


def _encoding_of_names(members: Sequence[zipfile.ZipInfo]) -> tuple[str | None, str]:
    """What names that say no encoding are in, as far as they tell (None: the letters of old PCs, or none of them), and a note of it."""
    own = [member.filename for member in members if not member.flag_bits & 0x800 and not member.filename.isascii()]
    with contextlib.suppress(UnicodeError):
        raw = [name.encode("cp437") for name in own]
        names = b"\n".join(name for name in raw if not _is_utf8(name))
        at = next((k for k, byte in enumerate(names) if byte > 0x7F), None)
        likely = readings(names, at) if at is not None else []
        if likely and likely[0][0] not in _OF_PCS:
            (encoding, shown), *others = likely
            also = "".join(f"; in {name} it would be {text!r}" for name, text in others[:3])
            return python_name(encoding), f"names say no encoding and are taken for {encoding}, such as {shown!r}{also}"
    return None, ""


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _unreadable(member: zipfile.ZipInfo) -> str | None:
    """Why a member cannot be unpacked, as the archive's directory tells; None if it can."""
    if member.compress_type == _DEFLATE64:
        return "files compressed with Deflate64, as Windows Explorer does beyond 2 GB, which is not read (unpack the archive, or pack it anew)"
    if member.compress_type not in _METHODS:
        method = zipfile.compressor_names.get(member.compress_type, f"method {member.compress_type}")
        return f"files compressed with {method}, which is not read (unpack the archive, or pack it anew with Deflate)"
    return None


def _opened(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError) as error:
        what = other_kind(archive) or f"no zip file that can be read ({error}); copy it again"
        raise UserError(f"{archive} is {what}") from error


@contextlib.contextmanager
def as_if_unpacked(archive: Path) -> Iterator[Path]:
    """A folder with an empty file for each image of an archive, for who reads names alone.

    UserError: what `unpack_images` would refuse before it writes anything. What is said of the folder inside is said of the archive.
    """
    with _opened(archive) as opened:
        images = _harmless_images(archive, opened)[0]
    with tempfile.TemporaryDirectory() as folder:
        for member in images:
            path = Path(folder, *PurePosixPath(member.filename).parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        try:
            yield Path(folder)
        except UserError as error:
            raise UserError(str(error).replace(folder, str(archive))) from error


def _harmless_images(archive: Path, opened: zipfile.ZipFile) -> tuple[list[zipfile.ZipInfo], list[str], int, str]:
    """An archive's images, the names of other files, how many bytes the images are, and a note. UserError: it is refused."""
    problems: dict[str, list[str]] = {}
    images: list[zipfile.ZipInfo] = []
    seen: dict[str, str] = {}
    others: list[str] = []
    encoding, note = _encoding_of_names(opened.infolist())
    for member in opened.infolist():
        member.filename = _named(member, encoding).replace("\\", "/")
        if complaint := _complaint(member):
            problems.setdefault(complaint, []).append(member.orig_filename[:80])
            continue
        parts = PurePosixPath(member.filename).parts
        if member.is_dir() or lies_hidden(member.filename):
            continue
        if not is_image(member.filename):
            others.append(member.filename)
            continue
        if complaint := _unreadable(member):
            problems.setdefault(complaint, []).append(member.filename)
            continue
        same = unicodedata.normalize("NFC", "/".join(parts)).casefold()
        if same in seen:
            what = "names that differ in case or Unicode form only, or occur twice"
            problems.setdefault(what, []).append(f"{seen[same]} and {member.filename}")
        seen[same] = member.filename
        images.append(member)
    for same, name in seen.items():
        if any(str(above) in seen for above in PurePosixPath(same).parents):
            problems.setdefault("files in a folder that is called as a file", []).append(name)
    unpacked, packed = sum(member.file_size for member in images), os.path.getsize(archive)
    if unpacked > max(_ALWAYS_ALLOWED, _MAX_RATIO * packed):
        problems["contents out of proportion"] = [f"{unpacked:,} bytes in an archive of {packed:,}"]
    if problems:
        lines = "\n".join(f"  {listing(what, names)}" for what, names in problems.items())
        raise UserError(f"{archive} is refused, nothing was unpacked:\n{lines}")
    if not images:
        raise UserError(f"no images in {archive}; looked for {', '.join(SUFFIXES)}" + left_out(others, "; "))
    return images, others, unpacked, note


def unpack_images(archive: Path, output: Path) -> int:
    """Unpack the images of a zip file, and nothing else of it; returns how many there are.

    Hidden files, and what macOS adds (`__MACOSX`), are left out. Nothing is written unless all names are harmless; the folder
    appears when all of it is there.

    Args:
        archive: zip file. output: folder, replaced if it exists.

    Raises:
        UserError: no zip file; names that lead elsewhere, links, encrypted files, two names that are one on some systems,
            contents out of proportion, damaged members, no images; or no space.
    """
    with _opened(archive) as opened:
        images, others, unpacked, note = _harmless_images(archive, opened)
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = output.with_name(f".{output.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        free = shutil.disk_usage(output.parent).free
        if unpacked > free:
            raise UserError(
                f"{output} needs {unpacked:,} bytes, {free:,} are free; make room or set `results` elsewhere"
            )
        for member in progress(images, total=len(images), desc="unpack", unit="image"):
            target = temporary.joinpath(*PurePosixPath(member.filename).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with opened.open(member) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
            except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
                raise UserError(
                    f"{archive}: {member.filename!r} is damaged ({error}); copy the archive again"
                ) from error
    shutil.rmtree(output, ignore_errors=True)
    temporary.rename(output)
    if others:
        print(f"note: {left_out(others)}", flush=True)
    if note:
        print(f"note: {archive}: {note}", flush=True)
    return len(images)
