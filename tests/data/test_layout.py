import subprocess
import sys

import pytest
from tests.data.folders import dataset, drawn, noise, write, write_list

from cmunext.data.layout import Layout, read_list
from cmunext.errors import InputError, UsageError

NAMES = ["benign (1)", "benign (2)", "malignant (1)"]


def test_open_lists_cases_classes_and_files(tmp_path):
    layout = Layout.open(dataset(tmp_path, NAMES, classes=3))
    assert layout.root == tmp_path
    assert layout.cases == tuple(NAMES)
    assert layout.classes == 3
    assert layout.image("benign (2)") == tmp_path / "images" / "benign (2).png"
    assert layout.masks("benign (2)") == tuple(tmp_path / "masks" / str(number) / "benign (2).png" for number in range(3))


def test_other_suffixes_hidden_files_and_dots_in_names(tmp_path):
    dataset(tmp_path, ["scan.v2"])
    write(tmp_path / "images" / "b.JPG", noise(1))
    write(tmp_path / "masks" / "0" / "b.bmp", drawn())
    write(tmp_path / "images" / ".a-x1.part.png", noise(2))
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "masks" / "notes").mkdir()
    layout = Layout.open(tmp_path)
    assert layout.cases == ("b", "scan.v2")
    assert layout.image("b").name == "b.JPG"
    assert layout.masks("b") == (tmp_path / "masks" / "0" / "b.bmp",)
    assert layout.classes == 1


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda root: root.joinpath("images").rename(root / "pictures"), UsageError, "no folder images"),
        (lambda root: root.joinpath("masks", "0").rename(root / "masks" / "zero"), UsageError, "no folder masks/0"),
        (lambda root: root.joinpath("masks", "1").rename(root / "masks" / "2"), InputError, r"\[0, 2\].*without a gap"),
        (lambda root: [path.unlink() for path in root.joinpath("images").iterdir()], InputError, "holds no image"),
    ],
)
def test_what_is_no_dataset(tmp_path, damage, error, says):
    damage(dataset(tmp_path, NAMES, classes=2))
    with pytest.raises(InputError, match=says) as raised:
        Layout.open(tmp_path)
    assert raised.type is error


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("x")])
def test_root_that_is_no_folder(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(UsageError, match="is not a folder"):
        Layout.open(tmp_path / "x")


def test_incomplete_cases_are_raised_only_when_they_are_asked_for(tmp_path):
    dataset(tmp_path, NAMES)
    write(tmp_path / "images" / "orphan.png", noise(9))
    write(tmp_path / "images" / "twice.png", noise(9))
    write(tmp_path / "images" / "twice.jpg", noise(9))
    write(tmp_path / "masks" / "0" / "twice.png", drawn())
    write(tmp_path / "masks" / "0" / "no image.png", drawn())
    layout = Layout.open(tmp_path)
    assert layout.cases == (*NAMES, "orphan", "twice")
    assert layout.masks(NAMES[0])
    with pytest.raises(InputError, match=r"'orphan' has no mask in .*masks"):
        layout.masks("orphan")
    with pytest.raises(InputError, match=r"'twice' has 2 images .*twice.jpg and twice.png"):
        layout.image("twice")
    with pytest.raises(InputError, match="'no image' has no image"):
        layout.image("no image")


@pytest.mark.parametrize(
    "content",
    [
        b"benign (2)\r\nmalignant (1)\r\n",
        b"benign (2)\nmalignant (1)",
        b"\xef\xbb\xbfbenign (2)\nmalignant (1)\n",
        b"\r\n\r\n  benign (2)\t\r\n\n   \nmalignant (1) \r\n\r\n",
        b"benign (2).png\nmalignant (1).JPG\n",
        b"benign (2)\rmalignant (1)\r",
        "benign (2)\r\nmalignant (1)\r\n".encode("utf-16"),
    ],
)
def test_lists_in_every_form(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    assert read_list(tmp_path / "list.txt", NAMES) == ["benign (2)", "malignant (1)"]


def test_a_name_with_blanks_around_it_is_itself(tmp_path):
    (tmp_path / "list.txt").write_text(" a \nb \n c.png \n")
    assert read_list(tmp_path / "list.txt", ["a", " a ", "b", "c"]) == [" a ", "b", "c"]


def test_a_name_that_ends_like_a_file_is_itself(tmp_path):
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    assert read_list(tmp_path / "list.txt", ["a.png", "a", "b"]) == ["a.png", "b"]


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (b"benign (1)\nzz\nyy\nxx\nww\n", UsageError, r"4 cases not in the dataset: 'ww', 'xx', 'yy' and 1 more"),
        (b"benign (1)\nBENIGN (1)\n", UsageError, r"1 case not in the dataset: 'BENIGN \(1\)'"),
        (b"benign (1)\nbenign (2)\nbenign (1).png\n", InputError, r"1 case more than once: 'benign \(1\)'"),
        (b"", InputError, "names no case"),
        (b"\r\n \r\n", InputError, "names no case"),
        (b"benign (1)\0\n", InputError, "not text"),
        (b"\x89PNG\r\n\x1a\n\0\0\xff", InputError, "not UTF-8 text"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, content, error, says):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(InputError, match=says) as raised:
        read_list(tmp_path / "list.txt", NAMES)
    assert raised.type is error
    assert "list.txt" in str(raised.value)


def test_a_list_is_found_by_its_path_or_in_the_dataset(tmp_path, monkeypatch):
    layout = Layout.open(dataset(tmp_path / "set", NAMES))
    write_list(layout.root / "val.txt", ["benign (1)"])
    write_list(tmp_path / "other.txt", ["benign (2)"])
    assert layout.read_list("val.txt") == ["benign (1)"]
    assert layout.read_list(tmp_path / "other.txt") == ["benign (2)"]
    monkeypatch.chdir(tmp_path)
    write_list(tmp_path / "val.txt", ["malignant (1)"])
    assert layout.read_list("val.txt") == ["malignant (1)"]
    with pytest.raises(UsageError, match="neither a file by that path nor in"):
        layout.read_list("missing.txt")


def test_official_lists_are_read_and_written_back_byte_for_byte(shared, tmp_path):
    layout = Layout.open(shared / "data" / "busi")
    assert len(layout.cases) == 647
    assert layout.classes == 1
    for number in (1, 2, 3):
        train, val = (layout.read_list(f"busi_{part}{number}.txt") for part in ("train", "val"))
        assert (len(train), len(val)) == (452, 195)
        assert set(train) | set(val) == set(layout.cases)
        write_list(tmp_path / "copy.txt", train)
        assert (tmp_path / "copy.txt").read_bytes() == (layout.root / f"busi_train{number}.txt").read_bytes()


def test_importing_the_data_modules_brings_in_no_heavy_package():
    code = (
        "import sys, cmunext.data.layout, cmunext.data.prepare, cmunext.data.audit, cmunext.data.split, cmunext.cli.data\n"
        "print(sorted({'torch', 'sklearn', 'scipy', 'onnxruntime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_classes_have_the_names_that_the_dataset_gives(tmp_path):
    root = dataset(tmp_path, NAMES, classes=2)
    assert Layout.open(root).class_names == ("class 0", "class 1")
    (root / "classes.txt").write_text("background\r\ncyst\r\n")
    assert Layout.open(root).class_names == ("background", "cyst")
    (root / "classes.txt").write_text("BackGround\nCyst\n")
    assert Layout.open(root).class_names == ("background", "Cyst")
    for content, says in (("cyst\n", "names 1 class "), ("a\nb\nc\n", "names 3 classes "), ("a\na\n", "for 2 folders")):
        (root / "classes.txt").write_text(content)
        with pytest.raises(InputError, match=says):
            Layout.open(root)
    one = dataset(tmp_path / "one", NAMES)
    for content, name in ((None, "lesion"), ("cyst\n", "cyst"), ("benign\nmalignant\n", "lesion")):
        if content:
            (one / "classes.txt").write_text(content)
        assert Layout.open(one).class_names == (name,), "what names several is not about the one class"
