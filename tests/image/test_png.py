"""PNG files made and taken apart: what OpenCV reads is what went in, whichever compressor is there."""

import importlib
import struct
import sys
import zlib
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from cmunext.image import png
from cmunext.image.files import _bare_png, read_image

SHAPES = ((1, 1), (1, 7), (64, 1), (33, 50), (1, 1, 3), (5, 1, 3), (40, 61, 3))


def check(encode) -> None:
    generator = np.random.default_rng(0)
    for shape in SHAPES:
        for image in (generator.integers(0, 256, shape, np.uint8), np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)):
            read = cv2.imdecode(np.frombuffer(encode(image), np.uint8), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(read if image.ndim == 2 else read[..., ::-1], image)


def test_without_loss() -> None:
    check(png.encode)


@pytest.mark.parametrize("chunks", [1, 5])
def test_compression_undone(chunks: int, tmp_path: Path) -> None:
    image = np.random.default_rng(2).integers(0, 40, (90, 70, 3), np.uint8)
    compressed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in image))
    bounds = np.linspace(0, len(compressed), chunks + 1).astype(int)
    pieces = [(b"IDAT", compressed[first:last]) for first, last in pairwise(bounds)]
    header = (b"IHDR", struct.pack(">IIBBBBB", 70, 90, 8, 2, 0, 0, 0))
    path = tmp_path / "image.png"
    path.write_bytes(png.assemble([header, (b"tEXt", b"Comment\0x"), *pieces, (b"IEND", b"")]))
    np.testing.assert_array_equal(read_image(path), image)
    assert image.tobytes()[:210] in png.stored(compressed), "a row stands in it as it is"
    assert image.tobytes()[:210] in _bare_png(path.read_bytes(), path)


def test_compression_that_cannot_be_undone_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    compressed = zlib.compress(bytes(5000))
    assert png.stored(compressed[:-3]) == compressed[:-3]
    assert png.stored(b"no zlib data") == b"no zlib data"
    assert png.stored(b"") == b""
    monkeypatch.setattr(png, "MOST_STORED", 4999)
    assert png.stored(compressed) == compressed
    monkeypatch.setattr(png, "MOST_STORED", 5000)
    assert png.stored(compressed) == zlib.compress(bytes(5000), 0)


def test_memory_in_any_order() -> None:
    image = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    for view in (image[:, ::-1], image.transpose(1, 0, 2), image[::2, ::3], image[..., 0], image[..., ::-1]):
        assert png.encode(view) == png.encode(np.ascontiguousarray(view))


def test_without_isal(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.tile(np.arange(200, dtype=np.uint8), (50, 1))
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "isal.isal_zlib", None)
        patched.setitem(sys.modules, "isal", None)
        plain = importlib.reload(png)
        assert plain.compressor is zlib
        check(plain.encode)
        assert plain.stored(zlib.compress(bytes(99))) == zlib.compress(bytes(99))
        assert len(plain.encode(image)) < image.size / 5
    importlib.reload(png)
    assert len(png.encode(image)) < image.size / 5
