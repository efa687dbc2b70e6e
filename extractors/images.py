"""Images in: one decoder, one resize rule and one way to form batches for all extractors.

Colour conversion, orientation, the resize rule and its interpolation are those of detectron2's data pipeline (Pillow's
`convert("RGB")`, the EXIF tag, `ResizeShortestEdge`, bilinear by Pillow on uint8), so that a network is fed bit by bit
what detectron2 would have fed it. Deviations are listed at `decode_image`.
"""

from __future__ import annotations

import errno
import os
import stat
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

# The index has told which images have damaged metadata, by name; Pillow names none.
warnings.filterwarnings("ignore", module="PIL")

_ORIENTATION_TAG = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The machine's trouble, not the image's: recorded as a bad image it would silently drop good ones.
_MACHINE_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class ImageError(Exception):
    """An image file that cannot be used. `path`: the file; `reason`: why, and what to do; `str()` gives both."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.path = os.fspath(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}")

    def __reduce__(self):
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class InputSpec:
    """How a network wants its images.

    Attributes:
        min_size, max_size: shorter side after resizing, and the cap of the longer side, in pixels. With min_size 0 images
            keep their size (detectron2's convention).
        channels: "BGR" or "RGB". mean, std: per channel in that order, on the 0..255 scale.
        divisibility: the batch is zero-padded on the right and bottom to multiples of this (0 or 1: no padding).
        resize: "pillow" (uint8, antialiased, as detectron2), "float" (float32, plain bilinear as OpenCV's, with the
            rounding of the Caffe code) or "square" (likewise, both sides to `min_size`, whatever the image's shape).
    """

    min_size: int
    max_size: int
    channels: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    divisibility: int
    resize: str = "pillow"

    def __post_init__(self) -> None:
        if self.resize not in ("pillow", "float", "square"):
            raise ValueError(f"resize must be 'pillow', 'float' or 'square', not {self.resize!r}")
        if self.channels not in ("BGR", "RGB"):
            raise ValueError(f"channels must be 'BGR' or 'RGB', not {self.channels!r}")
        if self.min_size < 0 or self.max_size < 1:
            raise ValueError(
                f"min_size must be at least 0 and max_size at least 1 pixel, not {self.min_size} and {self.max_size}"
            )

    def scale(self, height: int, width: int) -> float:
        """Network pixels per original pixel, by the rule of the Caffe code."""
        if self.min_size == 0:
            return 1.0
        scale = self.min_size / min(height, width)
        if np.round(scale * max(height, width)) > self.max_size:
            scale = self.max_size / max(height, width)
        return scale

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image of the given size in the network's input."""
        if self.resize == "pillow":
            return resized_shape(height, width, self.min_size, self.max_size)
        if self.resize == "square":
            return self.min_size, self.min_size
        scale = self.scale(height, width)
        # Half to even, as OpenCV rounds.
        return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass
class ImageBatch:
    """Images of one resized shape, ready for a network.

    Attributes:
        rows: index rows of the images.
        pixels: (B, 3, H, W) float32 in channels-last memory, normalised, zero-padded after normalisation.
        sizes: resized (height, width) before padding. original_sizes: upright (height, width) of the files.
    """

    rows: list[int]
    pixels: torch.Tensor
    sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]


@dataclass(frozen=True)
class Failure:
    """An image that could not be decoded: its index row, its path and the reason."""

    row: int
    path: str
    error: str


def decode_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Pixels of an image file, upright.

    As in detectron2's `read_image`: EXIF orientation is applied, the first frame is taken, palettes are looked up, CMYK
    is converted without a profile, and transparency is ignored (the colour stored under it shows; nothing is laid over
    white). Unlike it, greyscale of more than 8 bits is scaled to 8 where Pillow would clip it to white: 16-bit integers
    by 65535, wider integers too unless a value exceeds 65535, float by the smallest of 1, 255 and 65535 that covers the
    image; what still exceeds the scale is scaled by the image's own maximum, and negative and non-finite pixels are
    black.

    Returns:
        (H, W, 3) uint8 RGB, writable.

    Raises:
        ImageError: missing, empty, truncated, not an image, or so large that Pillow takes it for a decompression bomb
            (about 179 million pixels).
        OSError, MemoryError: the machine is out of file handles or memory; the image may be fine.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would wait for ever.
            raise ImageError(path, "is a folder, pipe or device, not an image file; remove it from the index")
        if status.st_size == 0:
            raise ImageError(path, "the file is empty (0 bytes); copy it again or remove it")
        with Image.open(path) as image:
            image.load()
            if 0 in image.size:
                raise ImageError(path, f"has no pixels ({image.width}x{image.height}); remove it")
            return np.array(_to_rgb(_upright(image)))
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        reason = "not an image that Pillow can read, or its header is damaged; convert it to JPEG or PNG, or remove it"
        raise ImageError(path, reason) from error
    except Image.DecompressionBombError as error:
        raise ImageError(path, f"too large: {error}; scale the file down or remove it") from error
    except Exception as error:  # Pillow's parsers raise errors of every kind for damaged files.
        number = getattr(error, "errno", None)
        if number in _MACHINE_ERRORS:
            raise
        if number is not None:
            raise ImageError(path, f"cannot be read ({os.strerror(number)}); check the image folder") from error
        reason = f"corrupt or truncated ({error or type(error).__name__}); copy it again or remove it"
        raise ImageError(path, reason) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # noqa: BLE001 - a damaged EXIF block says nothing about the pixels: detectron2 ignores it too
        return image
    transposition = _TRANSPOSITIONS.get(orientation)
    return image if transposition is None else image.transpose(transposition)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    # Does not change a pixel, and spares Pillow the conversion of the transparent colour, which it warns about.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """(H, W) integers or floats of unknown scale -> uint8, see `decode_image`."""
    whites = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0,)
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    brightest = values.max()
    white = next((w for w in whites if brightest <= w), brightest)
    return np.rint(np.clip(values * (255.0 / white), 0.0, 255.0)).astype(np.uint8)


def resized_shape(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """(height, width) after the shorter side becomes `min_size` unless the longer would exceed `max_size`; 0 changes nothing.

    Source: detectron2 `ResizeShortestEdge.get_output_shape`, with its rounding; but no side becomes 0.
    """
    if min_size == 0:
        return height, width
    scale = min_size / min(height, width)
    if height < width:
        new_height, new_width = float(min_size), scale * width
    else:
        new_height, new_width = scale * height, float(min_size)
    longest = max(new_height, new_width)
    if longest > max_size:
        scale = max_size / longest
        new_height, new_width = new_height * scale, new_width * scale
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resize_shortest_edge(image: np.ndarray, min_size: int, max_size: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (h, w, 3) uint8 by `resized_shape`, bilinear with Pillow's antialiasing."""
    height, width = resized_shape(*image.shape[:2], min_size, max_size)
    if (height, width) == image.shape[:2]:
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_image(image: np.ndarray, spec: InputSpec) -> np.ndarray:
    """(H, W, 3) uint8 -> (h, w, 3) as the network wants it: uint8, or float32 unless `spec.resize` is "pillow"."""
    if spec.resize == "pillow":
        return resize_shortest_edge(image, spec.min_size, spec.max_size)
    shape = spec.shape(*image.shape[:2])
    # The scale itself and not the ratio of the rounded sizes places the samples.
    scales = [spec.scale(*image.shape[:2])] * 2
    if spec.resize == "square":
        scales = [side / own for side, own in zip(shape, image.shape[:2], strict=True)]
    # In double precision, or the places of the samples would be coarse.
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    resized = torch.ops.aten.upsample_bilinear2d(pixels, shape, False, *scales)
    return resized[0].permute(1, 2, 0).float().contiguous().numpy()


def make_batch(
    images: Sequence[np.ndarray], rows: Sequence[int], original_sizes: Sequence[tuple[int, int]], spec: InputSpec
) -> ImageBatch:
    """One batch from resized RGB images (h, w, 3) uint8 or float32 of identical shape; none give an empty batch.

    Channels are brought to the spec's order, then (pixels - mean) / std in float32, then zeros on the right and bottom.
    """
    if not len(images):
        return ImageBatch([], torch.empty(0, 3, 0, 0), [], [])
    height, width = images[0].shape[:2]
    step = max(1, spec.divisibility)
    shape = (len(images), 3, -(-height // step) * step, -(-width // step) * step)
    # The files' own memory order, which is also the fast one for convolutions: filling it is a straight copy.
    pixels = torch.empty(shape, memory_format=torch.channels_last).zero_()
    stacked = np.stack(images)
    if spec.channels == "BGR":
        stacked = np.ascontiguousarray(stacked[..., ::-1])
    inside = pixels[:, :, :height, :width]
    inside.copy_(torch.from_numpy(stacked).permute(0, 3, 1, 2))
    inside.sub_(torch.tensor(spec.mean)[:, None, None]).div_(torch.tensor(spec.std)[:, None, None])
    return ImageBatch(list(rows), pixels, [(height, width)] * len(images), list(original_sizes))


def iterate_batches(
    paths: Sequence[str | os.PathLike[str]],
    rows: Sequence[int],
    spec: InputSpec,
    batch_size: int,
    workers: int = 0,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> Iterator[ImageBatch | Failure]:
    """Decode, resize and batch images; a batch holds images of one resized shape, so batching cannot change a result.

    Memory stays flat: at most about six batches of resized images are held, however slow the network is.

    Args:
        paths, rows: files and their index rows. spec: what the network wants. batch_size: images per batch at most.
        workers: decoding threads ahead of the network (Pillow decodes outside of the interpreter lock); 0 decodes in
            turn.
        sizes: upright (height, width) by the index, (0, 0) where unknown: images of one resized shape are then decoded
            one after the other, which makes full batches. A wrong size costs speed, never correctness.

    Yields:
        Batches, and a `Failure` for every image that cannot be decoded; the same in the same order for any `workers`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if len(rows) != len(paths) or (sizes is not None and len(sizes) != len(paths)):
        raise ValueError(f"{len(paths)} paths need as many rows ({len(rows)}) and sizes ({len(sizes or ())})")
    order = list(range(len(paths)))
    if sizes is not None:
        shapes = [spec.shape(*s) if min(s) > 0 else (0, 0) for s in sizes]
        order.sort(key=lambda i: (shapes[i], i))
    # Incomplete batches by shape, oldest first; per image its place in `paths`, its pixels and its original size.
    waiting: dict[tuple[int, int], list[tuple[int, np.ndarray, tuple[int, int]]]] = {}
    held = 0

    def flush(shape: tuple[int, int]) -> ImageBatch:
        nonlocal held
        group = waiting.pop(shape)
        held -= len(group)
        return make_batch([g[1] for g in group], [rows[g[0]] for g in group], [g[2] for g in group], spec)

    for i, outcome in _decoded(paths, order, spec, workers, ahead=2 * batch_size):
        if isinstance(outcome, ImageError):
            yield Failure(rows[i], outcome.path, outcome.reason)
            continue
        image, original = outcome
        shape = image.shape[:2]
        waiting.setdefault(shape, []).append((i, image, original))
        held += 1
        if len(waiting[shape]) == batch_size:
            yield flush(shape)
        elif held >= 4 * batch_size:
            yield flush(next(iter(waiting)))
    while waiting:
        yield flush(next(iter(waiting)))


def _decoded(
    paths: Sequence[str | os.PathLike[str]], order: Sequence[int], spec: InputSpec, workers: int, ahead: int
) -> Iterator[tuple[int, tuple[np.ndarray, tuple[int, int]] | ImageError]]:
    """(place in `paths`, (resized RGB image, original size) or the error) in `order`."""

    def attempt(i: int) -> tuple[np.ndarray, tuple[int, int]] | ImageError:
        try:
            image = decode_image(paths[i])
        except ImageError as error:
            return error
        return resize_image(image, spec), image.shape[:2]

    if workers <= 0:
        for i in order:
            yield i, attempt(i)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        pending: deque[tuple[int, Future]] = deque()
        for i in order:
            pending.append((i, pool.submit(attempt, i)))
            if len(pending) >= max(ahead, workers):
                j, future = pending.popleft()
                yield j, future.result()
        while pending:
            j, future = pending.popleft()
            yield j, future.result()
    finally:
        # Also when the consumer stops early: don't decode what nobody will see.
        pool.shutdown(cancel_futures=True)
