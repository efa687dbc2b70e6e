"""Decoding and resizing, against Pillow, numpy and loops."""

from __future__ import annotations

import errno
import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from extractors.images import (
    ImageError,
    InputSpec,
    decode_image,
    iterate_batches,
    make_batch,
    resize_image,
    resize_shortest_edge,
    resized_shape,
)
from tests.unit.extractors.photos import PHOTOS, SPEC, by_pillow, difference, saved

# A warning of Pillow is for whoever reads images, not for whoever runs the workflow.
pytestmark = pytest.mark.filterwarnings("error")


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
