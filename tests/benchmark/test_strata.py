"""Strata against means worked out by hand."""

from pathlib import Path

import numpy as np
import pytest

from cmunext.benchmark.scores import Evaluation
from cmunext.benchmark.statistics import Reliability
from cmunext.benchmark.strata import cleanness_of, columns_of, sizes_of, standard_strata, strata_of
from cmunext.errors import InputError, UsageError
from cmunext.metrics import Counts

# Images of 100 pixels: (tp, fp, fn); a lesion of 1, 2, 3, 9, 10, 40 and no pixel
PIXELS = [(1, 0, 0), (0, 5, 2), (3, 3, 0), (9, 0, 0), (5, 0, 5), (20, 0, 20), (0, 0, 0)]
KINDS = ("benign", "malignant", "benign", "", "benign", "malignant", "benign")


@pytest.fixture
def evaluation() -> Evaluation:
    counts = Counts(*np.array([[tp, fp, fn, 100 - tp - fp - fn] for tp, fp, fn in PIXELS]).T[:, :, None])
    return Evaluation(
        cases=tuple("abcdefg"),
        kinds=KINDS,
        patients=("",) * 7,
        sizes=((5, 20),) * 7,
        classes=("lesion",),
        counts=counts,
        ece=np.zeros((7, 1)),
        reliability=(Reliability.of([0.0], [False]),),
        hd95=None,
        surface_dice=None,
        failures=(),
        at="native",
    )


def test_sizes_are_fixed_shares_of_the_image():
    assert sizes_of([0, 0.001, 0.0299, 0.03, 0.0999, 0.1, 1]) == [
        "no lesion", "under 3 %", "under 3 %", "3 to 10 %", "3 to 10 %", "10 % and more", "10 % and more",
    ]  # fmt: skip


def test_strata_by_size_and_class(evaluation):
    found = strata_of(evaluation, standard_strata(evaluation))
    assert [(one["stratum"], one["n"]) for one in found["size"]] == [
        ("no lesion", 1), ("under 3 %", 2), ("3 to 10 %", 2), ("10 % and more", 2),
    ]  # fmt: skip
    assert [one["iou"] for one in found["size"]] == pytest.approx([1, 1 / 2, 3 / 4, 1 / 2])
    assert [one["dice"] for one in found["size"]] == pytest.approx([1, 1 / 2, (6 / 9 + 1) / 2, 2 / 3])
    assert [one["share_iou_below_0.1"] for one in found["size"]] == [0, 0.5, 0, 0]
    assert found["size"][0]["sensitivity"] is None  # nothing over nothing
    assert found["size"][1]["iou_interval"] == [0, 1]
    assert [(one["stratum"], one["n"]) for one in found["class"]] == [("benign", 4), ("malignant", 2), ("unknown", 1)]
    assert [one["iou"] for one in found["class"]] == pytest.approx([(1 + 1 / 2 + 1 / 2 + 1) / 4, 1 / 4, 1])


def test_intervals_of_strata_draw_groups(evaluation):
    found = strata_of(evaluation, {"x": ["one"] * 4 + ["two"] * 3}, groups=["p", "p", "p", "q", "q", "q", "q"])
    assert [(one["drawn"], one["n"]) for one in found["x"]] == [(2, 4), (1, 3)]
    assert found["x"][1]["iou"] == pytest.approx(2 / 3)
    assert found["x"][1]["iou_interval"] == [None, None]  # of one group


def test_without_any_class_there_is_no_stratum_by_class(evaluation):
    object.__setattr__(evaluation, "kinds", ("",) * 7)
    assert list(standard_strata(evaluation)) == ["size"]


def test_clean_lists():
    assert list(cleanness_of(["a", "b", "c"], ["c", "a"]).values()) == [
        "in the clean list", "not in the clean list", "in the clean list",
    ]  # fmt: skip
    with pytest.raises(InputError, match="'d'"):
        cleanness_of(["a", "b"], ["a", "d"])


def test_columns_of_the_dataset_s_table(tmp_path: Path):
    with pytest.raises(UsageError, match="no such table"):
        columns_of(tmp_path, ["a"], ["device"])
    (tmp_path / "cases.csv").write_text("case,device,class\na,GE,x\nb,,y\n")
    assert columns_of(tmp_path, ["b", "a", "c"], ["device"]) == {"device": {"b": "", "a": "GE", "c": ""}}
    assert columns_of(tmp_path, ["a"], []) == {}
    with pytest.raises(UsageError, match=r"'age'.*device, class"):
        columns_of(tmp_path, ["a"], ["age"])
    with pytest.raises(UsageError, match="'class'"):
        columns_of(tmp_path, ["a"], ["class"])
