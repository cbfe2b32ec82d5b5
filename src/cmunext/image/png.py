"""The compression inside of PNG files, which takes most of the time of reading and writing them: ISA-L's, where that is installed."""

import struct
import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

try:
    import isal.isal_zlib as compressor
except ModuleNotFoundError:  # no wheel for this processor
    import zlib as compressor  # type: ignore[no-redef]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LEVEL = 1
MOST_STORED = 4_000_000  # beyond it little time is won, and memory spent
SUB = 1  # the filter of every row: each value less the one a pixel to the left
COLOUR_TYPES = {1: 0, 3: 2}  # channels -> grey, RGB


def encode(image: NDArray[np.uint8]) -> bytes:
    """A PNG of uint8 H x W or H x W x 3 (RGB), without loss (ISO/IEC 15948), in a quarter of the time that OpenCV takes."""
    height, width = image.shape[:2]
    channels = 1 if image.ndim == 2 else image.shape[2]
    pixels = image.reshape(height, width * channels)
    rows = np.empty((height, 1 + width * channels), np.uint8)
    rows[:, 0] = SUB
    rows[:, 1 : 1 + channels] = pixels[:, :channels]
    np.subtract(pixels[:, channels:], pixels[:, :-channels], out=rows[:, 1 + channels :])
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[channels], 0, 0, 0)
    return assemble(((b"IHDR", header), (b"IDAT", compressor.compress(rows, LEVEL)), (b"IEND", b"")))


def stored(compressed: bytes) -> bytes:
    """The content of IDAT chunks with its compression undone (in "stored" blocks): OpenCV's own zlib would take twice the time for it.

    What is damaged or would grow beyond `MOST_STORED` bytes is returned as it is, and everything where there is no ISA-L.
    """
    if compressor is zlib:
        return compressed
    inflate = compressor.decompressobj()
    try:
        rows = inflate.decompress(compressed, MOST_STORED)
    except compressor.error:  # type: ignore[misc]
        return compressed
    return zlib.compress(rows, 0) if inflate.eof else compressed


def assemble(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks: type, content."""
    return SIGNATURE + b"".join(_chunk(name, content) for name, content in chunks)


def checksum(name: bytes, content: bytes) -> int:
    """What must stand behind a chunk: the CRC-32 of its type and content."""
    return compressor.crc32(content, compressor.crc32(name))


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum(name, content))
