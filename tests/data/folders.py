"""Folders of images that the tests of data make themselves."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunext.data.layout import list_content

Box = tuple[int, int, int, int]  # top, bottom, left, right


def write(path: Path, pixels: NDArray) -> Path:
    """Write grey, RGB or RGBA pixels in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]  # OpenCV thinks in BGR
    assert cv2.imwrite(str(path), np.ascontiguousarray(pixels))
    return path


def write_list(path: Path, names: Iterable[str]) -> None:
    """Write a list of cases in the official text form."""
    path.write_bytes(list_content(names))


def stored(path: Path) -> NDArray:
    """The pixels of a file, its channels as they are stored (BGR)."""
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None, path
    return pixels


def noise(number: int, height: int = 24, width: int = 32, channels: int = 0) -> NDArray[np.uint8]:
    """Another image for each number: H x W, or H x W x channels."""
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def drawn(*boxes: Box, height: int = 24, width: int = 32) -> NDArray[np.uint8]:
    """A mask of 0 and 255 with filled boxes."""
    mask = np.zeros((height, width), np.uint8)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = 255
    return mask


def dataset(root: Path, names: Iterable[str], classes: int = 1) -> Path:
    """A dataset folder in which nothing is wrong: grey images 24 x 32, one lesion of 6 x 8 in each mask."""
    for number, name in enumerate(names):
        write(root / "images" / f"{name}.png", noise(number))
        for of_class in range(classes):
            write(root / "masks" / str(of_class) / f"{name}.png", drawn((4, 10, 8, 16)))
    return root


def raw_busi(root: Path) -> Path:
    """A BUSI download in small: several masks to an image, modes grey, RGB and RGBA, a mask of another size, normals."""
    write(root / "benign" / "benign (1).png", noise(1, channels=3))
    write(root / "benign" / "benign (1)_mask.png", drawn((2, 8, 2, 8)))
    write(root / "benign" / "benign (1)_mask_1.png", np.dstack([drawn((12, 20, 16, 28))] * 3))
    write(root / "benign" / "benign (2).png", noise(2))
    opaque = np.full((48, 64), 255, np.uint8)
    write(root / "benign" / "benign (2)_mask.png", np.dstack([drawn((8, 24, 16, 40), height=48, width=64)] * 3 + [opaque]))
    write(root / "malignant" / "malignant (1).png", noise(3, channels=3))
    write(root / "malignant" / "malignant (1)_mask.png", drawn((5, 15, 5, 25)))
    write(root / "normal" / "normal (1).png", noise(4, channels=3))
    write(root / "normal" / "normal (1)_mask.png", np.dstack([drawn()] * 3))
    return root


def tree(root: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder with its content and its time of change."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()
    }


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {name: content for name, (content, _) in tree(root).items()}
