"""The PNG encoder: what OpenCV reads back is what went in, whichever compressor is there."""

import importlib
import sys

import cv2
import numpy as np
import pytest

from cmunext.image import png

SHAPES = ((1, 1), (1, 7), (64, 1), (33, 50), (1, 1, 3), (5, 1, 3), (40, 61, 3))


def check(encode) -> None:
    generator = np.random.default_rng(0)
    for shape in SHAPES:
        for image in (generator.integers(0, 256, shape, np.uint8), np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)):
            read = cv2.imdecode(np.frombuffer(encode(image), np.uint8), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(read if image.ndim == 2 else read[..., ::-1], image)


def test_without_loss() -> None:
    check(png.encode)


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
        assert plain.compress.__module__ == "zlib"
        check(plain.encode)
        assert len(plain.encode(image)) < image.size / 5
    importlib.reload(png)
    assert len(png.encode(image)) < image.size / 5
