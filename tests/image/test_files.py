"""Reading and writing images: every kind to the same pixels, every bad file to one sentence."""

import struct
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.encoded import chunk, encoded, png, png_header, turned_jpeg

from cmunext.errors import InputError, UsageError
from cmunext.image.files import find_images, read_grey, read_image, read_mask, write_image, write_mask

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (20, 24), dtype=np.uint8)
RGB = RANDOM.integers(0, 256, (20, 24, 3), dtype=np.uint8)
ALPHA = RANDOM.integers(0, 256, (20, 24, 1), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(20), np.arange(24)).astype(np.uint8) * 4  # survives JPEG
PALETTE = RANDOM.integers(0, 256, (256, 3), dtype=np.uint8)


def rows(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(len(pixels), -1)


LOSSLESS = {
    "grey.png": (encoded(".png", GREY), GREY),
    "rgb.png": (encoded(".png", RGB), RGB),
    "rgba.png": (png(rows(np.dstack([RGB, ALPHA])), 6), RGB),
    "grey-alpha.png": (png(rows(np.dstack([GREY, ALPHA])), 4), np.dstack([GREY] * 3)),
    "palette.png": (png(GREY, 3, palette=PALETTE.tobytes()), PALETTE[GREY]),
    "transparent-palette.png": (png(GREY, 3, palette=PALETTE.tobytes(), extra={b"tRNS": bytes(256)}), PALETTE[GREY]),
    "one-bit.png": (png(np.packbits(GREY > 127, axis=1), 0, depth=1), (GREY > 127) * np.uint8(255)),
    "grey.bmp": (encoded(".bmp", GREY), GREY),
    "rgb.bmp": (encoded(".bmp", RGB), RGB),
    "grey.tif": (encoded(".tif", GREY), GREY),
    "rgb.TIFF": (encoded(".tif", RGB), RGB),
    "named-wrongly.jpg": (encoded(".png", RGB), RGB),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_every_lossless_kind_gives_the_pixels_that_were_put_in(tmp_path: Path, name: str) -> None:
    data, expected = LOSSLESS[name]
    path = tmp_path / name
    path.write_bytes(data)
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


def test_a_tiff_in_which_0_is_white(tmp_path: Path) -> None:
    """As an export of MONOCHROME1; of 16 bits, which OpenCV decodes as they are stored."""
    pixels = GREY.astype(np.uint16) * 257
    black, white = struct.pack("<HHIH", 262, 3, 1, 1), struct.pack("<HHIH", 262, 3, 1, 0)
    data = encoded(".tif", 65535 - pixels)
    assert data.count(black) == 1
    path = tmp_path / "inverted.tif"
    path.write_bytes(data.replace(black, white))
    (tmp_path / "plain.tif").write_bytes(encoded(".tif", pixels))
    np.testing.assert_array_equal(read_image(path), read_image(tmp_path / "plain.tif"))
    np.testing.assert_array_equal(read_grey(path), GREY)


def test_jpeg_and_a_path_beyond_ascii(tmp_path: Path) -> None:
    path = tmp_path / "Bild – грудь – 乳腺 (1).jpg"
    path.write_bytes(encoded(".jpg", np.dstack([SMOOTH, SMOOTH, 255 - SMOOTH])))
    image = read_image(path)
    assert image.shape == (20, 24, 3)
    assert np.abs(image[..., 0].astype(int) - SMOOTH).max() < 40
    assert np.abs(image[..., 2].astype(int) - (255 - SMOOTH)).max() < 40  # and not red for blue


@pytest.mark.skipif(not cv2.haveImageReader("x.gif") and cv2.__version__ < "4.12", reason="this OpenCV cannot read GIF")
def test_gif(tmp_path: Path) -> None:
    path = tmp_path / "first.gif"
    few = (GREY // 128 * 255)[..., None].repeat(3, axis=2)
    path.write_bytes(encoded(".gif", few))
    image = read_image(path)
    assert image.shape[:2] == (20, 24)
    np.testing.assert_array_equal((image.reshape(20, 24, -1).max(axis=2)) > 127, few[..., 0] > 127)


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, 3), (8, 1)])
def test_an_image_stands_upright_as_its_exif_says(tmp_path: Path, orientation: int, turn: int) -> None:
    path = tmp_path / "turned.jpg"
    path.write_bytes(turned_jpeg(SMOOTH, orientation))
    expected = np.rot90(SMOOTH, turn)
    assert read_image(path).shape[:2] == expected.shape
    assert np.abs(read_grey(path).astype(int) - expected).max() < 40


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_stretched_between_minimum_and_maximum(tmp_path: Path, suffix: str) -> None:
    deep = (1000 + GREY.astype(np.uint16) * 7).astype(np.uint16)
    path = tmp_path / f"deep{suffix}"
    path.write_bytes(encoded(suffix, deep))
    exact = (deep - float(deep.min())) * (255 / float(deep.max() - deep.min()))
    np.testing.assert_array_equal(read_image(path), np.round(exact).astype(np.uint8))


def test_sixteen_bit_colours_keep_their_relation(tmp_path: Path) -> None:
    deep = RGB.astype(np.uint16) * 100
    path = tmp_path / "deep.tif"
    path.write_bytes(encoded(".tif", deep))
    exact = (deep - float(deep.min())) * (255 / float(deep.max() - deep.min()))
    np.testing.assert_array_equal(read_image(path), np.round(exact).astype(np.uint8))


def test_real_numbers_are_stretched_and_a_constant_is_black(tmp_path: Path) -> None:
    path = tmp_path / "real.tif"
    path.write_bytes(encoded(".tif", GREY.astype(np.float32) / 99 - 1))
    assert np.abs(read_image(path).astype(int) - cv2.normalize(GREY, None, 0, 255, cv2.NORM_MINMAX)).max() <= 1
    path.write_bytes(encoded(".tif", np.full((20, 24), 3.5, np.float32)))
    assert not read_image(path).any()


def test_masks_of_every_mode_give_the_same_foreground(tmp_path: Path) -> None:
    truth = np.zeros((20, 24), bool)
    truth[4:12, 5:20] = True
    grey = truth * np.uint8(255)
    colour = np.dstack([grey] * 3)
    transparent = np.dstack([colour, np.zeros_like(grey)])
    kinds = {
        "1": png(np.packbits(truth, axis=1), 0, depth=1),
        "L": encoded(".png", grey),
        "RGB": encoded(".png", colour),
        "RGBA, transparent throughout": png(rows(transparent), 6),
        "red": encoded(".png", np.dstack([grey, 0 * grey, 0 * grey])),
        "palette": png(truth.astype(np.uint8), 3, palette=bytes([0, 0, 0, 255, 255, 255])),
        "16 bit": encoded(".png", grey.astype(np.uint16) * 257),
        "8 bits in 16": encoded(".png", grey.astype(np.uint16)),
        "JPEG": encoded(".jpg", grey),
    }
    path = tmp_path / "mask.png"
    for kind, data in kinds.items():
        path.write_bytes(data)
        np.testing.assert_array_equal(read_mask(path), truth, err_msg=kind)
        assert (len(np.unique(read_grey(path))) == 2) == (kind != "JPEG"), kind
    path.write_bytes(encoded(".tif", truth.astype(np.float32)))
    np.testing.assert_array_equal(read_mask(path), truth)


def test_half_of_the_range_decides(tmp_path: Path) -> None:
    path = tmp_path / "levels.png"
    levels = np.tile(np.array([0, 64, 127, 128, 200, 255, 0, 0], np.uint8), (8, 1))
    path.write_bytes(encoded(".png", levels))
    np.testing.assert_array_equal(read_grey(path), levels)
    np.testing.assert_array_equal(read_mask(path)[0], [0, 0, 0, 1, 1, 1, 0, 0])


def squares(*values: int | tuple[int, int, int]) -> np.ndarray:
    """A square of 20 x 20 of each value side by side on black: uint8 or uint16."""
    drawn = np.zeros((40, 40 * len(values), *np.shape(values[0])), np.uint16 if np.max(values) > 255 else np.uint8)
    for number, value in enumerate(values):
        drawn[10:30, 40 * number + 10 : 40 * number + 30] = value
    return drawn


@pytest.mark.parametrize(
    "values",
    [
        (85, 170, 255),
        (100, 200),
        tuple(range(10, 201, 10)),
        (200 * 257, 50 * 257),
        ((0, 0, 255), (0, 255, 0)),
        ((0, 0, 128), (0, 128, 128)),
    ],
)
def test_a_mask_of_several_classes_is_refused(tmp_path: Path, values: tuple) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(encoded(".png", squares(*values)))
    with pytest.raises(InputError, match="draw each class in a mask of its own"):
        read_mask(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("blur", [0, 1, 3])
@pytest.mark.parametrize("value", [255, 200, (0, 0, 255), (0, 200, 255)])
def test_blurred_and_coloured_edges_make_no_second_class(tmp_path: Path, suffix: str, blur: int, value) -> None:
    path, drawn = tmp_path / f"mask{suffix}", squares(value)
    path.write_bytes(encoded(suffix, cv2.GaussianBlur(drawn, (0, 0), blur) if blur else drawn))
    truth = drawn > 0 if drawn.ndim == 2 else drawn.any(-1)
    found = read_mask(path)
    assert (found & truth).sum() / (found | truth).sum() > 0.7


def test_a_dark_mask_is_refused_and_an_empty_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    for level in (1, 120, 127):
        path.write_bytes(encoded(".png", (GREY > 127) * np.uint8(level)))
        with pytest.raises(InputError, match=f"drawn with level {level} of 255; draw it white"):
            read_mask(path)
    path.write_bytes(encoded(".png", (GREY > 127) * np.uint16(1)))
    with pytest.raises(InputError, match="drawn with level 1 of 65535"):
        read_mask(path)
    path.write_bytes(encoded(".tif", (GREY > 127) * np.float32(0.25)))
    with pytest.raises(InputError, match=r"drawn with level 0.25 of 1;"):
        read_mask(path)
    path.write_bytes(encoded(".png", np.zeros((20, 24), np.uint8)))
    assert not read_mask(path).any()


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


BIG_JPEG = encoded(".jpg", RANDOM.integers(0, 256, (200, 200, 3), dtype=np.uint8))
BIG_PNG = encoded(".png", RANDOM.integers(0, 256, (200, 200, 3), dtype=np.uint8))
NAN = np.where(GREY == 7, np.nan, GREY).astype(np.float32)
BAD = {
    "empty.png": (b"", "empty"),
    "text.png": (b"not a picture at all\n" * 20, "not a PNG, JPEG, BMP, TIFF or GIF"),
    "cut.png": (BIG_PNG[: len(BIG_PNG) * 2 // 3], "cut off"),
    "nearly-whole.png": (BIG_PNG[:-12], "cut off"),
    "flipped.png": (_flipped(BIG_PNG), "checksum is wrong"),
    "header-only.png": (BIG_PNG[:12], "header|cut off"),
    "cut.jpg": (BIG_JPEG[: len(BIG_JPEG) * 2 // 3], "cut off"),
    "cut.tif": (encoded(".tif", RGB)[:700], "cut off|header"),
    "cut.bmp": (encoded(".bmp", RGB)[:700], "cut off"),
    "gigantic.png": (png_header(20000, 20000), "20000 x 20000 pixels are more than the 100,000,000 allowed"),
    "no-size.png": (png_header(0, 5), "declares no size"),
    "one-pixel.png": (encoded(".png", GREY[:1, :1]), "1 x 1 pixels are too few"),
    "nan.tif": (encoded(".tif", NAN), "NaN or infinite"),
    "infinite.tif": (encoded(".tif", np.where(GREY == 7, np.inf, GREY).astype(np.float32)), "NaN or infinite"),
}


@pytest.mark.parametrize("reader", [read_image, read_grey, read_mask])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gives_one_sentence_and_no_noise(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, reader) -> None:
    data, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        reader(path)
    assert not isinstance(caught.value, UsageError)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_gigantic_image_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(encoded(".png", np.zeros((300, 300), np.uint8)))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match="300 x 300"):
        read_image(path, max_pixels=89_999)


def test_missing_file_and_folder_are_wrong_calls(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(UsageError, match="folder"):
        read_image(tmp_path)


def test_chunks_that_libpng_warns_about_make_no_noise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "profile.png"
    path.write_bytes(png(GREY, 0, extra={b"iCCP": b"bad\0\0" + zlib.compress(b"no profile"), b"gAMA": struct.pack(">I", 0)}))
    np.testing.assert_array_equal(read_image(path), GREY)
    assert capfd.readouterr().err == ""


def test_what_follows_the_end_of_a_png_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "trailing.png"
    path.write_bytes(encoded(".png", GREY) + b"appended by a scanner" + chunk(b"IDAT", b"x"))
    np.testing.assert_array_equal(read_image(path), GREY)


@pytest.mark.parametrize("image", [GREY, RGB], ids=["grey", "rgb"])
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_what_is_written_is_read(tmp_path: Path, suffix: str, image: np.ndarray) -> None:
    write_image(tmp_path / "new folder" / f"x{suffix}", image)
    np.testing.assert_array_equal(read_image(tmp_path / "new folder" / f"x{suffix}"), image)


def test_a_mask_is_written_as_0_and_255(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    write_mask(path, GREY > 99)
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), (GREY > 99) * np.uint8(255))
    with pytest.raises(UsageError, match=r"\.png"):
        write_mask(tmp_path / "mask.jpg", GREY > 99)
    with pytest.raises(UsageError, match="suffixes"):
        write_image(tmp_path / "image.txt", GREY)
    assert [each.name for each in tmp_path.iterdir()] == ["mask.png"]


def test_a_write_that_fails_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, full_disk: Callable[..., AbstractContextManager[None]]
) -> None:
    path = tmp_path / "mask.png"
    write_mask(path, GREY > 99)
    before = path.read_bytes()
    with full_disk(20), pytest.raises(OSError, match="File too large"):
        write_mask(path, GREY > 5)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["mask.png"]


def test_files_folders_and_patterns_are_found_in_natural_order(tmp_path: Path) -> None:
    for name in ("case (10).png", "case (9).png", "Case (2).JPG", "notes.txt", ".hidden.png", "odd[1].tif"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "inner.png").write_bytes(b"x")
    names = [path.name for path in find_images([tmp_path])]
    assert names == ["Case (2).JPG", "case (9).png", "case (10).png", "odd[1].tif"]
    assert [path.name for path in find_images([tmp_path / "*.png"])] == ["case (9).png", "case (10).png"]
    assert [path.name for path in find_images([tmp_path / "**" / "*.png"])] == ["case (9).png", "case (10).png", "inner.png"]
    assert find_images([tmp_path / "odd[1].tif"]) == [tmp_path / "odd[1].tif"]  # a name before it is a pattern
    twice = find_images([tmp_path / "case (9).png", tmp_path, tmp_path / "notes.txt"])
    assert [path.name for path in twice] == ["case (9).png", "Case (2).JPG", "case (10).png", "odd[1].tif", "notes.txt"]


def test_of_a_folder_masks_of_its_images_and_other_files_are_left_out(tmp_path: Path) -> None:
    taken = ("a (1).png", "a (2).png", "alone_mask.png", "a (1)_masked.png", "A_mask.png", "a (1)_overlay.png")
    masks = ("a (1)_mask.png", "a (1)_mask_1.png", "a (2)_mask_lesion.PNG", "a (2)_mask(2).png", "alone_mask_mask.png")
    for name in (*taken, *masks, "clip.mp4", "notes", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "deeper").mkdir()
    left_out: list[Path] = []
    assert {path.name for path in find_images([tmp_path], left_out.append)} == set(taken)
    assert {path.name for path in left_out} == {*masks, "clip.mp4", "notes"}
    assert find_images([tmp_path / masks[0]]) == [tmp_path / masks[0]]  # which is meant
    assert len(find_images([tmp_path / "a (1)_*.png"])) == 4  # a pattern takes what it matches


def test_patterns_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.png").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert find_images(["a/*.png"]) == [Path("a/one.png")]
    monkeypatch.chdir(tmp_path / "a")
    assert find_images(["../a/*.png"]) == [Path("../a/one.png")]


@pytest.mark.parametrize(
    ("given", "message"), [("none.png", "no such file"), ("*.png", "no image matches"), ("empty", "no image in")]
)
def test_what_is_not_there_is_a_wrong_call(tmp_path: Path, given: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=message):
        find_images([tmp_path / given])
