"""The formats that features can be imported from, a file each. A new one is a `Reader` in a file, and a line here."""

from exchange.formats.base import Reader
from exchange.formats.npy import NpyReader
from exchange.formats.npz import NpzReader
from exchange.formats.pth import PthReader
from exchange.formats.scan import ScanReader
from exchange.formats.tsv import TsvReader

READERS: dict[str, type[Reader]] = {
    reader.format: reader for reader in (ScanReader, NpzReader, TsvReader, PthReader, NpyReader)
}
