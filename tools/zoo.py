"""The zoo in parts, on a machine with a GPU that is lent for minutes at a time.

    python tools/zoo.py pack DATASET FILE.npz         a dataset as one file: images and masks at 256 x 256, and its lists
    python tools/zoo.py unpack FILE.npz DATASET       and back, as a dataset folder
    python tools/zoo.py run OUT.tar [--minutes 9] [--workers 4] [--device cuda]
    python tools/zoo.py list                          results/zoo.json anew, from the cells and cards that are there

`run` goes on with results/zoo/grid.json where it stands, writes results/zoo.json, and packs what is to be brought back: cells, tables, figures,
zoo.json, and the weights of finished cells, as float16 where no other cell learns from them. What cells that are not finished need to go on,
which is large, goes to OUT-running.tar. Unpack both over the repository (tar xf OUT.tar), and the next part goes on where this one ended.
Cells are scored at 256 x 256, as the published ones are; with the runs at hand, `cmunext evaluate` scores them at native size.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
GRID = ROOT / "results" / "zoo" / "grid.json"
OTHERS = ("three-lists", "sizes", "busbra-busi", "busi")  # grids beside it whose cells stand in zoo.json too
SIDE = 256


def pack(dataset: Path, file: Path) -> None:
    """Write every case at 256 x 256, grey where its channels are equal, with the dataset's lists (*.txt)."""
    from cmunext.data.dataset import load_cases
    from cmunext.data.layout import Layout
    from cmunext.image.preprocess import Preprocessing

    layout = Layout.open(dataset)
    cases = load_cases(layout, layout.cases, Preprocessing(height=SIDE, width=SIDE))
    grey = bool((cases.images == cases.images[..., :1]).all())
    # bytes as they are, for cells name a list by its SHA-256
    lists = {path.name: path.read_bytes().decode("utf-8", "surrogateescape") for path in sorted(dataset.glob("*.txt"))}
    np.savez_compressed(
        file,
        names=np.array(cases.names),
        images=cases.images[..., 0] if grey else cases.images,
        masks=np.packbits(cases.masks[:, 0], axis=None),
        classes=cases.masks.shape[-1],
        lists=json.dumps(lists),
        table=_table(layout.root, dict(zip(cases.names, cases.image_digests, strict=True))),
    )


def _table(dataset: Path, digests: dict[str, str]) -> str:
    """cases.csv of the copies: what the dataset's own says, and of which images they are, for weights name the images that they learnt from."""
    from cmunext.data.table import ORIGINAL_COLUMN, dataset_table, table_content

    table = dataset_table(dataset)
    columns = [*dict.fromkeys(column for row in table.values() for column in row if column != ORIGINAL_COLUMN), ORIGINAL_COLUMN]
    rows = {
        name: dict.fromkeys(columns, "") | table.get(name, {}) | {ORIGINAL_COLUMN: digest} for name, digest in digests.items()
    }
    return table_content(rows, columns).decode()


def unpack(file: Path, dataset: Path) -> None:
    """Write the dataset folder that `pack` read, at 256 x 256."""
    from cmunext.image.files import write_image
    from cmunext.storage import write_bytes, write_text

    with np.load(file, allow_pickle=False) as stored:
        names, images, classes = stored["names"], stored["images"], int(stored["classes"])
        shape = (len(names), SIDE, SIDE, classes)
        masks = np.unpackbits(stored["masks"], count=int(np.prod(shape))).reshape(shape)
        lists, table = json.loads(str(stored["lists"])), str(stored["table"])
    for name, image, mask in zip(names, images, masks, strict=True):
        write_image(dataset / "images" / f"{name}.png", image)
        for number in range(classes):
            write_image(dataset / "masks" / str(number) / f"{name}.png", 255 * mask[..., number])
    for name, text in lists.items():
        write_bytes(dataset / name, text.encode("utf-8", "surrogateescape"))
    write_text(dataset / "cases.csv", table)


def run(out: Path, grid: Path, minutes: float, workers: int, device: str) -> int:
    """One part. Gives the exit code of `cmunext benchmark`: 0 when the grid is complete, 130 when the time was over."""
    from cmunext.storage import read_json, write_json

    chosen = grid.with_name(f".{device}.json")  # beside the grid, because its paths are relative
    write_json(chosen, {**read_json(grid), "device": device})
    command = [sys.executable, "-m", "cmunext", "benchmark", str(chosen), "--out", str(grid.parent)]
    try:
        code = subprocess.run([*command, "--workers", str(workers), "--minutes", str(minutes)], check=False).returncode
        subprocess.run([*command, "--only", "tables"], check=True)
        write_zoo(grid)
    finally:
        chosen.unlink()
        collect(out, grid)  # tables can be made again at home; what was trained on a machine that goes back cannot
    return code


def write_zoo(grid: Path) -> None:
    """results/zoo.json: an entry a finished cell of this grid and the others beside it, with its scores in the columns paper, last and clean;
    and one for each card of weights that were scored on a validation list, in the column last."""
    from cmunext.benchmark.grid_file import read_grid
    from cmunext.benchmark.results import value_of
    from cmunext.benchmark.scores import finite
    from cmunext.benchmark.store import CONFIG, Store
    from cmunext.storage import read_json, write_json

    results, top = grid.parents[1], grid.parents[2]
    grids = [grid, *(results / name / "grid.json" for name in OTHERS)]
    cards = [card for folder in ("src/cmunext/zoo", "zoo") for card in sorted((top / folder).glob("*.json"))]
    entries = []
    for file in filter(Path.is_file, grids):
        read, store = read_grid(file), Store(file.parent)
        for cell in read.cells:
            if store.missing(cell):
                continue
            config = read_json(store.cell(cell) / CONFIG)
            entry = {"network": cell.network, "recipe": cell.recipe.name, "list": cell.lists.name, "seed": cell.recipe.seed}
            alone = replace(read, cells=(cell,))
            for column in ("paper", "last", "clean"):
                if value := value_of(alone, store, cell.dataset, cell.recipe.name, cell.label, column):
                    interval = [value.low, value.high]
                    entry[column] = {"iou": value.iou, "dice": value.f1, "iou_interval": interval, "images": value.images}
            entry |= {"grid": file.parent.name, "scored_at": read.at, "size": cell.recipe.preprocessing.height}
            if cell.mean:
                entry["mean_of"] = [part.recipe.name for part in cell.mean]
            else:
                entry |= {"epochs": cell.recipe.epochs, "device": config["device"], "precision": config["precision"]}
            entries.append(entry)
    for file in cards:
        card = read_json(file)
        if card["validation_list"] != "none":
            scores, recipe = card["scores"]["native size, onnxruntime"], card["recipe"]
            last = {key: scores[key] for key in ("iou", "dice", "iou_interval")} | {"images": scores["n"]}
            entry = {"network": card["network"], "recipe": recipe["name"], "list": card["validation_list"].split()[0]}
            entry |= {"seed": card["seed"], "last": last, "weights": card["name"], "scored_at": "native"}
            entry |= {"size": recipe["preprocessing"]["height"]}
            if "epochs" in card:  # which a mean of weights has not
                entry["epochs"] = card["epochs"]
            entries.append(entry)
    write_json(results / "zoo.json", finite(entries))


def collect(out: Path, grid: Path) -> None:
    """Pack the results of a grid and the weights of its finished cells; and beside `out` the runs of those that are begun, if there are any."""
    from cmunext.benchmark.grid_file import read_grid
    from cmunext.benchmark.store import Store
    from cmunext.storage import replacing
    from cmunext.weights import halved

    store, top, cells = Store(grid.parent), grid.parents[2], read_grid(grid).cells
    needed = {one.identifier for cell in cells for one in cell.needed}
    files = [path for part in ("cells", "tables", "figures") for path in (grid.parent / part).rglob("*") if path.is_file()]
    files += grid.parents[1].glob("zoo.json")
    with replacing(out) as temporary, tarfile.open(temporary, "w") as tar:
        for path in files:
            tar.add(path, path.relative_to(top))
        for cell in cells:
            weights = store.last_weights(cell)
            if not store.missing(cell) and weights.is_file():
                content = (
                    weights.read_bytes() if cell.identifier in needed else halved(weights)
                )  # pupils know teachers by SHA-256
                entry = tarfile.TarInfo(str(weights.relative_to(top)))
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    begun = [store.run(cell) for cell in cells if store.missing(cell) and (store.run(cell) / "recipe.json").is_file()]
    running = out.with_name(f"{out.stem}-running.tar")
    running.unlink(missing_ok=True)
    if begun:
        with replacing(running) as temporary, tarfile.open(temporary, "w") as tar:
            for run_folder in begun:
                tar.add(run_folder, run_folder.relative_to(top))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, paths in (("pack", ("dataset", "file")), ("unpack", ("file", "dataset"))):
        one = commands.add_parser(name)
        for path in paths:
            one.add_argument(path, type=Path)
    commands.add_parser("list").add_argument("--grid", type=Path, default=GRID)
    one = commands.add_parser("run")
    one.add_argument("out", type=Path)
    one.add_argument("--grid", type=Path, default=GRID)
    one.add_argument("--minutes", type=float, default=9)
    one.add_argument("--workers", type=int, default=4)
    one.add_argument("--device", default="cuda")
    chosen = vars(parser.parse_args())
    work: dict[str, Callable[..., int | None]] = {"pack": pack, "unpack": unpack, "run": run, "list": write_zoo}
    return work[chosen.pop("command")](**chosen) or 0


if __name__ == "__main__":
    sys.exit(main())
