"""Decoding: sizes, modes, orientation; all at once as one by one; broken files counted and named."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from qnas.errors import DataError
from qnas_plugins.datasets import decode as decoding
from qnas_plugins.datasets.decode import ColourError, Decoder, decode, probe


def png(image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "PNG"), **options)
    return buffer.getvalue()


def ramp(width, height) -> Image.Image:
    """Red grows to the right, green downwards, blue is 60."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 60)], -1).round().astype(np.uint8))


class Listed:
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def data(self, number):
        return self.items[number]

    def name(self, number):
        return f"{number}.png"

    def size(self, number):
        return len(self.items[number])


def decoder(items, size=8, channels=3, strict=True):
    return Decoder(Listed(items), "/pets", size, channels, strict=strict)


def test_an_image_of_the_right_size_is_kept_to_the_last_bit():
    image = ramp(16, 16)
    np.testing.assert_array_equal(decode(png(image), 16, 3), np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (90, 30)])
def test_the_shorter_side_is_resized_and_the_centre_kept(width, height):
    found = decode(png(ramp(width, height)), 10, 3).astype(float)
    assert found.shape == (3, 10, 10)
    side = min(width, height)
    for channel, length, axis in ((0, width, 0), (1, height, 1)):
        pixels = (length - side) / 2 + (np.arange(10) + 0.5) * side / 10 - 0.5  # centres, in pixels of the original
        np.testing.assert_allclose(found[channel].mean(axis), pixels * 255 / (length - 1), atol=4)
    assert (found[2] == 60).all()


def test_shrinking_averages():
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    found = decode(png(Image.fromarray(checks)), 8, 1)
    assert abs(found.astype(float) - 127.5).max() < 3


def test_a_large_jpeg_is_decoded_at_a_fraction_to_the_same_picture():
    image = ramp(512, 384)
    found = decode(png(image, format="JPEG", quality=95), 32, 3).astype(float)
    assert abs(found - decode(png(image), 32, 3)).max() <= 6


def test_every_mode_is_converted():
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    deep = Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16))
    wide = Image.fromarray((np.arange(256, dtype=np.int32) * 257).reshape(16, 16))
    expected = np.asarray(grey)
    for image, options in ((grey, {}), (deep, {}), (wide, {"format": "TIFF"}), (grey.convert("LA"), {})):
        np.testing.assert_array_equal(decode(png(image, **options), 16, 1)[0], expected)
        np.testing.assert_array_equal(decode(png(image, **options), 16, 3), np.stack([expected] * 3))
    colour = ramp(16, 16)
    as_rgb = np.asarray(colour).transpose(2, 0, 1)
    half_clear = colour.copy()
    half_clear.putalpha(grey)
    np.testing.assert_array_equal(decode(png(half_clear), 16, 3), as_rgb)
    palette = colour.quantize(256)
    shown = np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(png(palette), 16, 3), shown)
    np.testing.assert_array_equal(decode(png(palette, transparency=bytes(range(256))), 16, 3), shown)
    cmyk = decode(png(colour.convert("CMYK"), format="TIFF"), 16, 3).astype(int)
    assert abs(cmyk - as_rgb).max() <= 2
    black_white = Image.fromarray(expected > 100)
    np.testing.assert_array_equal(decode(png(black_white), 16, 1)[0], (expected > 100) * 255)


def test_colour_in_a_grey_set_is_refused_or_made_grey():
    data = png(ramp(16, 16))
    with pytest.raises(ColourError):
        decode(data, 16, 1, strict=True)
    np.testing.assert_array_equal(decode(data, 16, 1)[0], np.asarray(ramp(16, 16).convert("L")))


def test_exif_orientation_is_applied():
    image = ramp(24, 16)
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6  # to be turned by 90 degrees clockwise
    data = png(image, format="PNG", exif=exif)
    turned = image.transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(decode(data, 16, 3), decode(png(turned), 16, 3))
    assert not np.array_equal(decode(data, 16, 3), decode(png(image), 16, 3))
    assert probe(Listed([data, png(turned)])).side == 16


def test_a_probe_knows_the_median_side_and_whether_all_are_grey():
    greys = [png(ramp(s + 3, s).convert("L")) for s in (10, 20, 90)]
    assert probe(Listed(greys)) == decoding.Shape(20, True)
    assert probe(Listed([*greys, png(ramp(10, 20)), b"broken"])) == decoding.Shape(10, False)
    assert probe(Listed([b"broken"])).side == 0


@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize("threads", [False, True])
def test_all_at_once_is_as_one_by_one(monkeypatch, cores, threads):
    monkeypatch.setattr(decoding, "num_cores", lambda: cores)
    monkeypatch.setattr(decoding, "FEW", 2)
    monkeypatch.setattr(decoding, "CHUNK", 3)
    if threads:
        monkeypatch.setattr(decoding.sys, "platform", "darwin")
    made = decoder([png(ramp(8 + i, 9)) for i in range(20)])
    np.testing.assert_array_equal(made.read_all(), made.read(np.arange(20)))
    assert made.num_bytes == made.read_all().nbytes


@pytest.mark.parametrize("cores", [1, 2])
def test_broken_images_are_counted_and_the_first_is_named(monkeypatch, cores):
    monkeypatch.setattr(decoding, "num_cores", lambda: cores)
    monkeypatch.setattr(decoding, "FEW", 2)
    monkeypatch.setattr(decoding, "CHUNK", 3)
    fine = [png(ramp(12, 9)) for _ in range(20)]
    items = list(fine)
    items[7] = b"no image"
    with pytest.raises(DataError, match=r"^7\.png in /pets cannot be decoded: it is no image.*Repair or remove it"):
        decoder(items).read_all()
    items[4] = fine[4][:-30]
    with pytest.raises(DataError, match=r"^2 of 20 images cannot be decoded. The first: 4\.png in /pets"):
        decoder(items).read_all()
    with pytest.raises(ColourError):
        decoder([png(ramp(8, 8).convert("L")), *fine], channels=1).read_all()
    with pytest.raises(DataError, match=r"^1\.png in /pets has colour.*channels=3"):
        decoder([png(ramp(8, 8).convert("L")), *fine], channels=1).read(np.array([0, 1]))


def test_a_process_that_dies_says_what_to_do(monkeypatch):
    monkeypatch.setattr(decoding, "num_cores", lambda: 2)
    monkeypatch.setattr(decoding, "FEW", 2)
    monkeypatch.setattr(decoding, "decode", lambda *args, **options: decoding.os._exit(9))
    with pytest.raises(DataError, match=r"process that decodes /pets died.*memory=no"):
        decoder([png(ramp(8, 8))] * 4).read_all()


def test_identity_is_name_and_size():
    items = [png(ramp(8, 8)), png(ramp(20, 20))]
    assert list(decoder(items).identity(np.array([1, 0]))) == [f"1.png: {len(items[1])}", f"0.png: {len(items[0])}"]
