"""`cmunext prepare`, `audit` and `split` as one calls them: exit codes, what is on which stream, and bad input."""

import json

import numpy as np
import pytest
from tests.data.folders import dataset, drawn, noise, raw_busi, tree, write, write_list

from cmunext.cli.main import main
from cmunext.data.layout import Layout, read_list
from cmunext.phantom import simulate

NAMES = [*(f"benign ({number})" for number in range(1, 8)), *(f"malignant ({number})" for number in range(1, 4))]


@pytest.fixture
def call(capsys):
    """Run a command line; gives its exit code, stdout and stderr."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        streams = capsys.readouterr()
        assert "Traceback" not in streams.err
        return code, streams.out, streams.err

    return run


@pytest.fixture
def root(tmp_path):
    return dataset(tmp_path / "set", NAMES)


def is_one_sentence(err):
    return err.startswith("error: ") and err.count("\n") == 1


def test_prepare_says_what_it_did(call, tmp_path):
    raw_busi(tmp_path / "raw")
    code, out, err = call("prepare", tmp_path / "raw", tmp_path / "set")
    assert (code, err) == (0, "")
    assert f"4 cases in {tmp_path / 'set'} (busi): 4 written, 0 unchanged" in out
    assert "masks merged (1): benign (1)" in out
    assert "masks resized to their image (1): benign (2)" in out
    before = tree(tmp_path / "set")
    code, out, err = call("prepare", tmp_path / "raw", tmp_path / "set", "--json")
    assert (code, err) == (0, "")
    assert {key: json.loads(out)[key] for key in ("cases", "written", "unchanged", "skipped")} == {
        "cases": 4,
        "written": 0,
        "unchanged": 4,
        "skipped": [],
    }
    assert tree(tmp_path / "set") == before
    code, out, _ = call("prepare", tmp_path / "raw", tmp_path / "less", "--no-normals")
    assert code == 0
    assert "normal cases left out (1): normal (1)" in out
    assert len(Layout.open(tmp_path / "less").cases) == 3


def test_prepare_does_the_good_files_and_the_exit_code_tells(call, tmp_path):
    raw_busi(tmp_path / "raw")
    (tmp_path / "raw" / "benign" / "benign (2)_mask.png").write_bytes(b"")
    code, out, err = call("prepare", tmp_path / "raw", tmp_path / "set")
    assert (code, err) == (1, "")
    assert "skipped (1):" in out
    assert "benign (2): " in out
    assert "empty" in out
    assert len(Layout.open(tmp_path / "set").cases) == 3
    code, out, _ = call("prepare", tmp_path / "raw", tmp_path / "set", "--json")
    assert code == 1
    assert [entry["case"] for entry in json.loads(out)["skipped"]] == ["benign (2)"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("raw", "raw"), 2, "lies in the input"),
        (("raw", "raw/set"), 2, "lies in the input"),
        (("missing", "set"), 2, "is not a folder"),
        (("file", "set"), 2, "is not a folder"),
        (("raw", "file"), 2, "is a file"),
        (("raw", "file/set"), 1, "Not a directory"),
        (("raw", "set", "--kind", "zip"), 2, "must be one of auto"),
        (("raw", "set", "--kind", "pairs"), 2, "does not hold a folder of images"),
        (("raw", "other"), 2, "--overwrite"),
    ],
)
def test_prepare_that_cannot_be(call, tmp_path, monkeypatch, arguments, code, says):
    raw_busi(tmp_path / "raw")
    (tmp_path / "file").write_text("x")
    write(tmp_path / "other" / "images" / "benign (1).png", noise(99))
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    found, out, err = call("prepare", *arguments)
    assert (found, out) == (code, "")
    assert is_one_sentence(err)
    assert says in err
    assert tree(tmp_path) == before


def test_audit_of_a_sound_dataset(call, root):
    write_list(root / "train.txt", NAMES[:6])
    write_list(root / "val.txt", NAMES[6:9])
    code, out, err = call("audit", root, "--lists", "train.txt", "val.txt")
    assert (code, err) == (0, "")
    assert "10 cases: 10 grey" in out
    assert "classes: 7 benign, 3 malignant" in out
    assert "val.txt: 3 cases (1 benign, 2 malignant), 0 of them in a list before it" in out
    assert "in none of the lists (1): malignant (3)" in out
    assert out.endswith("no problems\n")


def test_audit_with_problems(call, root):
    (root / "masks" / "0" / "benign (1).png").write_bytes(b"")
    (root / "masks" / "0" / "benign (2).png").unlink()
    write(root / "masks" / "0" / "stray.png", drawn())
    write(root / "images" / "benign (4).png", noise(2))  # the image of benign (3)
    (root / "train.txt").write_bytes(b"\xef\xbb\xbfbenign (3)\r\n\r\nbenign (5)\r\nnobody\r\n")
    (root / "val.txt").write_text("benign (4)\nbenign (6)")
    (root / "test.txt").write_text("benign (5)\n")
    code, out, err = call("audit", root, "--json", "--lists", "train.txt", "val.txt", "test.txt")
    assert (code, err) == (1, "")
    document = json.loads(out)
    assert document["cases"] == 10
    assert document["clusters"] == [["benign (3)", "benign (4)"]]
    assert document["leaks"] == {"train.txt": [], "val.txt": ["benign (4)"], "test.txt": ["benign (5)"]}
    assert {(entry["case"], entry["kind"]) for entry in document["problems"]} == {
        ("benign (1)", "mask"),
        ("benign (2)", "mask"),
        ("stray", "no-image"),
        ("nobody", "unknown"),
        ("benign (4)", "leak"),
        ("benign (5)", "overlap"),
    }
    code, out, _ = call("audit", root)
    assert code == 1
    assert "problems (3):" in out
    assert "groups of images that show the same frame (1):\n  benign (3) = benign (4)\n" in out


def test_lists_may_be_given_one_option_each(call, root):
    write_list(root / "a.txt", NAMES[:5])
    write_list(root / "b.txt", NAMES[5:])
    code, out, _ = call("audit", "--lists", root / "a.txt", "--lists", root / "b.txt", root, "--json")
    assert code == 0
    assert list(json.loads(out)["lists"]) == ["a.txt", "b.txt"]


def test_audit_writes_what_it_found(call, root, tmp_path):
    image, truth = simulate(0, 240, 280)
    write(root / "images" / "benign (1).png", image)
    write(root / "images" / "malignant (1).png", image[10:, 20:])
    write(root / "masks" / "0" / "benign (1).png", truth.astype(np.uint8) * 255)
    write(root / "masks" / "0" / "malignant (1).png", truth[10:, 20:].astype(np.uint8) * 255)
    write_list(root / "train.txt", NAMES[:4])
    write_list(root / "val.txt", NAMES[4:])
    call_ = ("audit", root, "--lists", "train.txt", "val.txt", "--out", tmp_path / "found", "--pictures", tmp_path / "page")
    code, out, err = call(*call_, "--json")
    assert code == 1
    document = json.loads(out)
    assert document["clusters"] == [["benign (1)", "malignant (1)"]]
    assert document["leaks"]["val.txt"] == ["malignant (1)"]
    (pair,) = document["pairs"]
    assert (pair["first"], pair["second"], pair["equal"], pair["mirror"]) == ("benign (1)", "malignant (1)", False, "")
    assert pair["agreement"] > 0.95
    assert pair["matrix"][0][2] == pytest.approx(-20, abs=0.5)
    assert document["cross_class"] == [["benign (1)", "malignant (1)"]]
    written = [tmp_path / "found" / "groups.csv", tmp_path / "found" / "val_clean.txt", tmp_path / "page" / "index.html"]
    assert err == "".join(f"written: {path}\n" for path in written)
    assert read_list(written[1], NAMES) == document["clean"]["val.txt"] == [name for name in NAMES[4:] if name != "malignant (1)"]
    code, out, _ = call(*call_)
    assert code == 1
    assert "groups of images that show the same frame (1):\n  benign (1) = malignant (1)\n" in out
    assert "duplicates of different classes (1):" in out
    assert "frames annotated twice (1): IoU of the two masks" in out
    code, out, _ = call("audit", root, "--duplicates", "exact", "--lists", "train.txt", "val.txt")
    assert code == 0
    assert "groups of" not in out
    code, out, _ = call("split", root, "--group", tmp_path / "found" / "groups.csv", "--folds", 3)
    assert code == 0
    assert f"{len(NAMES) - 1} groups" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("set", "--duplicates", "all"), "must be one of near, exact, none"),
        (("set", "--similarity", "0.2"), "must lie between 0.6 and 1"),
        (("missing",), "is not a folder"),
        (("set/images",), "has no folder images"),
        (("set", "--lists", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_audit_that_cannot_be(call, root, monkeypatch, arguments, says):
    monkeypatch.chdir(root.parent)
    code, out, err = call("audit", *arguments)
    assert (code, out) == (2, "")
    assert is_one_sentence(err)
    assert says in err


def test_split_by_default_is_a_holdout_of_three_tenths(call, root):
    code, out, err = call("split", root)
    assert (code, err) == (0, "")
    assert f"{root / 'set_train.txt'}: 7 cases (5 benign, 2 malignant)" in out
    assert f"{root / 'set_val.txt'}: 3 cases (2 benign, 1 malignant)" in out
    code, out, _ = call("split", root)
    assert code == 0
    assert out.count("unchanged") == 2


def test_split_into_folds_and_audit_of_them(call, root, tmp_path):
    code, out, _ = call("split", root, "--folds", 3, "--seed", 5, "--out", tmp_path / "lists", "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["seed"], document["group"], len(document["lists"])) == (5, "none", 6)
    for fold in range(3):
        code, out, _ = call(
            "audit", root, "--lists", *(entry["path"] for entry in document["lists"][2 * fold : 2 * fold + 2]), "--json"
        )
        assert code == 0
        assert json.loads(out)["unlisted"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("set", "--val", "1.5"), 2, "between 0 and 1"),
        (("set", "--val", "0.3", "--folds", "3"), 2, "not both"),
        (("set", "--folds", "11"), 2, "leaves 1 of 11 parts without a case"),
        (("set", "--group", "patient"), 2, "neither auto"),
        (("set", "--group", "groups.csv"), 1, "no column 'group'"),
        (("set", "--out", "groups.csv"), 1, "groups.csv"),
        (("set", "--name", "other"), 2, "--overwrite"),
        (("raw",), 2, "cmunext prepare"),
    ],
)
def test_split_that_cannot_be(call, root, monkeypatch, arguments, code, says):
    (root.parent / "groups.csv").write_text("case,patient\nbenign (1),1\n")
    (root / "other_val.txt").write_text("benign (1)\n")
    raw_busi(root.parent / "raw")
    monkeypatch.chdir(root.parent)
    before = tree(root.parent)
    found, out, err = call("split", *arguments)
    assert (found, out) == (code, "")
    assert is_one_sentence(err)
    assert says in err
    assert tree(root.parent) == before
