"""Whether what lies in a grid's folder was made by the plan that the grid has now, so that nothing unequal is put side by side."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cmunext.benchmark.grid import Cell, Grid
from cmunext.benchmark.store import CONFIG, Store
from cmunext.data.layout import CLASSES, Layout, list_entries, resolve
from cmunext.errors import InputError, UsageError
from cmunext.metadata import unnamed_classes
from cmunext.storage import file_sha256, read_json


def plan_of(grid: Grid, cell: Cell) -> dict[str, Any]:
    """What decides a cell's results, as plain values: what `config.json` must agree with. Lists that are not here are left out."""
    files = {"train_sha256": cell.lists.train, "validation_sha256": cell.lists.validation}
    if isinstance(cell.start, Path):
        files["start_sha256"] = cell.start
    return {
        "cell": cell.identifier,
        "network": cell.network,
        "arguments": cell.arguments,
        "dataset": cell.dataset.name,
        "list": cell.lists.name,
        "at": grid.at,
        "surface": grid.surface,
        "recipe": json.loads(json.dumps(cell.recipe.to_dict())),
        **_named_classes(cell.dataset.root),
        **({"teachers": [teacher.identifier for teacher in cell.teachers]} if cell.teachers else {}),
        **({"start": cell.start.identifier} if isinstance(cell.start, Cell) else {}),
        **({"mean": [part.identifier for part in cell.mean]} if cell.mean else {}),
        **({"external": external} if (external := _external(cell)) else {}),
        **{name: file_sha256(path) for name, path in files.items() if path.is_file()},
    }


def _external(cell: Cell) -> dict[str, str]:
    """External dataset -> SHA-256 of its cases' names, for those that are here and that the cell is scored on."""
    if cell.lists.kind != "official":
        return {}
    here = (one for one in cell.dataset.external if one.root.is_dir() and (one.cases is None or one.cases.is_file()))
    return {one.name: hashlib.sha256("\n".join(one.names(Layout.open(one.root))).encode()).hexdigest() for one in here}


def _named_classes(root: Path) -> dict[str, list[str]]:
    """The names of a dataset's classes under "classes"; nothing where it gives none, or is not here."""
    if not (root / CLASSES).is_file():
        return {}
    names = Layout.open(root).class_names
    return {} if names == unnamed_classes(len(names)) else {"classes": list(names)}


def check_agreement(grid: Grid, cell: Cell, store: Store) -> None:
    """Raise UsageError when the cell was finished by another plan than the grid's, so that nothing unequal is put side by side."""
    path = store.cell(cell) / CONFIG
    if not path.is_file():
        return
    try:
        kept = read_json(path)
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); delete its folder to run the cell again") from error
    absent = ("teachers", "start", "mean", *([] if isinstance(cell.start, Path) else ["start_sha256"]))  # unless planned
    plan = plan_of(grid, cell)
    scored, external = kept.get("external", {}), plan.pop("external", {})
    changed = [
        _what_differs(key, kept.get(key), value)
        for key, value in (dict.fromkeys(absent) | plan).items()
        if kept.get(key) != value
    ]
    # one that the cell is not yet scored on contradicts nothing
    changed += [f"external dataset {name}" for name, digest in external.items() if scored.get(name, digest) != digest]
    if changed:
        raise UsageError(
            f"{path} was made with another {changed[0]} than the grid now has; delete its folder, or give another --out"
        )


def _what_differs(key: str, kept: Any, planned: Any) -> str:
    if not (isinstance(kept, dict) and isinstance(planned, dict)):
        return key
    return f"{key} {next((one for one in planned if kept.get(one) != planned[one]), '')}".strip()


def check_run(cell: Cell, store: Store) -> None:
    """Raise InputError when the cell's run is a training by another plan: its weights must not be scored as the cell's."""
    from cmunext.training.lineage import digests
    from cmunext.training.task import completed

    run = store.run(cell)
    path = run / "recipe.json"
    if not path.is_file():
        return
    saved = read_json(path)
    recipe = completed(cell.recipe, saved["arguments"]["num_classes"], saved["recipe"]["precision"])
    before = digests(saved)
    lists = (("train", cell.lists.train), ("validation", cell.lists.validation))
    agrees = {
        "network": saved["network"] == cell.network,
        "network argument": cell.arguments.items() <= saved["arguments"].items(),
        "recipe": saved["recipe"] == json.loads(json.dumps(recipe.to_dict())),
        **{f"{name} list": resolve(list_entries(file), saved[name]) == saved[name] for name, file in lists},
        "set of teachers": _are_those(before["teachers"], cell.teachers, store),
        "start": _are_those(before["start"], [cell.start] if cell.start else [], store),
    }
    if differing := [name for name, same in agrees.items() if not same]:
        raise InputError(f"{run} holds a training with another {differing[0]}; delete it, or give another --out")


def _are_those(before: Sequence[str], planned: Iterable[Path | Cell], store: Store) -> bool:
    """Whether the weights that a run learnt from, by SHA-256 in any order, are the planned ones; a file that is not here may be any."""
    files = [store.last_weights(one) if isinstance(one, Cell) else one for one in planned]
    return len(before) == len(files) and {file_sha256(file) for file in files if file.is_file()} <= set(before)
