import json
from collections import Counter
from math import ceil

import numpy as np
import pytest
from tests.data.folders import contents, dataset, noise, tree, write

from cmunext.data.layout import Layout, read_list
from cmunext.data.split import assign, split
from cmunext.errors import InputError, UsageError

BUSI = [*(f"benign ({number})" for number in range(1, 438)), *(f"malignant ({number})" for number in range(1, 211))]
NAMES = [*(f"benign ({number})" for number in range(1, 13)), *(f"malignant ({number})" for number in range(1, 7))]


@pytest.fixture
def root(tmp_path):
    return dataset(tmp_path / "set", NAMES)


def names_in(path):
    return read_list(path, NAMES)


def grouped(seed):
    """600 cases of three classes (one of them rare) in groups of 1 to 9."""
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(600), generator.integers(1, 10, 600))[:600].tolist()
    classes = generator.choice(["a", "b", "c"], 600, p=[0.65, 0.3, 0.05]).tolist()
    return classes, [str(group) for group in groups]


def test_holdout_of_busi_is_of_the_official_size_and_mix():
    classes = [name.split()[0] for name in BUSI]
    for seed in range(5):
        parts = assign(classes, BUSI, [0.7, 0.3], seed)
        counts = Counter(zip(parts, classes, strict=True))
        assert counts[1, "benign"] in (131, 132)  # 0.3 of 437 is 131.1
        assert counts[1, "malignant"] == 63  # 0.3 of 210
        assert sum(parts) in (194, 195)  # the official lists have 195


def test_folds_have_a_share_of_every_class():
    classes = [name.split()[0] for name in BUSI]
    counts = Counter(zip(assign(classes, BUSI, [0.2] * 5, 3), classes, strict=True))
    assert {counts[fold, "malignant"] for fold in range(5)} == {42}
    assert {counts[fold, "benign"] for fold in range(5)} == {87, 88}


def test_seeds_differ_and_every_case_has_the_same_chance():
    classes = ["a"] * 30 + ["b"] * 10
    names = [str(number) for number in range(40)]
    runs = [assign(classes, names, [0.7, 0.3], seed) for seed in range(600)]
    assert len({tuple(run) for run in runs}) == 600
    # The mean of 600 draws at 0.3 has a standard deviation of 0.019: five of them.
    assert np.abs(np.mean(runs, axis=0) - 0.3).max() < 0.095


def test_groups_stay_whole_and_balance_is_as_good_as_scikit_learns():
    model_selection = pytest.importorskip("sklearn.model_selection")
    for seed in range(3):
        classes, groups = grouped(seed)
        parts = assign(classes, groups, [0.2] * 5, seed)
        assert all(len({part for part, own in zip(parts, groups, strict=True) if own == group}) == 1 for group in set(groups))

        theirs = [0] * 600
        folds = model_selection.StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(classes, classes, groups)
        for number, (_, held_out) in enumerate(folds):
            for case in held_out:
                theirs[case] = number
        assert misfit(parts, classes) <= misfit(theirs, classes)


def misfit(parts, classes):
    """Chi-square of classes (and of all) over five folds."""
    counts = Counter(zip(parts, classes, strict=True)) + Counter((part, "all") for part in parts)
    totals = Counter(classes) + Counter(all=len(classes))
    return sum((counts[part, kind] - total / 5) ** 2 / (total / 5) for kind, total in totals.items() for part in range(5))


def test_holdout_gives_groups_of_every_size_to_both_sides():
    classes, groups = grouped(1)
    sizes = Counter(groups)
    parts = assign(classes, groups, [0.7, 0.3], 0)
    assert 0.28 < np.mean(parts) < 0.32
    held_out = {group for group, part in zip(groups, parts, strict=True) if part}
    for size in range(1, 9):
        of_size = [group for group in sizes if sizes[group] == size]
        assert 0 < len([group for group in of_size if group in held_out]) < len(of_size)


def test_holdout_is_written_in_the_official_form(root):
    report = split(root, val=1 / 3)
    assert [(entry.path, entry.cases, entry.classes) for entry in report.lists] == [
        (str(root / "set_train.txt"), 12, {"benign": 8, "malignant": 4}),
        (str(root / "set_val.txt"), 6, {"benign": 4, "malignant": 2}),
    ]
    content = (root / "set_val.txt").read_bytes()
    assert content.endswith(b"\r\n")
    assert content.count(b"\r\n") == content.count(b"\n") == 6
    train, val = names_in(root / "set_train.txt"), names_in(root / "set_val.txt")
    assert sorted(train + val) == sorted(NAMES)
    assert json.loads(json.dumps(report.to_dict()))["lists"][1]["cases"] == 6


def test_folds_are_written(root, tmp_path):
    report = split(root, folds=3, seed=4, out=tmp_path / "lists", name="mine")
    assert [path.name for path in sorted((tmp_path / "lists").iterdir())] == [
        f"mine_{part}{fold}.txt" for part in ("train", "val") for fold in (1, 2, 3)
    ]
    held_out = []
    for fold in (1, 2, 3):
        train, val = (names_in(tmp_path / "lists" / f"mine_{part}{fold}.txt") for part in ("train", "val"))
        assert sorted(train + val) == sorted(NAMES)
        held_out += val
    assert sorted(held_out) == sorted(NAMES)
    assert {(entry.classes["benign"], entry.classes["malignant"]) for entry in report.lists[1::2]} == {(4, 2)}


def test_lists_do_not_depend_on_the_machine(root):
    """Pinned: NumPy promises PCG64's raw numbers, and nothing else in the dealing is left to a platform."""
    keys = np.random.PCG64(7).random_raw(3).tolist()
    assert keys == [11530976094092348043, 16550673365885938325, 14308875409591826786]
    split(root, val=0.3, seed=7)
    assert names_in(root / "set_val.txt") == ["benign (12)", "benign (5)", "benign (8)", "malignant (3)", "malignant (6)"]


def test_the_same_again_changes_nothing_and_another_is_refused(root):
    split(root, val=0.3, seed=1)
    before = tree(root)
    assert all(entry.unchanged for entry in split(root, val=0.3, seed=1).lists)
    assert tree(root) == before
    with pytest.raises(UsageError, match=r"'set_train.txt', 'set_val.txt' with other content.*--overwrite"):
        split(root, val=0.3, seed=2)
    (root / "set_train.txt").unlink()
    before = tree(root)
    with pytest.raises(UsageError, match=r"'set_val.txt' with other content"):
        split(root, val=0.3, seed=2)
    assert tree(root) == before  # not even the list that is missing was written
    split(root, val=0.3, seed=2, overwrite=True)
    split(root, val=0.3, seed=2, out=root / "fresh")
    assert (root / "set_val.txt").read_bytes() == (root / "fresh" / "set_val.txt").read_bytes() != before["set_val.txt"][0]


def test_patients_of_the_table_stay_together_by_default(root):
    rows = [f"{name},p{number // 3},{'cyst' if number % 2 else 'tumour'}" for number, name in enumerate(NAMES)]
    (root / "cases.csv").write_text("\n".join(["case,patient,pathology", *rows]))
    report = split(root, val=1 / 3)
    assert (report.group, report.groups) == ("patient", 6)
    assert set(report.lists[0].classes) == {"cyst", "tumour"}
    val = set(names_in(root / "set_val.txt"))
    for number in range(6):
        assert len(val & set(NAMES[3 * number : 3 * number + 3])) in (0, 3)
    split(root, val=1 / 3, group="patient", out=root / "named")
    assert (root / "named" / "set_val.txt").read_bytes() == (root / "set_val.txt").read_bytes()
    assert split(root, val=1 / 3, group="none", out=root / "none").groups == len(NAMES)
    assert split(root, folds=2, group="pathology", out=root / "by class").groups == 2


def test_groups_of_a_file(root, tmp_path):
    (tmp_path / "groups.csv").write_text(
        "\ufeffgroup,case\r\n" + "".join(f"g{number % 4},{name}\r\n" for number, name in enumerate(NAMES)), encoding="utf-8"
    )
    report = split(root, folds=4, group=str(tmp_path / "groups.csv"))
    assert report.groups == 4
    folds = {frozenset(names_in(root / f"set_val{fold}.txt")) for fold in (1, 2, 3, 4)}
    assert folds == {frozenset(NAMES[start::4]) for start in range(4)}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("case,patient\nbenign (1),1\n", r"no column 'group'"),
        ("name,group\nbenign (1),1\n", r"no column 'case'"),
        ("case,group\nbenign (1),1\n", r"gives no group for 17 cases: 'benign \(10\)'"),
        ("case,group\nbenign (1),1\nbenign (1),2\n", r"names 'benign \(1\)' twice"),
        ("", r"no column 'case'"),
        ("\xff", r"cannot be read as CSV"),
    ],
)
def test_group_files_that_cannot_be_used(root, tmp_path, table, says):
    (tmp_path / "groups.csv").write_bytes(table.encode("latin-1"))
    with pytest.raises(InputError, match=says):
        split(root, val=0.3, group=str(tmp_path / "groups.csv"))
    assert not list(root.glob("*.txt"))


def test_equal_images_stay_together(root):
    for name in NAMES[1:4]:
        write(root / "images" / f"{name}.png", noise(0))  # the image of the first case
    for seed in range(6):
        out = root / str(seed)
        assert split(root, val=0.3, seed=seed, group="duplicates", out=out).groups == len(NAMES) - 3
        assert len(set(NAMES[:4]) & set(names_in(out / "set_val.txt"))) in (0, 4)


def test_cases_that_cannot_be_trained_on_are_in_no_list(root):
    (root / "masks" / "0" / "benign (3).png").unlink()
    report = split(root, val=0.3)
    assert [case for case, _ in report.left_out] == ["benign (3)"]
    assert "no mask" in report.left_out[0][1]
    assert sum(entry.cases for entry in report.lists) == len(NAMES) - 1
    assert b"benign (3)" not in b"".join(content for name, content in contents(root).items() if name.endswith(".txt"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "either a share .* or a number of folds"),
        ({"val": 0.3, "folds": 3}, "and not both"),
        ({"val": 0.0}, "must lie between 0 and 1"),
        ({"val": 1.0}, "must lie between 0 and 1"),
        ({"val": float("nan")}, "must lie between 0 and 1"),
        ({"val": 0.001}, "leaves 1 of 2 parts without a case: there are 18 cases in 18 groups"),
        ({"folds": 1}, "must be at least 2"),
        ({"folds": 19}, "leaves 1 of 19 parts"),
        ({"val": 0.3, "seed": -1}, "must not be negative"),
        ({"val": 0.3, "group": "patient"}, r"neither auto, none, duplicates, a column of cases.csv \(this dataset has none\)"),
        ({"val": 0.3, "name": "a/b"}, "must be the start of a file name"),
        ({"val": 0.3, "name": ""}, "must be the start of a file name"),
    ],
)
def test_options_that_cannot_be_met(root, options, says):
    before = tree(root)
    with pytest.raises(UsageError, match=says):
        split(root, **options)
    assert tree(root) == before


def test_output_that_cannot_be_written(root, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        split(root, val=0.3, out=tmp_path / "file")


def test_busbra_is_split_by_patient(shared, tmp_path):
    """Straight from the shared folder, by the table that BUS-BRA brings; the shares of classes are those of the whole."""
    layout = Layout.open(shared / "data" / "busbra")
    report = split(layout.root, val=0.3, out=tmp_path)
    assert (report.group, report.groups, report.left_out) == ("patient", 1064, ())
    train, val = (read_list(tmp_path / f"busbra_{part}.txt", layout.cases) for part in ("train", "val"))
    assert sorted(train + val) == list(layout.cases)
    assert abs(len(val) - 0.3 * 1875) <= 2
    assert not {case.split("-")[0] for case in train} & {
        case.split("-")[0] for case in val
    }  # 0001-l and 0001-r are of one patient
    whole = 607 / 1875
    assert abs(report.lists[1].classes["malignant"] - ceil(whole * len(val))) <= 2
