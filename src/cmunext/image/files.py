"""Reading images and masks, and writing them. Every failure is one sentence that names the file and says what to do.

Files are recognised by their content, not by their name: PNG, JPEG, BMP, TIFF and GIF (the first frame). OpenCV decodes them from
bytes, so any path works; a cut file, a wrong checksum or a gigantic size is refused before it decodes.
"""

import glob
import io
import os
import re
import struct
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunext.errors import InputError, UsageError
from cmunext.image import png
from cmunext.storage import write_bytes

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif")  # what a folder is searched for
MAX_PIXELS = 100_000_000  # beyond it a header is taken for damaged or hostile
DARK, BRIGHT = 1 / 8, 7 / 8  # of a mask's brightest level: what is between is neither background nor, in areas, foreground
SMALL = 0.01  # share of a mask's foreground that makes no area
MIN_SIDE = 8  # a smaller picture shows nothing that could be outlined

_SIGNATURES = {png.SIGNATURE: "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"eXIf")  # beside the pixels; without tRNS there is no alpha

StrPath = str | os.PathLike[str]


def read_image(path: StrPath, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image: uint8 H x W (grey) or H x W x 3 (RGB), upright.

    The EXIF orientation is applied, a palette resolved, alpha dropped (where an 8-bit TIFF is translucent, its colours come as
    composed over black). Pixels of more than 8 bits, and real numbers, are stretched linearly so that the image's own minimum and
    maximum, over all channels, become 0 and 255; a constant image becomes 0.

    Raises
    ------
    UsageError : when there is no such file, or it is a folder.
    InputError : when it cannot be read or decoded, is cut off or damaged, is smaller than 8 x 8 or larger than `max_pixels`,
        or holds NaN.
    """
    pixels = _decode(path, max_pixels)
    if pixels.dtype != np.uint8:
        pixels = _stretch(pixels, path)
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def read_grey(path: StrPath, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read the levels of a mask as they were drawn: uint8 H x W, the brightest channel of each pixel; alpha is ignored.

    1-bit files give 0 and 255. 16-bit levels are divided by 257, so that full scale is 255, unless none is above 255: those are 8-bit
    levels (or labels) in a wider file. Real numbers up to 1 are multiplied by 255, others clipped to 0..255. `np.unique` of the result
    tells whether a mask is strictly binary. Raises as `read_image`.
    """
    return in_8_bits(read_levels(path, max_pixels), path)


def read_levels(path: StrPath, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """Read the levels of a mask as they are stored: H x W of any depth, the brightest channel of each pixel.

    Raises as `read_image`; and InputError for a mask with areas of several colours, of which nobody can tell which is foreground.
    """
    pixels = _decode(path, max_pixels)
    if pixels.ndim == 2:
        return pixels
    levels = pixels.max(axis=2)
    channels_on = (pixels > levels[..., None] / 2) & (levels > levels.max() * DARK)[..., None]
    colours = (channels_on @ np.array([4, 2, 1])).astype(np.uint8)
    areas = np.bincount(colours[_in_areas(colours)], minlength=8)[1:]
    if np.count_nonzero(areas > SMALL * np.count_nonzero(colours)) > 1:
        raise several_classes(path, "areas of several colours")
    return levels


def thresholded(stored: NDArray[Any], path: StrPath) -> NDArray[np.bool_]:
    """The levels of a mask as `read_levels` gives them -> bool of the same shape, true above half of their range.

    Raises InputError where areas are drawn with levels between black and the brightest, as the classes of a label map are, so that nobody
    can tell what is foreground. Blurred edges have such levels too, and no areas of them.
    """
    levels = in_8_bits(stored, path)
    brightest = int(levels.max())
    between = (levels > brightest * DARK) & (levels < brightest * BRIGHT)
    if brightest > 127 and between.any() and np.count_nonzero(between & _in_areas(stored)) > SMALL * np.count_nonzero(stored):
        raise several_classes(path, f"areas of the levels {first_levels(stored)}")
    return levels > 127


def several_classes(path: StrPath, found: str) -> InputError:
    """What is wrong with a mask of which nobody can tell the foreground, because of what was `found` in it."""
    return InputError(f"{path}: the mask has {found}; draw each class in a mask of its own, white (255) on black (0)")


def first_levels(stored: NDArray[Any]) -> str:
    """The lowest five levels of a mask, for a sentence."""
    values = np.unique(stored)
    return ", ".join(f"{value:g}" for value in values[:5]) + (", ..." if len(values) > 5 else "")


def _in_areas(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which pixels have the value of all their eight neighbours."""
    kernel = np.ones((3, 3), np.uint8)
    comparable = values if values.dtype in (np.uint8, np.uint16) else values.astype(np.float32)
    return cv2.erode(comparable, kernel) == cv2.dilate(comparable, kernel)


def read_mask(path: StrPath, max_pixels: int = MAX_PIXELS) -> NDArray[np.bool_]:
    """Read a mask: bool H x W, true where a level of `read_grey` lies above half of its range.

    Raises as `read_levels` and `thresholded`; and InputError for a mask that is dark but not black, which would otherwise be read as empty.
    """
    stored = read_levels(path, max_pixels)
    mask = thresholded(stored, path)
    if stored.any() and not mask.any():
        full = np.iinfo(stored.dtype).max if np.issubdtype(stored.dtype, np.integer) else 1 if stored.max() <= 1 else 255
        raise InputError(
            f"{path}: its foreground is drawn with level {stored.max():g} of {full}; draw it white (255) on black (0), as `cmunext prepare` does"
        )
    return mask


def plain(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image as H x W where its three channels are equal, else as it is."""
    return image[..., 0] if image.ndim == 3 and bool((image == image[..., :1]).all()) else image


def write_image(path: StrPath, image: NDArray[np.uint8]) -> None:
    """Write uint8 H x W or H x W x 3 (RGB) in the format of the suffix, in one step. It is not waited for the disk (`storage.settle` does).

    Raises UsageError for a suffix that is none of `IMAGE_SUFFIXES`, OSError when the disk refuses.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise UsageError(f"{path}: images are written as {', '.join(IMAGE_SUFFIXES)}; choose one of these suffixes")
    if suffix == ".png":
        write_bytes(path, png.encode(image), lasting=False)
        return
    if not cv2.haveImageWriter(suffix):
        raise UsageError(f"{path}: this OpenCV ({cv2.__version__}) cannot write {suffix}; write .png")
    _, encoded = cv2.imencode(suffix, image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    write_bytes(path, encoded.tobytes(), lasting=False)


def write_mask(path: StrPath, mask: NDArray[np.bool_]) -> None:
    """Write a mask, bool H x W, as a grey PNG of 0 and 255, in one step. Raises as `write_image`."""
    if Path(path).suffix.lower() != ".png":
        raise UsageError(f"{path}: masks are written without loss; name it .png")
    write_image(path, mask.view(np.uint8) * np.uint8(255))


def find_images(paths: Iterable[StrPath], left_out: Callable[[Path], object] = lambda path: None) -> list[Path]:
    """Expand files, folders (the images lying in them, not deeper, in natural order) and glob patterns into files, each once.

    Of a folder, files whose names begin with a dot are not looked at. `left_out` is told of each other file that is not taken: one that
    is no image, and a mask of one, as in BUSI's NAME_mask.png and NAME_mask_1.png beside NAME.png.

    Raises UsageError for a path or pattern that matches nothing, and for a folder without an image.
    """
    found: dict[Path, None] = {}  # a set that keeps its order
    listed: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted((file for file in path.iterdir() if not file.name.startswith(".") and file.is_file()), key=_natural)
            images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
            stems = {file.stem for file in images}
            matches = [file for file in images if not _is_mask(file, stems)]
            listed += files
            if not matches:
                raise UsageError(
                    f"{path}: there is no image in this folder ({', '.join(IMAGE_SUFFIXES)}); name another, or files by their names"
                )
        elif path.exists() or not glob.has_magic(str(path)):  # a name may hold [ ] or *, and then it means itself
            matches = [_existing(path)]
        else:
            matches = sorted(filter(_is_image, Path(path.anchor).glob(str(path.relative_to(path.anchor)))), key=_natural)
            if not matches:
                raise UsageError(f"{path}: no image matches this pattern; check it, or name a folder")
        found.update(dict.fromkeys(matches))
    for file in listed:
        if file not in found:
            left_out(file)
    return list(found)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _is_mask(path: Path, stems: Collection[str]) -> bool:
    """Whether its name is NAME_mask, or NAME_mask_1 and the like, with NAME one of `stems`."""
    named = re.fullmatch(r"(.+)_mask([^a-z].*)?", path.stem)
    return named is not None and named[1] in stems


def _natural(path: Path) -> list[Any]:
    """Sorting key under which `case 10` follows `case 9`. Odd places hold numbers, even ones text, so two keys always compare."""
    return [int(part) if place % 2 else part.lower() for place, part in enumerate(re.split(r"(\d+)", str(path)))]


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UsageError(f"{path}: there is no such file; check the name")
    return path


def _decode(path: StrPath, max_pixels: int) -> NDArray[Any]:
    """The pixels as stored, H x W or H x W x 3 (BGR), of any depth."""
    data = _read_bytes(Path(path))
    kind = next((kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)), None)
    if kind is None:
        raise InputError(f"{path}: this is not a PNG, JPEG, BMP, TIFF or GIF image; convert it to one of these")
    _check_size(data, kind, path, max_pixels)
    if kind == "PNG":
        data = _bare_png(data, path)
    elif kind == "JPEG" and data.find(b"\xff\xd9", data.rfind(b"\xff\xda")) < 0:  # no end of image after the last start of scan
        raise InputError(f"{path}: this JPEG image is cut off; copy or export it again")
    silence_opencv()
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:  # its message is about OpenCV's source code
        pixels = None
    if pixels is None:
        raise InputError(
            f"{path}: this {kind} image is cut off, damaged, or of a kind that this OpenCV ({cv2.__version__}) cannot read; "
            "export it again, as PNG"
        )
    if kind == "TIFF" and pixels.dtype != np.uint8 and _min_is_white(data):  # which OpenCV undoes for 8 bits only
        pixels = (np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else pixels.max()) - pixels
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        raise InputError(f"{path}: this {kind} image has {pixels.shape[2]} channels; export it as grey or RGB")
    return pixels


def _read_bytes(path: Path) -> bytes:
    if _existing(path).is_dir():
        raise UsageError(f"{path}: this is a folder; name an image")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror}); check the permissions and the disk") from error
    if not data:
        raise InputError(f"{path}: this file is empty; copy or export it again")
    return data


def _check_size(data: bytes, kind: str, path: StrPath, max_pixels: int) -> None:
    """Refuse by the size that the header declares, before any memory is spent on pixels."""
    import imagesize  # here, since it brings an HTTP client with it

    try:
        width, height = imagesize.get(io.BytesIO(data))
    except (ValueError, struct.error) as error:
        raise InputError(f"{path}: the header of this {kind} image is cut off or damaged; copy or export it again") from error
    if width <= 0 or height <= 0:
        raise InputError(f"{path}: the header of this {kind} image declares no size; copy or export it again")
    if width * height > max_pixels:
        raise InputError(f"{path}: {width} x {height} pixels are more than the {max_pixels:,} allowed; crop it or scale it down")
    if min(width, height) < MIN_SIDE:
        raise InputError(f"{path}: {width} x {height} pixels are too few; at least {MIN_SIDE} x {MIN_SIDE} are needed")


def _min_is_white(tiff: bytes) -> bool:
    """Whether 0 stands for white in a TIFF's first image: its PhotometricInterpretation, tag 262, is 0 (TIFF 6.0, section 4)."""
    order = "<" if tiff.startswith(b"II") else ">"
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        found = {
            tag: value
            for tag, value in (struct.unpack_from(f"{order}H6xH", tiff, directory + 2 + 12 * k) for k in range(entries))
        }
    except struct.error:
        return False
    return found.get(262) == 0


def _bare_png(data: bytes, path: StrPath) -> bytes:
    """The PNG reduced to pixels (no longer compressed) and orientation, every chunk's checksum verified.

    libpng writes its warnings about other chunks (colour profiles, mostly) straight to stderr, where nothing can hold them back.
    """
    kept: list[tuple[bytes, bytes]] = []
    pixels: list[bytes] = []
    position = len(png.SIGNATURE)
    while position + 12 <= len(data):  # length, type, content, checksum
        (length,) = struct.unpack_from(">I", data, position)
        chunk = data[position : position + 12 + length]
        if len(chunk) < 12 + length:
            break
        name, content = chunk[4:8], chunk[8:-4]
        if png.checksum(name, content) != struct.unpack(">I", chunk[-4:])[0]:
            raise InputError(f"{path}: this PNG image is damaged (a checksum is wrong); copy or export it again")
        if name == b"IDAT":
            pixels.append(content)
        elif name in _PNG_CHUNKS:
            kept.append((name, content))
        elif name == b"IEND":
            return png.assemble((*kept, (b"IDAT", png.stored(b"".join(pixels))), (b"IEND", b"")))
        position += len(chunk)
    raise InputError(f"{path}: this PNG image is cut off; copy or export it again")


def silence_opencv() -> None:
    """Keep OpenCV's own log lines off stderr: what they are about, our errors say in a sentence."""
    log = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging  # OpenCV 4 has it at the top, 5 in a module of its own
    log.setLogLevel(0)


def in_8_bits(levels: NDArray[Any], path: StrPath) -> NDArray[np.uint8]:
    """The levels of a mask as `read_grey` gives them. Raises InputError for NaN."""
    if levels.dtype == np.uint8:
        return levels
    if levels.dtype == np.uint16:
        return (levels if levels.max() <= 255 else np.round(levels / 257)).astype(np.uint8)
    levels = _finite(levels, path)
    return np.round(np.clip(levels * 255 if levels.max() <= 1 else levels, 0, 255)).astype(np.uint8)


def _finite(pixels: NDArray[Any], path: StrPath) -> NDArray[np.float64]:
    values = pixels.astype(np.float64)
    if not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise InputError(f"{path}: {bad} of its {values.size} values are NaN or infinite; replace them")
    return values


def _stretch(pixels: NDArray[Any], path: StrPath) -> NDArray[np.uint8]:
    values = _finite(pixels, path)
    low, high = values.min(), values.max()
    return np.round((values - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
