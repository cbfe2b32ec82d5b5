"""Image files made by hand, byte by byte where OpenCV cannot write the kind: what the tests of reading are fed with."""

import struct
import zlib

import cv2
import numpy as np


def png(
    rows: np.ndarray, colour_type: int, depth: int = 8, palette: bytes = b"", extra: dict[bytes, bytes] | None = None
) -> bytes:
    """A PNG from packed rows (uint8, height x bytes a row). Colour types: 0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6 RGBA."""
    bytes_a_pixel = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type] * depth / 8
    header = struct.pack(">IIBBBBB", int(rows.shape[1] / bytes_a_pixel), len(rows), depth, colour_type, 0, 0, 0)
    scanlines = b"".join(b"\0" + row.tobytes() for row in rows)  # 0: no filter
    chunks = [(b"IHDR", header), *(extra or {}).items()]
    chunks += [(b"PLTE", palette)] if palette else []
    chunks += [(b"IDAT", zlib.compress(scanlines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG, with its length and checksum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and has no pixels."""
    declared = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + declared + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(suffix: str, pixels: np.ndarray) -> bytes:
    """What OpenCV writes for grey or RGB(A) pixels of any depth."""
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]  # OpenCV thinks in BGR
    done, data = cv2.imencode(suffix, np.ascontiguousarray(pixels))
    assert done
    return data.tobytes()


def turned_jpeg(pixels: np.ndarray, orientation: int) -> bytes:
    """A JPEG of which an EXIF entry says how it is to be turned."""
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0" + tiff
    jpeg = encoded(".jpg", pixels)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
