import json
from collections import Counter

import cv2
import numpy as np
import pytest
from tests.data.folders import dataset, drawn, noise, stored, write, write_list

from cmunext.data.audit import KINDS, audit
from cmunext.data.duplicates import EXACT, duplicates
from cmunext.data.layout import Layout
from cmunext.errors import UsageError

NAMES = ["benign (1)", "benign (2)", "benign (3)", "malignant (1)", "malignant (2)", "normal (1)"]


@pytest.fixture
def root(tmp_path):
    """A dataset without a problem; its normal case has an empty mask."""
    dataset(tmp_path, NAMES)
    write(tmp_path / "masks" / "0" / "normal (1).png", drawn())
    return tmp_path


def kinds(found):
    return [(problem.case, problem.kind) for problem in found.problems]


def test_a_sound_dataset(root):
    found = audit(root)
    assert (found.cases, found.problems, found.clusters, found.leaks, found.unlisted) == (6, (), (), {}, ())
    assert found.classes == {"benign": 3, "malignant": 2, "normal": 1}
    assert found.images["modes"] == {"grey": 6, "grey in a colour file": 0, "colour": 0}
    assert found.images["sizes"] == 1
    assert set(found.images["height"].values()) == {24}
    assert set(found.images["width"].values()) == {32}
    assert set(found.masks[0]["area"].values()) == {6 * 8 / (24 * 32)}
    assert found.masks[0]["regions"] == {"0": 1, "1": 5}
    assert found.masks[0]["empty"] == ["normal (1)"]


def test_statistics_are_those_of_numpy(root):
    shares = []
    for number, name in enumerate(NAMES[:-1]):
        height = 20 + 4 * number
        write(root / "images" / f"{name}.png", noise(number, height=height))
        mask = drawn((0, 4, 0, 4 + number), (10, 12, 20, 22), (12, 14, 22, 24), height=height)  # the last two touch at a corner
        write(root / "masks" / "0" / f"{name}.png", mask)
        shares.append(np.mean(mask > 0))
    found = audit(root)
    heights = [20, 24, 28, 32, 36, 24]
    assert found.images["height"] == {f"p{p}": np.percentile(heights, p) for p in (0, 5, 25, 50, 75, 95, 100)}
    assert found.masks[0]["area"] == pytest.approx({f"p{p}": np.percentile(shares, p) for p in (0, 5, 25, 50, 75, 95, 100)})
    assert found.masks[0]["regions"] == {"0": 1, "2": 5}
    assert found.images["sizes"] == 5


def _damage_pairs(root):
    (root / "masks" / "0" / "benign (1).png").rename(root / "masks" / "0" / "elsewhere.png")


def _damage_suffixes(root):
    write(root / "images" / "benign (1).bmp", noise(1))


DAMAGES = {
    "image without mask, mask without image": (_damage_pairs, [("benign (1)", "mask"), ("elsewhere", "no-image")]),
    "two images of one name": (_damage_suffixes, [("benign (1)", "image")]),
    "empty image": (lambda root: (root / "images" / "benign (1).png").write_bytes(b""), [("benign (1)", "image")]),
    "text as image": (lambda root: (root / "images" / "benign (1).png").write_text("x"), [("benign (1)", "image")]),
    "empty mask file": (lambda root: (root / "masks" / "0" / "benign (1).png").write_bytes(b""), [("benign (1)", "mask")]),
    "other size": (lambda root: write(root / "images" / "benign (1).png", noise(1, 25, 32)), [("benign (1)", "size")]),
    "turned": (lambda root: write(root / "images" / "benign (1).png", noise(1, 32, 24)), [("benign (1)", "size")]),
    "levels": (
        lambda root: write(root / "masks" / "0" / "benign (1).png", np.maximum(drawn((4, 10, 8, 16)), 3)),
        [("benign (1)", "levels")],
    ),
    "levels 0 and 1": (
        lambda root: write(root / "masks" / "0" / "benign (1).png", drawn((4, 10, 8, 16)) // 255),
        [("benign (1)", "levels")],
    ),
    "levels 0 and 1 in 16 bits": (
        lambda root: write(root / "masks" / "0" / "benign (1).png", drawn((4, 10, 8, 16)).astype(np.uint16) // 255),
        [("benign (1)", "levels")],
    ),
    "label map": (
        lambda root: write(root / "masks" / "0" / "benign (1).png", noise(1) % 4),
        [("benign (1)", "levels")],
    ),
    "no lesion": (lambda root: write(root / "masks" / "0" / "benign (1).png", drawn()), [("benign (1)", "empty")]),
    "all lesion": (lambda root: write(root / "masks" / "0" / "benign (1).png", drawn((0, 24, 0, 32))), [("benign (1)", "full")]),
    "inverted": (
        lambda root: write(root / "masks" / "0" / "benign (1).png", 255 - drawn((4, 10, 8, 16))),
        [("benign (1)", "inverted")],
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_problems_of_files(root, damage):
    make, expected = DAMAGES[damage]
    make(root)
    found = audit(root)
    assert kinds(found) == expected
    assert all(problem.case in problem.message for problem in found.problems)


def test_a_second_class_may_be_empty_as_long_as_another_is_not(tmp_path):
    dataset(tmp_path, NAMES[:3], classes=2)
    write(tmp_path / "masks" / "1" / "benign (2).png", drawn())
    (tmp_path / "masks" / "1" / "benign (3).png").unlink()
    found = audit(tmp_path)
    assert kinds(found) == [("benign (3)", "mask")]
    assert found.masks[1]["empty"] == ["benign (2)"]


def test_a_background_may_be_along_the_edge_and_is_no_lesion(tmp_path):
    dataset(tmp_path, NAMES[:2], classes=2)
    lesion, none = drawn((4, 10, 8, 16)), drawn()
    for name, mask in zip(NAMES, (lesion, none), strict=False):
        write(tmp_path / "masks" / "0" / f"{name}.png", mask)
        write(tmp_path / "masks" / "1" / f"{name}.png", 255 - mask)
    (first, second), found = NAMES[:2], audit(tmp_path)
    assert kinds(found) == [(second, "full"), (first, "inverted")]
    (tmp_path / "classes.txt").write_text("lesion\nbackground\n")
    assert kinds(audit(tmp_path)) == [(second, "empty")], "nothing is found on it but background"


def test_modes_and_coloured_marks(root):
    grey = noise(0)
    write(root / "images" / "benign (1).png", np.dstack([grey] * 3))
    marked = np.dstack([noise(1)] * 3)
    marked[3, 3] = (255, 255, 0)
    write(root / "images" / "benign (2).png", marked)
    found = audit(root)
    assert found.problems == ()
    assert found.images["modes"] == {"grey": 4, "grey in a colour file": 1, "colour": 1}
    assert found.images["coloured"] == ["benign (2)"]


def test_a_dataset_in_colour_has_no_coloured_marks(tmp_path):
    dataset(tmp_path, NAMES[:3])
    for number, name in enumerate(NAMES[:2]):
        write(tmp_path / "images" / f"{name}.png", noise(number, channels=3))
    assert audit(tmp_path).images["coloured"] == []


def test_equal_images_and_leaks(root):
    first = noise(0)  # the image of benign (1)
    write(root / "images" / "malignant (2).png", np.dstack([first] * 3))  # the same picture in a colour file
    write(root / "images" / "benign (3).png", first)
    transposed = np.ascontiguousarray(first.reshape(32, 24))  # the same bytes, another picture
    write(root / "images" / "benign (2).png", transposed)
    write(root / "masks" / "0" / "benign (2).png", drawn((1, 5, 1, 5), height=32, width=24))
    write_list(root / "train.txt", ["benign (1)", "benign (2)", "benign (3)"])
    write_list(root / "val.txt", ["malignant (1)", "malignant (2)"])
    write_list(root / "test.txt", ["normal (1)", "benign (2)"])
    found = audit(root, ["train.txt", "val.txt", "test.txt"])
    assert found.clusters == (("benign (1)", "benign (3)", "malignant (2)"),)
    assert duplicates(Layout.open(root), NAMES) == duplicates(Layout.open(root), NAMES, EXACT) == found.clusters
    assert found.leaks == {"train.txt": (), "val.txt": ("malignant (2)",), "test.txt": ("benign (2)",)}
    assert kinds(found) == [("benign (2)", "overlap"), ("malignant (2)", "leak")]
    assert "'benign (1)' of train.txt" in found.problems[1].message


def test_lists(root):
    (root / "train.txt").write_bytes(b"\xef\xbb\xbfbenign (1).png\r\n\r\nbenign (2)\r\nbenign (2)\r\nbenign (7)\r\n")
    (root / "val.txt").write_bytes(b"benign (1)\nmalignant (1)")
    found = audit(root, [root / "train.txt", "val.txt"])
    assert kinds(found) == [("benign (7)", "unknown"), ("benign (2)", "repeated"), ("benign (1)", "overlap")]
    assert found.unlisted == ("benign (3)", "malignant (2)", "normal (1)")
    assert found.lists["val.txt"] == {"cases": 2, "classes": {"benign": 1, "malignant": 1}}
    with pytest.raises(UsageError, match=r"nowhere.txt"):
        audit(root, ["nowhere.txt"])
    with pytest.raises(UsageError, match=r"train.txt is given twice"):
        audit(root, ["train.txt", root / "train.txt"])


def test_lists_of_the_same_name_in_two_folders_keep_apart(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("lists")
    write_list(root / "list.txt", NAMES[:3])
    write_list(other / "list.txt", NAMES[3:])
    found = audit(root, [root / "list.txt", other / "list.txt"])
    assert list(found.lists) == [str(root / "list.txt"), str(other / "list.txt")]


def test_classes_from_the_table(tmp_path):
    dataset(tmp_path, ["a", "b", "c"])
    (tmp_path / "cases.csv").write_text("case,patient,pathology\na,1,cyst\nb,1,cyst\n")
    assert audit(tmp_path).classes == {"": 1, "cyst": 2}


def test_findings_as_json(root):
    write(root / "images" / "benign (3).png", noise(0))
    (root / "masks" / "0" / "benign (2).png").unlink()
    write_list(root / "train.txt", NAMES[:2])
    write_list(root / "val.txt", NAMES[2:])
    document = json.loads(json.dumps(audit(root, ["train.txt", "val.txt"]).to_dict(), allow_nan=False))
    assert document["cases"] == 6
    assert document["clusters"] == [["benign (1)", "benign (3)"]]
    assert document["leaks"] == {"train.txt": [], "val.txt": ["benign (3)"]}
    assert [(entry["case"], entry["kind"]) for entry in document["problems"]] == [("benign (2)", "mask"), ("benign (3)", "leak")]
    assert all(set(entry) == {"case", "kind", "message"} and entry["kind"] in KINDS for entry in document["problems"])


def test_nothing_readable_still_gives_a_report(tmp_path):
    dataset(tmp_path, ["a"])
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    found = audit(tmp_path)
    assert kinds(found) == [("a", "image"), ("a", "mask")]
    assert found.images["height"]["p50"] is None
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.slow
def test_busi_is_what_is_known_of_it(shared):
    """The counts are PROTOCOL.md's; the regions are counted once more by SciPy."""
    from scipy import ndimage

    root = shared / "data" / "busi"
    found = audit(root, ["busi_train1.txt", "busi_val1.txt"], search=EXACT)
    assert {problem.kind for problem in found.problems} <= {"leak"}
    assert found.classes == {"benign": 437, "malignant": 210}
    assert found.images["modes"] == {"grey": 632, "grey in a colour file": 0, "colour": 15}
    assert len(found.images["coloured"]) == 15
    assert found.masks[0]["empty"] == []
    assert found.unlisted == ()
    assert {label: entry["cases"] for label, entry in found.lists.items()} == {"busi_train1.txt": 452, "busi_val1.txt": 195}
    for first, *others in found.clusters:
        for other in others:
            pair = [cv2.imread(str(root / "images" / f"{case}.png")) for case in (first, other)]
            assert np.array_equal(*pair)
    every = [stored(path) for path in sorted((root / "masks" / "0").iterdir())]
    regions = Counter(str(ndimage.label(mask, np.ones((3, 3)))[1]) for mask in every)
    assert found.masks[0]["regions"] == dict(regions)
