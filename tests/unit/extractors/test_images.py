"""Decoding, resizing and batching, against Pillow, numpy and loops."""

from __future__ import annotations

import errno
import io
import os
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageFile

from extractors import images
from extractors.images import (
    Failure,
    ImageBatch,
    ImageError,
    InputSpec,
    decode_image,
    iterate_batches,
    make_batch,
    resize_image,
    resize_shortest_edge,
    resized_shape,
)

PHOTOS = [Path(skimage.data.__file__).parent / name for name in ("astronaut.png", "chelsea.png", "rocket.jpg")]
SPEC = InputSpec(32, 48, "RGB", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def photo():
    """A real photo, small: (60, 90, 3) uint8, no two corners alike."""
    return np.array(Image.fromarray(by_pillow(PHOTOS[1])).resize((90, 60)))


def by_pillow(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def saved(path: Path, pixels: np.ndarray | Image.Image, **options) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


# ---- decoding


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.name)
def test_photos_decode_as_pillow_converts_them(path):
    found = decode_image(path)
    assert found.dtype == np.uint8 and found.flags.writeable
    np.testing.assert_array_equal(found, by_pillow(path))


# What is stored when the tag says how to show it: the inverse of each of the eight orientations, in numpy.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("kind", ["png", "tiff", "webp", "jpg"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_exif_orientation_is_turned_upright(tmp_path, photo, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"webp": {"lossless": True}, "jpg": {"quality": 98, "subsampling": 0}}.get(kind, {})
    path = saved(
        tmp_path / f"x.{kind}", np.ascontiguousarray(STORED[orientation](photo)), exif=exif.tobytes(), **options
    )
    found = decode_image(path)
    assert found.shape == photo.shape
    if kind == "jpg":
        assert difference(found, photo) < 3
    else:
        np.testing.assert_array_equal(found, photo)


def test_a_damaged_exif_block_does_not_spoil_the_pixels(tmp_path, photo):
    path = saved(tmp_path / "x.png", photo, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 9)
    np.testing.assert_array_equal(decode_image(path), photo)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(tmp_path, photo, value):
    exif = Image.Exif()
    exif[0x0112] = value
    np.testing.assert_array_equal(decode_image(saved(tmp_path / "x.png", photo, exif=exif.tobytes())), photo)


@pytest.mark.parametrize(
    "mode, kind", [("1", "png"), ("L", "png"), ("L", "jpg"), ("LA", "png"), ("P", "png"), ("P", "gif"), ("PA", "tiff")]
)
def test_grey_and_palette_images_become_rgb(tmp_path, photo, mode, kind):
    image = Image.fromarray(photo)
    image = {"PA": image.convert("P").convert("PA")}.get(mode) or image.convert(mode)
    path = saved(tmp_path / f"x.{kind}", image, **({"quality": 98} if kind == "jpg" else {}))
    wanted = image.convert("RGB")
    assert difference(decode_image(path), np.array(wanted)) < (2 if kind == "jpg" else 1e-9)


@pytest.mark.parametrize("transparency", [5, bytes(range(256))], ids=["one colour", "per colour"])
@pytest.mark.parametrize("kind", ["png", "gif"])
def test_palette_transparency_shows_the_palette_colour(tmp_path, photo, transparency, kind):
    if kind == "gif" and isinstance(transparency, bytes):
        transparency = 0
    image = Image.fromarray(photo).quantize(64)
    path = saved(tmp_path / f"x.{kind}", image, transparency=transparency)
    np.testing.assert_array_equal(decode_image(path), np.array(image.convert("RGB")))


def test_alpha_is_ignored_not_blended(tmp_path, photo):
    alpha = np.linspace(0, 255, 90).astype(np.uint8)[None].repeat(60, 0)[..., None]
    path = saved(tmp_path / "x.png", np.concatenate([photo, alpha], 2))
    np.testing.assert_array_equal(decode_image(path), photo)
    np.testing.assert_array_equal(decode_image(path), by_pillow(path))


def test_transparent_colours_of_grey_and_rgb_are_ignored(tmp_path, photo):
    path = saved(tmp_path / "rgb.png", photo, transparency=tuple(int(v) for v in photo[0, 0]))
    np.testing.assert_array_equal(decode_image(path), photo)
    path = saved(tmp_path / "grey.png", photo[..., 0].copy(), transparency=int(photo[0, 0, 0]))
    np.testing.assert_array_equal(decode_image(path), photo[..., :1].repeat(3, 2))


@pytest.mark.parametrize("kind", ["jpg", "tiff"])
def test_cmyk_is_not_inverted(tmp_path, photo, kind):
    # Pillow writes JPEGs in Adobe's inverted form.
    options = {"quality": 95} if kind == "jpg" else {}
    path = saved(tmp_path / f"x.{kind}", Image.fromarray(photo).convert("CMYK"), **options)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    assert difference(decode_image(path), photo) < 4


@pytest.mark.parametrize("kind, byte_order", [("png", "<"), ("tiff", "<"), ("tiff", ">"), ("pgm", "<")])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, kind, byte_order):
    values = np.linspace(0, 65535, 50 * 64).round().astype(f"{byte_order}u2").reshape(50, 64)
    mode = "I;16B" if byte_order == ">" else "I;16"
    image = Image.frombytes(mode, (64, 50), values.tobytes())
    found = decode_image(saved(tmp_path / f"x.{kind}", image))
    wanted = np.array([[round(v / 257) for v in row] for row in values.tolist()], np.uint8)
    np.testing.assert_array_equal(found, wanted[..., None].repeat(3, 2))


def test_16_bit_rgb(tmp_path):
    """Pillow cannot write these, cameras and scanners do."""
    values = np.linspace(0, 65535, 8 * 9 * 3).astype(">u2").reshape(8, 9, 3)

    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    lines = b"".join(b"\0" + line.tobytes() for line in values)
    path = tmp_path / "x.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", struct.pack(">IIBBBBB", 9, 8, 16, 2, 0, 0, 0))
        + part(b"IDAT", zlib.compress(lines))
        + part(b"IEND", b"")
    )
    assert np.abs(decode_image(path).astype(int) - values.astype(int) / 257).max() <= 1


@pytest.mark.parametrize(
    "dtype, top, white",
    [
        (np.int32, 65535, 65535),
        (np.int32, 300, 65535),
        (np.int32, 2**31 - 1, 2**31 - 1),
        (np.float32, 1.0, 1),
        (np.float32, 0.25, 1),
        (np.float32, 255.0, 255),
        (np.float32, 60000.0, 65535),
        (np.float32, 1e9, 1e9),
    ],
)
def test_wide_greyscale_keeps_its_contrast(tmp_path, dtype, top, white):
    values = np.linspace(0, top, 256).astype(dtype).reshape(16, 16)
    found = decode_image(saved(tmp_path / "x.tiff", values))
    assert np.abs(found[..., 0].astype(float) - values.astype(float) * 255 / white).max() <= 0.51


def test_negative_and_not_finite_pixels_are_black(tmp_path):
    values = np.array([[-5.0, np.nan, np.inf], [0.0, 0.5, 1.0]], np.float32)
    found = decode_image(saved(tmp_path / "x.tiff", values))
    assert found[..., 0].tolist() == [[0, 0, 0], [0, 128, 255]]
    found = decode_image(saved(tmp_path / "y.tiff", np.array([[-70000, 65535]], np.int32)))
    assert found[..., 0].tolist() == [[0, 255]]


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_animations_give_their_first_frame(tmp_path, kind):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "webp" else {}
    path = saved(tmp_path / f"x.{kind}", frames[0], save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert image.n_frames == 3
    np.testing.assert_array_equal(decode_image(path), np.array(frames[0]))


def test_one_pixel(tmp_path):
    path = saved(tmp_path / "x.png", np.array([[[10, 20, 30]]], np.uint8))
    assert decode_image(path).tolist() == [[[10, 20, 30]]]
    (batch,) = iterate_batches([path], [0], SPEC, 1)
    assert batch.pixels.shape == (1, 3, 32, 32) and batch.original_sizes == [(1, 1)]


# ---- files that cannot be used


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "the file is empty"),
        (b"hello, I am no image\n" * 20, "not an image that Pillow can read"),
        (b"\xff\xd8\xff\xe0", "not an image that Pillow can read"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "corrupt or truncated|not an image"),
    ],
)
def test_files_that_are_no_images(tmp_path, content, message):
    path = tmp_path / "holiday photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        decode_image(path)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    assert caught.value.path == str(path)


@pytest.mark.parametrize("kind", ["jpg", "png", "gif", "webp", "tiff", "bmp"])
def test_a_truncated_image_is_an_error_at_every_length(tmp_path, photo, kind):
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    whole = saved(tmp_path / f"whole.{kind}", photo).read_bytes()
    path = tmp_path / f"x.{kind}"
    for share in (0.01, 0.1, 0.5, 0.8, 0.95):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError, match="corrupt or truncated|not an image"):
            decode_image(path)


def test_damaged_files_give_pixels_or_an_image_error_and_nothing_else(tmp_path, photo):
    generator, errors = np.random.default_rng(0), 0
    small = photo[:24, :24].copy()
    for kind in ("jpg", "png", "gif", "webp", "tiff"):
        whole = np.frombuffer(saved(tmp_path / f"whole.{kind}", small).read_bytes(), np.uint8)
        for _ in range(60):
            bad = whole.copy()
            places = generator.integers(0, len(bad), generator.integers(1, 12))
            bad[places] = generator.integers(0, 256, len(places))
            (tmp_path / "x").write_bytes(bad.tobytes())
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    assert decode_image(tmp_path / "x").dtype == np.uint8
            except ImageError:
                errors += 1
    assert errors > 30


def test_places_without_an_image(tmp_path):
    with pytest.raises(ImageError, match=r"cannot be read \(No such file or directory\); check the image folder"):
        decode_image(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match="is a folder, pipe or device"):
        decode_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="is a folder, pipe or device"):
        decode_image(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="null"):
        decode_image("a\0b.jpg")


def test_decompression_bombs_are_refused_by_name(tmp_path, photo, monkeypatch):
    path = saved(tmp_path / "x.png", photo)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(ImageError, match="too large: .*5400 pixels.* exceeds limit.*; scale the file down"):
        decode_image(path)


def test_trouble_of_the_machine_is_not_blamed_on_the_image(tmp_path, photo, monkeypatch):
    path = saved(tmp_path / "x.png", photo)
    for trouble in (OSError(errno.EMFILE, "Too many open files"), MemoryError()):

        def fail(*_, trouble=trouble, **__):
            raise trouble

        monkeypatch.setattr(Image, "open", fail)
        with pytest.raises(type(trouble)) as caught:
            list(iterate_batches([path], [0], SPEC, 1))
        assert caught.value is trouble


# ---- resizing


@pytest.mark.parametrize(
    "height, width, min_size, max_size, new_height, new_width",
    [
        # Made with detectron2's ResizeShortestEdge.get_output_shape.
        (480, 640, 600, 1000, 600, 800),
        (640, 480, 600, 1000, 800, 600),
        (427, 640, 600, 1000, 600, 899),
        (333, 500, 600, 1000, 600, 901),
        (500, 333, 800, 1333, 1201, 800),
        (427, 640, 800, 1333, 800, 1199),
        (612, 612, 600, 1000, 600, 600),
        (100, 900, 600, 1000, 111, 1000),
        (900, 100, 600, 1000, 1000, 111),
        (3024, 4032, 600, 1000, 600, 800),
        (150, 237, 128, 208, 128, 202),
        (171, 240, 128, 208, 128, 180),
        (1, 1, 600, 1000, 600, 600),
        (600, 1000, 600, 1000, 600, 1000),
        # Where detectron2 would ask for a side of 0.
        (1, 5000, 600, 1000, 1, 1000),
        (5000, 1, 600, 1000, 1000, 1),
        # No resizing, whatever the longer side.
        (480, 640, 0, 600, 480, 640),
    ],
)
def test_resized_shape(height, width, min_size, max_size, new_height, new_width):
    assert resized_shape(height, width, min_size, max_size) == (new_height, new_width)


def test_resizing_is_pillows_bilinear_on_uint8(photo):
    found = resize_shortest_edge(photo, 40, 48)
    np.testing.assert_array_equal(found, np.array(Image.fromarray(photo).resize((48, 32), Image.Resampling.BILINEAR)))
    assert resize_shortest_edge(photo, 60, 90) is photo


def test_the_caffe_resize_is_plain_bilinear_at_the_exact_scale(photo):
    spec = InputSpec(40, 48, "BGR", (0.0,) * 3, (1.0,) * 3, 1, resize="float")
    found = resize_image(photo, spec)
    scale = spec.scale(*photo.shape[:2])
    assert scale == 48 / 90 and spec.shape(60, 90) == found.shape[:2] == (32, 48)
    assert found.dtype == np.float32

    def sample(length, size):
        at = np.clip((np.arange(length) + 0.5) / scale - 0.5, 0, size - 1)
        low = np.minimum(at.astype(int), size - 2)
        return low, at - low

    (rows, down), (columns, right) = sample(32, 60), sample(48, 90)
    pixels = photo.astype(np.float64)
    down, right = down[:, None, None], right[None, :, None]
    top = pixels[rows][:, columns] * (1 - right) + pixels[rows][:, columns + 1] * right
    bottom = pixels[rows + 1][:, columns] * (1 - right) + pixels[rows + 1][:, columns + 1] * right
    np.testing.assert_allclose(found, top * (1 - down) + bottom * down, atol=1e-4)
    batch = make_batch([found], [7], [(60, 90)], spec)
    np.testing.assert_array_equal(batch.pixels[0].permute(1, 2, 0).numpy(), found[:, :, ::-1])


@pytest.mark.parametrize(
    ("height", "width", "shape"),
    # The longer side is rounded before it is compared with the cap: 600.0 * 1.6674 = 1000.4 may stay.
    [
        (480, 640, (600, 800)),
        (300, 500, (600, 1000)),
        (300, 501, (599, 1000)),
        (1000, 300, (1000, 300)),
        (299, 1, (1000, 3)),
    ],
)
def test_the_caffe_size_rule(height, width, shape):
    spec = InputSpec(600, 1000, "BGR", (0.0,) * 3, (1.0,) * 3, 1, resize="float")
    assert spec.shape(height, width) == shape


# ---- batches


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("divisibility, padded", [(0, (30, 45)), (1, (30, 45)), (32, (32, 64)), (15, (30, 45))])
def test_normalised_then_padded(photo, channels, divisibility, padded):
    mean, std = (102.9801, 115.9465, 122.7717), (57.375, 57.12, 58.395)
    pictures = [photo[:30, :45].copy(), photo[30:, 45:].copy()]
    batch = make_batch(pictures, [7, 3], [(60, 90), (61, 91)], InputSpec(30, 45, channels, mean, std, divisibility))
    assert batch.pixels.shape == (2, 3, *padded) and batch.pixels.dtype == torch.float32
    assert (batch.rows, batch.sizes) == ([7, 3], [(30, 45)] * 2)
    assert batch.original_sizes == [(60, 90), (61, 91)]
    wanted = np.zeros((2, 3, *padded), np.float32)
    for b, picture in enumerate(pictures):
        for c in range(3):
            plane = picture[..., 2 - c if channels == "BGR" else c].astype(np.float32)
            wanted[b, c, :30, :45] = (plane - np.float32(mean[c])) / np.float32(std[c])
    np.testing.assert_array_equal(batch.pixels.numpy(), wanted)


@pytest.fixture
def folder(tmp_path, photo):
    """30 files of five sizes, two of which resize to one shape, and some that are damaged."""
    paths, sizes = [], []
    shapes = [(40, 60), (60, 40), (80, 120), (50, 50), (40, 55)]
    for i in range(30):
        height, width = shapes[i * 7 % 5]
        picture = np.array(Image.fromarray(np.roll(photo, 3 * i, 1)).resize((width, height)))
        paths.append(saved(tmp_path / f"{i}.png", picture))
        sizes.append((height, width))
    for i in (4, 11, 29):
        paths[i].write_bytes(paths[i].read_bytes()[:90])
    return paths, sizes


def contents(results) -> list:
    """Comparable form of what `iterate_batches` yields."""
    return [
        r if isinstance(r, Failure) else (r.rows, r.pixels.numpy().tobytes(), r.sizes, r.original_sizes)
        for r in results
    ]


@pytest.mark.parametrize("known", ["sizes", "no sizes", "some sizes", "wrong sizes"])
def test_batches_hold_every_image_once_and_one_shape_each(folder, known):
    paths, sizes = folder
    given = {
        "sizes": sizes,
        "no sizes": None,
        "some sizes": [size if i % 3 else (0, 0) for i, size in enumerate(sizes)],
        "wrong sizes": sizes[::-1],
    }[known]
    results = list(iterate_batches(paths, range(100, 130), SPEC, 4, 0, given))
    seen = []
    for result in results:
        if isinstance(result, Failure):
            assert result.path == str(paths[result.row - 100])
            assert "truncated" in result.error and result.path not in result.error
            seen.append(result.row)
            continue
        assert 1 <= len(result.rows) <= 4 and len(set(result.sizes)) == 1
        for row, pixels, size, original in zip(
            result.rows, result.pixels, result.sizes, result.original_sizes, strict=True
        ):
            assert original == sizes[row - 100]
            alone = resize_shortest_edge(decode_image(paths[row - 100]), 32, 48)
            assert size == alone.shape[:2] == tuple(pixels.shape[1:])
            np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), alone)
        seen += result.rows
    assert sorted(seen) == list(range(100, 130))
    assert sorted(r.row for r in results if isinstance(r, Failure)) == [104, 111, 129]


@pytest.mark.parametrize("known", [True, False])
def test_batches_are_the_same_for_any_number_of_workers(folder, known):
    paths, sizes = folder
    given = sizes if known else None
    inline = contents(iterate_batches(paths, range(30), SPEC, 4, 0, given))
    for workers in (1, 3, 20):
        assert contents(iterate_batches(paths, range(30), SPEC, 4, workers, given)) == inline


def test_known_sizes_make_full_batches(folder):
    paths, sizes = folder
    batches = [r for r in iterate_batches(paths, range(30), SPEC, 4, 0, sizes) if isinstance(r, ImageBatch)]
    by_shape: dict = {}
    for batch in batches:
        by_shape.setdefault(batch.sizes[0], []).append(len(batch.rows))
    assert len(by_shape) == 4
    for counts in by_shape.values():
        assert sum(count < 4 for count in counts) <= 1


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("one_shape", [True, False])
def test_memory_is_bounded_however_slow_the_network(monkeypatch, workers, one_shape):
    batch_size, decoded, lock = 4, [], threading.Lock()

    def decode(path):
        with lock:
            decoded.append(path)
        # Distinct shapes never fill a batch.
        return np.zeros((32, 32 if one_shape else 32 + len(decoded) % 200, 3), np.uint8)

    monkeypatch.setattr(images, "decode_image", decode)
    spec = InputSpec(32, 1000, "RGB", (0.0,) * 3, (1.0,) * 3, 1)
    done = 0
    for batch in iterate_batches([f"{i}" for i in range(120)], range(120), spec, batch_size, workers):
        time.sleep(0.002)
        assert len(decoded) - done <= 6 * batch_size
        done += len(batch.rows)
    assert done == 120


def test_stopping_early_stops_the_decoding(monkeypatch):
    decoded = []
    monkeypatch.setattr(images, "decode_image", lambda p: decoded.append(p) or np.zeros((32, 32, 3), np.uint8))
    batches = iterate_batches([f"{i}" for i in range(100)], range(100), SPEC, 2, 2)
    next(batches)
    batches.close()
    assert len(decoded) < 10
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_in_the_program_is_raised_not_recorded(monkeypatch, workers):
    def broken(_):
        raise AttributeError("typo")

    monkeypatch.setattr(images, "decode_image", broken)
    with pytest.raises(AttributeError, match="typo"):
        list(iterate_batches(["a", "b"], [0, 1], SPEC, 2, workers))


def test_no_images_make_no_batches():
    assert list(iterate_batches([], [], SPEC, 2, 2, [])) == []


def test_wrong_arguments():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        list(iterate_batches(["a"], [0], SPEC, 0))
    with pytest.raises(ValueError, match="1 paths need as many rows"):
        list(iterate_batches(["a"], [0, 1], SPEC, 1))
    with pytest.raises(ValueError, match="'BGR' or 'RGB', not 'GBR'"):
        InputSpec(32, 48, "GBR", (0.0,) * 3, (1.0,) * 3, 1)
    for sizes in ((-1, 48), (32, 0)):
        with pytest.raises(ValueError, match="min_size must be at least 0 and max_size at least 1 pixel"):
            InputSpec(*sizes, "RGB", (0.0,) * 3, (1.0,) * 3, 1)


def test_image_errors_cross_process_borders():
    import pickle

    error = pickle.loads(pickle.dumps(ImageError("a.jpg", "is empty")))
    assert (error.path, error.reason, str(error)) == ("a.jpg", "is empty", "a.jpg: is empty")


def test_files_are_closed(tmp_path, photo):
    path = saved(tmp_path / "x.png", photo)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    for _ in range(20):
        decode_image(path)
        with pytest.raises(ImageError):
            decode_image(saved_truncated(tmp_path, photo))
    after = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    assert after == before


def saved_truncated(folder: Path, pixels: np.ndarray) -> Path:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG")
    (folder / "cut.jpg").write_bytes(data.getvalue()[:700])
    return folder / "cut.jpg"
