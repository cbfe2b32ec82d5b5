"""Tables against numbers worked out by hand, and the committed tables against the files that they are made of."""

import csv
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from cmunext.benchmark.agreement import plan_of
from cmunext.benchmark.gallery import examples
from cmunext.benchmark.grid import Cell, Grid
from cmunext.benchmark.grid_file import read_grid
from cmunext.benchmark.published import ABLATION, PUBLISHED_SCORES
from cmunext.benchmark.results import cells_of, columns_of, frames_per_second, p_values, u_score, value_of
from cmunext.benchmark.store import Store
from cmunext.benchmark.tables import write_tables
from cmunext.cli.main import main
from cmunext.errors import InputError

RESULTS = Path(__file__).resolve().parents[2] / "results"


def write_scores(path: Path, ious: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("case,iou,f1\n" + "".join(f"{case},{iou},{2 * iou / (1 + iou)}\n" for case, iou in ious.items()))


def write_cell(
    grid: Grid, store: Store, cell: Cell, best: dict[str, float], last: dict[str, float], history: tuple[float, ...]
) -> None:
    write_scores(store.cell(cell) / "best.csv", best)
    write_scores(store.cell(cell) / "last.csv", last)
    rows = "".join(f"{epoch},{iou}\n" for epoch, iou in enumerate(history, start=1))
    (store.cell(cell) / "history.csv").write_text("epoch,val_iou\n" + rows)
    (store.cell(cell) / "config.json").write_text(json.dumps(plan_of(grid, cell)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two official lists and a grouped one of three networks; the last network lacks its second list."""
    lists = {str(n): {"train": "t.txt", "val": "v.txt", "clean": f"clean{n}.txt"} for n in (1, 2)}
    values = {
        "name": "made up",
        "datasets": {
            "d": {
                "root": "data",
                "lists": {**lists, "fold1": {"train": "t.txt", "val": "v.txt", "kind": "grouped"}},
                "external": {"elsewhere": {"root": "other", "list": "o.txt"}},
                "u_score": [0.5, 0.9],
            }
        },
        "recipes": {"r": {"set": {"epochs": 3}}},
        "networks": {"reduced-unet": {}, "cmunext-s": {}, "cmunext": {}},
        "seeds": [1],
        "reference": "cmunext-s",
        "latency": "latency.json",
        "speed_device": "an abacus",
    }
    (tmp_path / "grid.json").write_text(json.dumps(values))
    (tmp_path / "clean1.txt").write_text("a\nb\n")
    (tmp_path / "clean2.txt").write_text("c\n")
    (tmp_path / "latency.json").write_text(
        json.dumps([{"network": "cmunext-s", "median_ms": 20.0}, {"network": "cmunext-s", "median_ms": 16.0}])
    )
    grid = read_grid(tmp_path / "grid.json")
    store = Store(tmp_path)
    for cell in grid.cells:
        plus = 0.1 if cell.label == "cmunext" else 0.0
        if cell.lists.name == "1":
            write_cell(
                grid, store, cell, {"a": 0.8 + plus, "b": 0.6, "c": 0.7}, {"a": 0.7 + plus, "b": 0.5, "c": 0.6}, (0.1, 0.7, 0.6)
            )
            write_scores(store.cell(cell) / "external-elsewhere.csv", {"x": 0.2, "y": 0.4})
        elif cell.lists.name == "2" and cell.label != "reduced-unet":
            write_cell(grid, store, cell, {"c": 0.9, "d": 0.7, "e": 0.8}, {"c": 0.8, "d": 0.6, "e": 0.7}, (0.3, 0.8, 0.7))
            write_scores(store.cell(cell) / "external-elsewhere.csv", {"x": 0.3, "y": 0.5})
        elif cell.lists.name == "fold1":
            write_cell(grid, store, cell, {"a": 1.0}, {"a": 0.3, "b": 0.5}, (0.2, 0.4, 0.4))
    return tmp_path


def test_columns_are_what_they_say(folder):
    grid, store = read_grid(folder / "grid.json"), Store(folder)
    (dataset,) = grid.datasets

    def value(column, label="cmunext-s"):
        return value_of(grid, store, dataset, "r", label, column)

    paper = value("paper")
    assert paper.iou == pytest.approx((0.8 + 0.6 + 0.7 + 0.9 + 0.7 + 0.8) / 6)
    assert paper.f1 == pytest.approx(np.mean([2 * iou / (1 + iou) for iou in (0.8, 0.6, 0.7, 0.9, 0.7, 0.8)]))
    assert (paper.runs, paper.images) == (2, 5)  # c stands in both lists
    assert paper.spread == pytest.approx(np.std([0.7, 0.8], ddof=1))
    assert paper.low < paper.iou < paper.high
    assert value("last").iou == pytest.approx((0.7 + 0.5 + 0.6 + 0.8 + 0.6 + 0.7) / 6)
    assert value("clean").iou == pytest.approx((0.7 + 0.5 + 0.8) / 3)
    assert value("grouped").iou == pytest.approx((0.3 + 0.5) / 2)
    assert value("external elsewhere").iou == pytest.approx((0.2 + 0.4 + 0.3 + 0.5) / 4)
    assert math.isnan(value("grouped").spread)


def test_a_value_with_a_missing_run_is_missing(folder):
    grid, store = read_grid(folder / "grid.json"), Store(folder)
    (dataset,) = grid.datasets
    for column in ("paper", "last", "clean", "external elsewhere"):
        assert value_of(grid, store, dataset, "r", "reduced-unet", column) is None
    assert value_of(grid, store, dataset, "r", "reduced-unet", "grouped") is not None
    assert p_values(grid, store, dataset, "r").keys() == {"cmunext"}


def test_files_of_the_tables(folder):
    written = write_tables(read_grid(folder / "grid.json"), folder)
    stems = ("table2", "table3", "metrics")
    assert [path.name for path in written] == [f"{stem}-d-r{suffix}" for stem in stems for suffix in (".md", ".csv", ".tex")]
    with (folder / "tables/table2-d-r.csv").open(newline="") as stream:
        rows = {row["network"]: row for row in csv.DictReader(stream)}
    assert list(rows) == ["cmunext-s", "cmunext", "reduced-unet"]  # the package's order, whatever the grid's
    assert float(rows["cmunext-s"]["parameters_millions"]) == 0.417505
    assert float(rows["cmunext-s"]["gigaflops"]) == 1.09010944
    assert float(rows["cmunext-s"]["fps"]) == 62.5
    assert float(rows["cmunext-s"]["published_iou"]) == pytest.approx(0.6884)
    assert (rows["cmunext"]["fps"], rows["cmunext"]["u_score"], rows["reduced-unet"]["last_iou"]) == ("", "", "")
    assert float(rows["cmunext-s"]["u_score"]) == pytest.approx(u_score(0.65, (0.5, 0.9), 0.417505, 1.09010944, 62.5))
    markdown = (folder / "tables/table3-d-r.md").read_text()
    assert [line.split(" | ")[0] for line in markdown.splitlines() if line.startswith("| ")][2:] == [
        "| Reduced U-Net (reduced-unet)",
        "| + Skip-Fusion Block (cmunext)",
    ]
    assert "70.35" not in markdown  # published for a row that this grid does not have
    latex = (folder / "tables/table2-d-r.tex").read_text()
    assert latex.count(r"\\") == 4 and "FPS" in latex and "68.84 / 77.33" in latex
    lengths = {line.count("&") for line in latex.splitlines() if "&" in line}
    assert len(lengths) == 1


def test_every_row_of_a_table_has_as_many_cells_as_its_header(folder):
    write_tables(read_grid(folder / "grid.json"), folder)
    for path in (folder / "tables").glob("*.md"):
        assert len({line.count(" |") for line in path.read_text().splitlines() if line.startswith("|")}) == 1


def test_the_same_files_give_the_same_bytes(folder):
    matplotlib = pytest.importorskip("matplotlib")
    assert main(["benchmark", str(folder / "grid.json"), "--only", "tables"]) == 0
    assert main(["benchmark", str(folder / "grid.json"), "--only", "figures"]) == 0
    written = {path: path.read_bytes() for part in ("tables", "figures") for path in (folder / part).iterdir()}
    assert {path.name for path in written} == {
        *(f"{stem}-d-r.{suffix}" for stem in ("table2", "table3", "metrics") for suffix in ("md", "csv", "tex")),
        *(f"figure{n}-d-r.svg" for n in (2, 4)),
    }
    matplotlib.rcParams["lines.linewidth"] = 9  # somebody's own settings
    for only in ("tables", "figures"):
        assert main(["benchmark", str(folder / "grid.json"), "--only", only]) == 0
    matplotlib.rcdefaults()
    assert {path: path.read_bytes() for path in written} == written


def test_the_table_of_every_metric(folder):
    grid, store = read_grid(folder / "grid.json"), Store(folder)
    header = "case,class,height,width,tp,fn,iou,f1,hd95,sensitivity"
    for cell in grid.cells:
        if cell.label == "cmunext" and cell.lists.name == "1":  # lesions of 2, 5 and 50 %; a miss
            rows = ["a,benign,10,10,2,0,1,1,0,1", "b,malignant,10,10,0,5,0,0,inf,0", "c,benign,10,10,50,0,0.5,0.6,4,"]
        elif cell.label == "cmunext" and cell.lists.name == "2":  # c again
            rows = ["c,benign,10,10,0,50,0.25,0.4,8,0.2"]
        else:
            continue
        (store.cell(cell) / "last.csv").write_text("\n".join([header, *rows]))
    write_tables(grid, folder)
    with (folder / "tables/metrics-d-r.csv").open(newline="") as stream:
        rows = {row.pop("network"): row for row in csv.DictReader(stream)}
    assert list(rows) == ["cmunext-s", "cmunext", "reduced-unet"]
    found = {key: float(value) for key, value in rows["cmunext"].items() if value}
    assert found == pytest.approx(
        {
            "iou": (1 + 0 + 0.5 + 0.25) / 4,
            "sensitivity": (1 + 0 + 0.2) / 3,
            "hd95": (0 + 4 + 8) / 3,
            "iou_below_0.1": 1 / 4,
            **{"size_under_3_%": 1, "size_under_3_%_images": 1, "size_3_to_10_%": 0, "size_3_to_10_%_images": 1},
            **{"size_10_%_and_more": 0.375, "size_10_%_and_more_images": 1},
            **{"class_benign": (1 + 0.5 + 0.25) / 3, "class_benign_images": 2, "class_malignant": 0, "class_malignant_images": 1},
        }
    )
    assert not any(rows["reduced-unet"].values())  # a run is missing
    assert rows["cmunext-s"]["iou"] and not rows["cmunext-s"]["class_benign"]
    markdown = (folder / "tables/metrics-d-r.md").read_text()
    assert "| 58.33 (2) |" in markdown and "| 4.0 |" in markdown


def test_patients_are_drawn_whole_and_groups_are_not_those_of_another_dataset(folder):
    (folder / "groups.csv").write_text("case,group\n" + "".join(f"{case},all\n" for case in "abcdexy"))
    values = json.loads((folder / "grid.json").read_text())
    values["datasets"]["d"]["groups"] = "groups.csv"
    (folder / "grid.json").write_text(json.dumps(values))
    grid, store = read_grid(folder / "grid.json"), Store(folder)
    (dataset,) = grid.datasets

    def interval(column):
        value = value_of(grid, store, dataset, "r", "cmunext-s", column)
        return value.high - value.low

    assert np.isnan(interval("last"))  # of one group
    assert interval("external elsewhere") > 0.1
    for cell in grid.cells:
        path = store.cell(cell) / "external-elsewhere.csv"
        if path.is_file():
            path.write_text("case,patient,iou,f1\nx,1,0.2,0.3\ny,1,0.4,0.5\n")
    assert np.isnan(interval("external elsewhere"))
    write_tables(grid, folder)
    assert "nan" not in "".join(path.read_text() for path in (folder / "tables").glob("*.md"))


def test_cases_that_share_a_patient_or_a_cluster_are_drawn_together(folder):
    values = json.loads((folder / "grid.json").read_text())
    values["datasets"]["d"]["groups"] = "groups.csv"
    (folder / "grid.json").write_text(json.dumps(values))
    grid, store = read_grid(folder / "grid.json"), Store(folder)
    (dataset,) = grid.datasets

    def interval(groups: dict[str, str]) -> tuple[float, float]:
        (folder / "groups.csv").write_text("case,group\n" + "".join(f"{case},{group}\n" for case, group in groups.items()))
        value = value_of(grid, store, dataset, "r", "cmunext-s", "last")
        return value.low, value.high

    each = {case: case for case in "abcde"}
    patients, clusters = {"a": "p1", "b": "p1", "c": "p2", "d": "p2", "e": "p3"}, each | {"d": "near", "e": "near"}
    alone = interval({**patients})  # before the score tables tell of patients
    united = interval({"a": "1", "b": "1", "c": "2", "d": "2", "e": "2"})
    for cell in grid.cells:
        path = store.cell(cell) / "last.csv"
        if path.is_file():
            header, *rows = path.read_text().splitlines()
            path.write_text("\n".join([f"{header},patient", *(f"{row},{patients[row[0]]}" for row in rows)]))
    assert interval(each) == alone, "a table without near duplicates takes no patient apart"
    assert interval(clusters) == united != alone, "d and e are near duplicates, c and d one patient: the three are drawn together"


def test_figures_show_what_was_measured(folder):
    pytest.importorskip("matplotlib")
    path = folder / "figures/figure2-d-r.svg"
    assert main(["benchmark", str(folder / "grid.json"), "--only", "figures"]) == 0
    drawn = path.read_text()
    assert all(f">{words}<" in drawn for words in ("cmunext-s", "cmunext", "frames per second", "an abacus", "parameters (10⁶)"))
    assert ">reduced-unet<" not in drawn  # a run is missing
    (folder / "latency.json").unlink()
    assert main(["benchmark", str(folder / "grid.json"), "--only", "figures"]) == 0
    assert "frames per second" not in path.read_text()


def test_every_network_can_be_told_apart_in_a_figure(folder):
    from cmunext.benchmark.plots import _style
    from cmunext.networks import names

    values = json.loads((folder / "grid.json").read_text())
    values["networks"] = {name: {} for name in names()}
    (folder / "grid.json").write_text(json.dumps(values))
    styles = [_style(read_grid(folder / "grid.json"), name) for name in names()]
    for key in ("marker", "linestyle"):
        assert len({(style["color"], style[key]) for style in styles}) == len(styles)


def test_examples_go_from_the_hardest_case_to_the_easiest():
    scored = [{f"{n:02}": n / 20 for n in range(21)} | {"only here": 0.0}, {f"{n:02}": (20 - n) / 90 for n in range(21)}]
    assert examples(scored) == ["02", "06", "10", "14", "18"]
    assert examples([{"a": 1.0}]) == ["a"]
    assert examples([]) == examples([{"a": 1.0}, {"b": 1.0}]) == []


def test_the_grid_in_the_documentation_is_read(tmp_path):
    (text,) = re.findall(r"```json\n(.*?)```", (RESULTS.parent / "docs/what-the-numbers-mean.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / "grid.json").write_text(text)
    grid = read_grid(tmp_path / "grid.json")
    (dataset,) = grid.datasets
    assert columns_of(dataset) == ("paper", "last", "clean", "grouped", "external busbra")
    assert {pair.kind for pair in dataset.lists} == {"official", "grouped"}
    assert all(pair.clean for pair in dataset.lists if pair.kind == "official")
    assert dataset.groups and dataset.u_score and grid.latency and grid.reference and grid.surface


def test_figures_are_not_written_without_a_run(folder):
    pytest.importorskip("matplotlib")
    assert main(["benchmark", str(folder / "grid.json"), "--only", "figures", "--out", str(folder / "nothing")]) == 0
    assert not (folder / "nothing/figures").exists()


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("clean1.txt", "a\nq\n", "'q'"),
        ("clean1.txt", "\n", "names no case"),
        ("latency.json", "{}x", "no list of latencies"),
        ("latency.json", '[{"network": "unet"}]', "median_ms"),
        ("cells/d-1-cmunext-s-r-seed1/last.csv", "case,iou\na,0.5\n", "no column 'f1'"),
    ],
)
def test_damaged_files_are_named(folder, file, text, words):
    (folder / file).write_text(text)
    with pytest.raises(InputError, match=words):
        write_tables(read_grid(folder / "grid.json"), folder)


def test_u_score_at_its_ends():
    # all four parts at 1 give 100, all at the floor of 0.05 give 5
    assert u_score(0.9, (0.5, 0.7), math.exp(0.39), math.exp(0.88), 121.63) == pytest.approx(100)
    assert u_score(0.1, (0.5, 0.7), 1000, 1000, 1) == pytest.approx(5)
    # halfway in each part: harmonic means of equal numbers
    assert u_score(0.6, (0.5, 0.7), math.exp(4.32 - 3.93 / 2), math.exp(4.20 - 1.66), 24.28 + 97.35 / 2) == pytest.approx(50)


def test_latencies_that_are_not_there():
    assert frames_per_second(None) == frames_per_second(Path("nowhere.json")) == {}


def test_published_rows_name_networks_of_the_registry():
    from cmunext.networks import names

    assert set(PUBLISHED_SCORES) | set(ABLATION) <= set(names())


@pytest.mark.parametrize(
    "grid", sorted(path.parent / "grid.json" for path in RESULTS.glob("*/tables")), ids=lambda path: path.parent.name
)
def test_committed_tables_are_made_of_the_committed_cells(grid, tmp_path, monkeypatch):
    """One command gives every committed table again, byte for byte, and a value stands only where a cell is finished."""
    monkeypatch.syspath_prepend(grid.parent)  # where a grid's own networks lie
    copy = tmp_path / grid.parent.name
    shutil.copytree(grid.parent, copy, ignore=shutil.ignore_patterns("runs", "tables", "figures"))
    assert main(["benchmark", str(copy / "grid.json"), "--only", "tables"]) == 0
    committed = {path.name: path.read_bytes() for path in (grid.parent / "tables").iterdir()}
    assert {path.name: path.read_bytes() for path in (copy / "tables").iterdir()} == committed
    planned = read_grid(copy / "grid.json")
    for recipe in planned.recipes:
        for dataset in planned.datasets:
            for label in planned.labels:
                done = all(not Store(copy).missing(cell) for cell in cells_of(planned, dataset, recipe, label))
                assert done or value_of(planned, Store(copy), dataset, recipe, label, "last") is None
