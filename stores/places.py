"""Where a store's files lie: a folder, or a prefix in an S3 bucket. Both take a file whole or not at all.

Buckets are named `s3://BUCKET/PREFIX`. Endpoint, region and credentials come from where boto3 looks for them: the variables
AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3), AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, profiles in ~/.aws,
or the role of the machine.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from core.console import UserError
from core.files import atomic_path, digest_file, location

#: What `place_of` takes: a folder, or an address as text.
Location = str | os.PathLike[str]


class Place(Protocol):
    """Files by their key, a relative path with `/`."""

    def read(self, key: str) -> bytes:
        """All bytes of a file. FileNotFoundError if there is none."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Put a file in place; nobody ever sees half of it."""
        ...

    def remove(self, key: str) -> None:
        """Remove a file if there is one."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes of a file; None if there is none."""
        ...

    def digest(self, key: str) -> str | None:
        """sha256 of a file, read in blocks; None if there is none."""
        ...

    def keys(self) -> list[str]:
        """All files, sorted."""
        ...

    def folders(self) -> list[str]:
        """Names of the folders directly below, sorted; none where there is no such place."""
        ...

    def prune(self) -> None:
        """Remove empty folders, where a place has any."""
        ...


def place_of(store: Location) -> Place:
    """The place that a path or an `s3://` address names. UserError: another scheme, or the packages for S3 are missing."""
    place = location(os.fspath(store))
    return Folder(place) if isinstance(place, Path) else Bucket(place)


class Folder:
    """A folder of the file system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def read(self, key: str) -> bytes:
        return (self.path / key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        with atomic_path(self.path / key) as temporary:
            temporary.write_bytes(data)

    def remove(self, key: str) -> None:
        (self.path / key).unlink(missing_ok=True)

    def size(self, key: str) -> int | None:
        path = self.path / key
        return path.stat().st_size if path.is_file() else None

    def digest(self, key: str) -> str | None:
        path = self.path / key
        return digest_file(path) if path.is_file() else None

    def keys(self) -> list[str]:
        found = (path for path in self.path.rglob("*") if path.is_symlink() or not path.is_dir())
        return sorted(path.relative_to(self.path).as_posix() for path in found)

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir() if path.is_dir()) if self.path.is_dir() else []

    def prune(self) -> None:
        for path in sorted(self.path.rglob("*"), reverse=True):  # children before their folders
            if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
                path.rmdir()


class Bucket:
    """A prefix in an S3 bucket; picklable."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        if not self.url.startswith("s3://") or not self.url.removeprefix("s3://").strip("/"):
            raise UserError(f"{url}: stores lie in folders or in buckets named s3://BUCKET/PREFIX")

    def __str__(self) -> str:
        return self.url

    def read(self, key: str) -> bytes:
        with self._reached():
            return bytes(_client(self.url).get(key).bytes())

    def write(self, key: str, data: bytes) -> None:
        with self._reached(reading=False):
            _client(self.url).put(key, data)

    def remove(self, key: str) -> None:
        with self._reached(), contextlib.suppress(FileNotFoundError):
            _client(self.url).delete(key)

    def size(self, key: str) -> int | None:
        with self._reached(), contextlib.suppress(FileNotFoundError):
            return _client(self.url).head(key)["size"]
        return None

    def digest(self, key: str) -> str | None:
        with self._reached(), contextlib.suppress(FileNotFoundError):
            digest = hashlib.sha256()
            for block in _client(self.url).get(key).stream():
                digest.update(block)
            return digest.hexdigest()
        return None

    def keys(self) -> list[str]:
        with self._reached():
            return sorted(entry["path"] for page in _client(self.url).list() for entry in page)

    def folders(self) -> list[str]:
        with self._reached():
            return sorted(_client(self.url).list_with_delimiter()["common_prefixes"])

    def prune(self) -> None:
        pass

    def read_end(self, key: str, length: int) -> bytes:
        """The last `length` bytes of a file, or all if it has fewer."""
        with self._reached():
            return bytes(_client(self.url).get(key, options={"range": {"suffix": length}}).bytes())

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes at (offset, length), in one go; those beyond the end of the file are left out."""
        starts, lengths = [offset for offset, _ in ranges], [length for _, length in ranges]
        with self._reached():
            return [bytes(data) for data in _client(self.url).get_ranges(key, starts=starts, lengths=lengths)]

    def fetch(self, key: str, target: Path) -> None:
        """Copy a file to this machine, block by block. FileNotFoundError if there is none."""
        with self._reached():
            found = _client(self.url).get(key)
            with atomic_path(target) as temporary, open(temporary, "wb") as file:
                for block in found.stream():
                    file.write(block)

    def send(self, key: str, source: Path) -> None:
        """Copy a file of this machine into place."""
        with self._reached(reading=False):
            _client(self.url).put(key, source)

    def zarr_store(self) -> Any:
        """For zarr-python, to read from."""
        from zarr.storage import ObjectStore

        return ObjectStore(_client(self.url), read_only=True)

    @contextlib.contextmanager
    def _reached(self, reading: bool = True) -> Iterator[None]:
        _client(self.url)  # its errors say more
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            if reading and isinstance(error, FileNotFoundError):
                raise
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{self.url} cannot be reached: {reason}; check the bucket's name, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and "
                "the credentials"
            ) from error


@functools.lru_cache(maxsize=64)
def _client(url: str) -> Any:
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
        from obstore.store import S3Store
    except ImportError as error:
        raise UserError(f"{url}: S3 needs more packages ({error.name}): pip install --group s3") from error
    session = boto3.Session()
    if session.get_credentials() is None:
        raise UserError(
            f"{url}: there are no credentials for S3; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: dict[str, Any] = {"region": session.region_name or "us-east-1"}
    if endpoint:
        options |= {"endpoint": endpoint, "virtual_hosted_style_request": False}
    return S3Store.from_url(
        url,
        **options,
        client_options={"allow_http": True} if (endpoint or "").startswith("http://") else None,
        credential_provider=Boto3CredentialProvider(session),
    )
