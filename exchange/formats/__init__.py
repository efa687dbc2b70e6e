"""The formats that features can be imported from, a file each. A new one is a `Reader` in a file, and a line here."""

from core.features import Feature
from exchange.formats.base import Reader
from exchange.formats.h5 import H5Grids, H5Regions
from exchange.formats.npy import NpyGrids, NpyRegions
from exchange.formats.npz import NpzReader
from exchange.formats.pth import PthReader
from exchange.formats.scan import ScanReader
from exchange.formats.tsv import TsvReader

_ALL = (ScanReader, NpzReader, TsvReader, PthReader, NpyRegions, NpyGrids, H5Regions, H5Grids)
#: By format and feature.
READERS: dict[tuple[str, Feature], type[Reader]] = {
    (reader.format, feature): reader for reader in _ALL for feature in reader.features
}
