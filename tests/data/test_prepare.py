import errno

import cv2
import numpy as np
import pytest
from tests.data.folders import contents, dataset, drawn, noise, raw_busi, stored, tree, write
from tests.encoded import encoded, png

import cmunext.data.prepare as module
from cmunext.data.layout import Layout
from cmunext.data.prepare import binary, prepare
from cmunext.data.table import read_table
from cmunext.errors import InputError, UsageError


def test_busi_sample(shared, tmp_path):
    """Acceptance 3 of the core. The official data set, which others prepared, is the independent truth of the merged masks."""
    src, dst = shared / "data" / "busi_raw_sample", tmp_path / "busi"
    report = prepare(src, dst)
    assert (report.kind, report.cases, report.written, report.unchanged) == ("busi", 10, 10, 0)
    assert report.merged == ("benign (25)", "benign (4)")
    assert report.resized == ("benign (4)",)
    assert report.empty == ("normal (1)", "normal (2)", "normal (3)")
    assert (report.binarised, report.left_out, report.skipped) == ((), (), ())

    layout = Layout.open(dst)
    assert len(layout.cases) == 10
    for case in layout.cases:
        raw = src / case.split()[0] / f"{case}.png"
        assert np.array_equal(stored(layout.image(case)), stored(raw))
        mask = stored(layout.masks(case)[0])
        assert mask.dtype == np.uint8
        assert mask.shape == stored(raw).shape[:2]
        assert set(np.unique(mask)) == ({0} if case.startswith("normal") else {0, 255})
    for case in ("benign (25)", "malignant (1)", "malignant (2)", "malignant (3)"):
        assert np.array_equal(stored(layout.masks(case)[0]), stored(shared / "data" / "busi" / "masks" / "0" / f"{case}.png"))

    first = stored(src / "benign" / "benign (4)_mask.png")[..., 0] > 127
    second = stored(src / "benign" / "benign (4)_mask_1.png")[..., 0] > 127
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(first.shape, second.shape, strict=True))
    assert np.array_equal(stored(layout.masks("benign (4)")[0]) > 0, first | second[np.ix_(rows, columns)])

    before = tree(dst)
    again = prepare(src, dst)
    assert tree(dst) == before
    assert (again.cases, again.written, again.unchanged) == (10, 0, 10)
    assert (again.merged, again.resized, again.empty) == (report.merged, report.resized, report.empty)


def test_raw_busi_in_small(tmp_path):
    src = raw_busi(tmp_path / "raw")
    report = prepare(src, tmp_path / "out")
    assert report.merged == ("benign (1)",)
    assert report.resized == ("benign (2)",)
    masks = tmp_path / "out" / "masks" / "0"
    assert np.array_equal(stored(masks / "benign (1).png"), drawn((2, 8, 2, 8), (12, 20, 16, 28)))
    assert np.array_equal(stored(masks / "benign (2).png"), drawn((4, 12, 8, 20)))
    assert stored(tmp_path / "out" / "images" / "benign (2).png").ndim == 2
    assert stored(tmp_path / "out" / "images" / "benign (1).png").shape == (24, 32, 3)


def test_normals_are_left_out_on_request_and_nesting_is_looked_through(tmp_path):
    raw_busi(tmp_path / "archive" / "Dataset_BUSI_with_GT")
    (tmp_path / "archive" / "__MACOSX" / "benign").mkdir(parents=True)
    write(tmp_path / "archive" / "__MACOSX" / "benign" / "benign (9).png", noise(9))
    report = prepare(tmp_path / "archive", tmp_path / "out", normals=False)
    assert report.left_out == ("normal (1)",)
    assert Layout.open(tmp_path / "out").cases == ("benign (1)", "benign (2)", "malignant (1)")


def test_modes_of_masks(tmp_path):
    """One bit a pixel, a palette, a transparent border, the levels 0 and 1 in 8 and 16 bits, JPEG: all become the same mask."""
    truth = drawn((4, 10, 8, 16))
    files = {
        "bit": png(np.packbits(truth > 0, axis=1), 0, depth=1),
        "palette": png((truth > 0).astype(np.uint8), 3, palette=bytes([0, 0, 0, 255, 255, 255])),
        "alpha": encoded(".png", np.dstack([truth, truth, truth, 255 - truth])),
        "red": encoded(".png", np.dstack([truth, 0 * truth, 0 * truth])),
        "one": encoded(".png", truth // 255),
        "one of 16 bits": encoded(".png", truth.astype(np.uint16) // 255),
        "grey": encoded(".png", truth // 3),
        "jpeg": encoded(".jpg", truth),
    }
    for name, content in files.items():
        write(tmp_path / "raw" / "images" / f"{name}.png", noise(1))
        path = tmp_path / "raw" / "masks" / (f"{name}.jpg" if name == "jpeg" else f"{name}.png")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    report = prepare(tmp_path / "raw", tmp_path / "out")
    assert report.skipped == ()
    assert set(report.binarised) >= {"one", "one of 16 bits", "grey", "jpeg"}
    assert not {"bit", "palette", "alpha", "red"} & set(report.binarised)
    for name in files:
        assert np.array_equal(stored(tmp_path / "out" / "masks" / "0" / f"{name}.png"), truth), name


@pytest.mark.parametrize("levels", [[0, 1, 2], [0, 40, 80, 120], [7, 7, 7], [3, 90, 90], [0, *range(1, 301)]])
def test_masks_of_which_nobody_can_tell_the_foreground(tmp_path, levels):
    with pytest.raises(InputError, match=r"the mask .* level"):
        binary(np.array([levels], np.uint16 if max(levels) > 255 else np.uint8), tmp_path)


def test_masks_of_several_labels_and_turned_ones_are_skipped(tmp_path):
    truth, raw = drawn((4, 10, 8, 16)), tmp_path / "raw"
    for number, mask in enumerate((truth // 255, truth // 255, truth // 255 * 2, truth.T, truth[::2, ::2])):
        write(raw / "images" / f"{number}.png", noise(number))
        write(raw / "masks" / f"{number}.png", mask)
    report = prepare(raw, tmp_path / "out")
    assert (report.cases, report.resized) == (3, ("4",))
    reasons = dict(report.skipped)
    assert "level 2 and that of 0 with 1; if these are classes" in reasons.pop("2")
    assert "the mask is 32 x 24 pixels and its image 24 x 32: one of them is turned" in reasons.pop("3")
    assert not reasons


def test_classes_in_folders_of_their_own_may_have_a_label_each(tmp_path):
    for case in "ab":
        write(tmp_path / "raw" / "images" / f"{case}.png", noise(ord(case)))
        for number, box in enumerate(((4, 10, 8, 16), (12, 20, 8, 16))):
            write(tmp_path / "raw" / "masks" / str(number) / f"{case}.png", drawn(box) // 255 * (number + 1))
    report = prepare(tmp_path / "raw", tmp_path / "out")
    assert (report.cases, report.skipped) == (2, ())


def test_bad_files_are_skipped_with_the_reason_and_the_others_are_done(tmp_path):
    src = raw_busi(tmp_path / "raw")
    benign = src / "benign"
    write(benign / "benign (3).png", noise(5))  # an image without a mask
    write(benign / "benign (4)_mask.png", drawn())  # a mask without an image
    write(benign / "benign (5).png", noise(6))
    (benign / "benign (5)_mask.png").write_bytes(b"")
    write(benign / "benign (6)_mask.png", drawn((1, 9, 1, 9)))
    (benign / "benign (6).png").write_bytes(encoded(".png", noise(7))[:-40])
    write(benign / "benign (7)_mask.png", drawn((1, 9, 1, 9)))
    (benign / "benign (7).png").write_text("text, not an image")
    write(benign / "benign (8).png", noise(8))
    write(benign / "benign (8)_mask.png", drawn((1, 9, 1, 9)) // 255 * np.arange(32, dtype=np.uint8))
    write(benign / "benign (9).png", noise(9))
    write(benign / "benign (9)_mask.png", drawn((1, 9, 1, 9)))
    (benign / "benign (9)_mask_1.png").write_bytes(b"")  # half of the truth is no truth

    report = prepare(src, tmp_path / "out")
    reasons = dict(report.skipped)
    assert report.cases == 4
    assert set(Layout.open(tmp_path / "out").cases) == {"benign (1)", "benign (2)", "malignant (1)", "normal (1)"}
    assert {path.name for path in (tmp_path / "out").rglob("*.png")} == {
        f"{case}.png" for case in Layout.open(tmp_path / "out").cases
    }
    for case, reason in {
        "benign (3)": "no mask",
        "benign (4)_mask.png": "no image",
        "benign (5)": "empty",
        "benign (6)": "cut off",
        "benign (7)": "not a PNG",
        "benign (8)": "levels",
        "benign (9)": "empty",
    }.items():
        assert reason in reasons.pop(case)
    assert not reasons


def test_nothing_is_overwritten_silently(tmp_path):
    src, dst = raw_busi(tmp_path / "raw"), tmp_path / "out"
    prepare(src, dst)
    edited = write(dst / "masks" / "0" / "benign (1).png", drawn((0, 5, 0, 5)))
    (dst / "images" / "malignant (1).png").write_bytes(b"")
    (dst / "images" / "benign (2).png").unlink()
    before = tree(dst)
    with pytest.raises(UsageError, match=r"'masks/0/benign \(1\).png', 'images/malignant \(1\).png'.*--overwrite") as raised:
        prepare(src, dst)
    assert "benign (2)" not in str(raised.value)
    assert tree(dst) == before

    report = prepare(src, dst, overwrite=True)
    assert (report.cases, report.written, report.unchanged) == (4, 3, 1)
    assert np.array_equal(stored(edited), drawn((2, 8, 2, 8), (12, 20, 16, 28)))
    prepare(src, tmp_path / "fresh")
    assert contents(dst) == contents(tmp_path / "fresh")


def test_the_same_pixels_in_another_encoding_are_left_alone(tmp_path):
    src, dst = raw_busi(tmp_path / "raw"), tmp_path / "out"
    prepare(src, dst)
    path = dst / "images" / "benign (1).png"
    assert cv2.imwrite(str(path), stored(path), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    before = tree(dst)
    assert prepare(src, dst).unchanged == 4
    assert tree(dst) == before


def test_two_runs_give_the_same_bytes(tmp_path):
    src = raw_busi(tmp_path / "raw")
    prepare(src, tmp_path / "a")
    prepare(src, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == 8


def test_a_full_disk_leaves_only_whole_files_and_the_next_run_goes_on(tmp_path, monkeypatch):
    src, dst = raw_busi(tmp_path / "raw"), tmp_path / "out"
    calls = []

    def failing(path, pixels):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, pixels.astype(np.uint8) * 255)

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_mask", failing)
        with pytest.raises(OSError, match="No space left"):
            prepare(src, dst)
    report = prepare(src, dst)
    assert (report.written, report.unchanged) == (2, 2)
    prepare(src, tmp_path / "whole")
    assert contents(dst).keys() == contents(tmp_path / "whole").keys()
    assert all(np.array_equal(stored(dst / name), stored(tmp_path / "whole" / name)) for name in contents(dst))


@pytest.mark.parametrize("where", ["raw", "raw/out", "raw/benign", "raw/../raw/x", "link/x"])
def test_output_in_the_input(tmp_path, where):
    src = raw_busi(tmp_path / "raw")
    (tmp_path / "link").symlink_to(src)
    before = tree(src)
    with pytest.raises(UsageError, match="lies in the input"):
        prepare(src, tmp_path / where)
    assert tree(src) == before


def test_input_that_is_a_folder_of_the_output(tmp_path):
    raw_busi(tmp_path / "set" / "images")
    with pytest.raises(UsageError, match="lies in the input"):
        prepare(tmp_path / "set" / "images", tmp_path / "set")


def test_output_that_cannot_be_written(tmp_path):
    src = raw_busi(tmp_path / "raw")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        prepare(src, tmp_path / "file")
    with pytest.raises(OSError, match="file"):
        prepare(src, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a.png", "a.png"),
        ("a.jpg", "a.png"),
        ("a.png", "a_mask.png"),
        ("a.png", "a_seg.png"),
        ("a.png", "a_GT.bmp"),
        ("a.png", "a-segmentation.tif"),
        ("a.png", "mask_a.png"),
        ("a_mask.png", "a_mask.png"),
        ("a_image.png", "a_mask.png"),
        ("img_7.png", "mask_7.png"),
        ("case_image_2.png", "case_mask_2.png"),
    ],
)
@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("imgs", "gt"), ("Image", "Labels")])
def test_names_that_pair(tmp_path, images, masks, image, mask):
    write(tmp_path / "raw" / "set" / images / image, noise(1))
    write(tmp_path / "raw" / "set" / images / "zz_image_9.png", noise(2))
    write(tmp_path / "raw" / "set" / masks / mask, drawn((4, 10, 8, 16)))
    write(tmp_path / "raw" / "set" / masks / "zz_mask_9.png", drawn((0, 2, 0, 2)))
    report = prepare(tmp_path / "raw", tmp_path / "out", kind="pairs")
    name = image.split(".")[0]
    assert report.skipped == ()
    assert Layout.open(tmp_path / "out").cases == tuple(sorted([name, "zz_image_9"]))
    assert np.array_equal(stored(tmp_path / "out" / "masks" / "0" / f"{name}.png"), drawn((4, 10, 8, 16)))


def test_pairs_with_several_masks_to_an_image_and_names_that_start_alike(tmp_path):
    for name in ("a", "a_1", "b"):
        write(tmp_path / "raw" / "images" / f"{name}.png", noise(1))
    for name, box in {"a_mask_7": (0, 2, 0, 2), "a_mask_8": (8, 9, 8, 9), "a_1_mask": (3, 5, 3, 5), "b": (1, 2, 1, 2)}.items():
        write(tmp_path / "raw" / "masks" / f"{name}.png", drawn(box))
    report = prepare(tmp_path / "raw", tmp_path / "out")
    assert report.merged == ("a",)
    assert np.array_equal(stored(tmp_path / "out" / "masks" / "0" / "a.png"), drawn((0, 2, 0, 2), (8, 9, 8, 9)))
    assert np.array_equal(stored(tmp_path / "out" / "masks" / "0" / "a_1.png"), drawn((3, 5, 3, 5)))


def test_a_table_that_names_no_image_is_refused(tmp_path):
    src = dataset(tmp_path / "set", ["a", "b"])
    (src / "cases.csv").write_text("case,patient\na.png,1\nb.png,2\n")
    with pytest.raises(InputError, match=r"names none of its images, but 'a\.png'; name each case .* 'a'"):
        prepare(src, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_official_layout_with_two_classes_is_copied_with_its_table(tmp_path):
    src = dataset(tmp_path / "set", ["a", "b", "normal (1)"], classes=2)
    (src / "masks" / "1" / "b.png").unlink()
    (src / "cases.csv").write_text("case,patient,pathology\na,1,cyst\nb,2,normal\n")
    (src / "classes.txt").write_text("background\ncyst\n")
    report = prepare(src, tmp_path / "out")
    assert dict(report.skipped) == {"b": "the image has no mask of class 1"}
    assert Layout.open(tmp_path / "out").class_names == ("background", "cyst")
    assert read_table(tmp_path / "out" / "cases.csv") == {
        "a": {"patient": "1", "pathology": "cyst"},
        "b": {"patient": "2", "pathology": "normal"},
    }
    assert prepare(src, tmp_path / "less", normals=False).left_out == ("normal (1)",)


def test_busbra_as_downloaded(tmp_path):
    src, dst = tmp_path / "archive" / "BUSBRA", tmp_path / "out"
    for number, name in enumerate(["0001-l", "0001-r", "0002-s", "0003-s"]):
        write(src / "Images" / f"bus_{name}.png", noise(number))
        write(src / "Masks" / f"mask_{name}.png", drawn((number, number + 3, 5, 9)))
    (src / "bus_data.csv").write_text(
        'ID,Case,Histology,Pathology,BBOX\nbus_0001-l,1,x,malignant,"[1,2]"\nbus_0001-r,1,x,malignant,"[1,2]"\nbus_0002-s,2,y,benign,"[]"\n'
    )
    report = prepare(tmp_path / "archive", dst)
    assert report.kind == "busbra"
    assert dict(report.skipped) == {"bus_0003-s": "it has no row in bus_data.csv"}
    assert Layout.open(dst).cases == ("0001-l", "0001-r", "0002-s")
    assert np.array_equal(stored(dst / "masks" / "0" / "0001-r.png"), drawn((1, 4, 5, 9)))
    assert (dst / "cases.csv").read_text() == "case,patient,pathology\n0001-l,1,malignant\n0001-r,1,malignant\n0002-s,2,benign\n"
    before = tree(dst)
    assert prepare(src, dst).unchanged == 3
    assert tree(dst) == before

    (dst / "cases.csv").write_text("case,patient,pathology\n")
    with pytest.raises(UsageError, match=r"'cases.csv'"):
        prepare(src, dst)


def test_busbra_as_shared(shared, tmp_path):
    """The table as it is, with a few of its images; the whole of it takes seconds."""
    src = tmp_path / "busbra"
    cases = ["0001-l", "0001-r", "0006-s"]
    for folder in ("images", "masks/0"):
        (src / folder).mkdir(parents=True)
        for case in cases:
            (src / folder / f"{case}.png").write_bytes((shared / "data" / "busbra" / folder / f"{case}.png").read_bytes())
    (src / "bus_data.csv").write_bytes((shared / "data" / "busbra" / "bus_data.csv").read_bytes())
    report = prepare(src, tmp_path / "out")
    assert (report.kind, report.cases, report.skipped) == ("busbra", 3, ())
    table = read_table(tmp_path / "out" / "cases.csv")
    assert len(table) == 1875
    assert len({row["patient"] for row in table.values()}) == 1064
    assert table["0001-l"]["patient"] == table["0001-r"]["patient"]


def test_what_cannot_be_recognised(tmp_path):
    (tmp_path / "empty").mkdir()
    for kind, says in {"auto": "bus_data.csv", "busi": "benign/", "pairs": "folder of masks", "zip": "must be one of"}.items():
        with pytest.raises(UsageError, match=says):
            prepare(tmp_path / "empty", tmp_path / "out", kind=kind)
    with pytest.raises(UsageError, match="is not a folder"):
        prepare(tmp_path / "missing", tmp_path / "out")
    for part in ("train", "test"):
        dataset(tmp_path / "two" / part, ["a"])
    with pytest.raises(UsageError, match=r"2 data sets: test \(pairs\) and train \(pairs\)"):
        prepare(tmp_path / "two", tmp_path / "out")
    write(tmp_path / "three" / "images" / "a.png", noise(1))
    write(tmp_path / "three" / "masks" / "a.png", drawn())
    write(tmp_path / "three" / "labels" / "a.png", drawn())
    with pytest.raises(UsageError, match="2 folders of masks: labels, masks"):
        prepare(tmp_path / "three", tmp_path / "out")
    for part in ("images", "masks"):
        write(tmp_path / "deep" / part / "patient" / "a.png", drawn())
    with pytest.raises(InputError, match="no image lies directly in its folders; take them out of deeper ones"):
        prepare(tmp_path / "deep", tmp_path / "out")
    dataset(tmp_path / "four", ["a"])
    (tmp_path / "four" / "bus_data.csv").write_text("ID,Pathology\nbus_a,benign\n")
    with pytest.raises(InputError, match=r"gives no Case for 'bus_a'"):
        prepare(tmp_path / "four", tmp_path / "out")
    assert not (tmp_path / "out").exists()
