"""`cmunext prepare`, `cmunext audit` and `cmunext split`: from a download to a checked dataset folder with lists."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cmunext.data.audit import Audit
    from cmunext.data.prepare import PrepareReport
    from cmunext.data.split import SplitReport

SHOWN = 10  # lines of one sort on the terminal; --json has them all

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there with other content.")]
DatasetFolder = Annotated[Path, typer.Argument(help="The dataset folder: images/ and masks/0/.", show_default=False)]


def prepare(
    src: Annotated[Path, typer.Argument(help="The folder of the download.", show_default=False)],
    dst: Annotated[Path, typer.Argument(help="The dataset folder to make, outside of SRC.", show_default=False)],
    kind: Annotated[
        str,
        typer.Option(
            help="What SRC is: busi (benign/ malignant/ normal/ with NAME_mask*.png), busbra (Images/ Masks/ bus_data.csv), "
            "pairs (a folder of images beside a folder of masks), or auto."
        ),
    ] = "auto",
    normals: Annotated[
        bool,
        typer.Option("--normals/--no-normals", help="Keep normal cases (empty masks). The 647-case BUSI set is without them."),
    ] = True,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Bring a download into the dataset layout: images/NAME.png and masks/0/NAME.png, a case's masks merged.

    What is there already with the same content is left as it is. Exit code 1 when something had to be skipped.
    """
    from cmunext.cli.console import progress
    from cmunext.data import prepare as library

    report = library.prepare(src, dst, kind=kind, normals=normals, overwrite=overwrite, progress=progress("preparing"))
    _print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if as_json else _prepared(report, dst))
    if report.skipped:
        raise typer.Exit(1)


def audit(
    dataset: DatasetFolder,
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="LIST", help="Further lists.", show_default=False, hidden=True)
    ] = None,
    lists: Annotated[
        list[Path] | None,
        typer.Option(
            "--lists",
            metavar="TRAIN VAL ...",
            help="Lists of names to check against the dataset and each other, training first; sought in DATASET too.",
            show_default=False,
        ),
    ] = None,
    duplicates: Annotated[
        str,
        typer.Option(
            help="What to search for: near (the same frame cropped, rescaled, mirrored, marked, compressed or with another gain; about "
            "30 s for 650 images), exact (equal pixel by pixel; quick) or none."
        ),
    ] = "near",
    similarity: Annotated[
        float,
        typer.Option(
            help="What makes a near duplicate. The default takes copies of a frame, and successive frames of a sweep that hardly moved; "
            "0.7 also takes frames a moment apart."
        ),
    ] = 0.93,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write groups.csv for `split --group`, and NAME_clean.txt of each list but the first: its cases without a duplicate "
            "in a list before it.",
            show_default=False,
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write index.html with the near duplicates side by side, to check by eye.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look a dataset over: pairing, files that cannot be read, sizes, masks, classes, what it holds twice, what its lists share.

    Clusters are cases that show the same frame; leaks are the cases of a list that show the same frame as one of a list before it.
    Exit code 1 when there are problems; leaks are problems, clusters are not.
    """
    from cmunext.cli.console import progress
    from cmunext.data import audit as library
    from cmunext.data.layout import Layout
    from cmunext.data.pictures import write_pictures

    stages = ["looking over", *(["proposing duplicates", "confirming them"] if duplicates == "near" else []), "comparing masks"]
    found = library.audit(
        dataset, [*(lists or ()), *(more or ())], search=duplicates, similarity=similarity, progress=progress(*stages)
    )
    written = list(library.write_findings(dataset, found, out)) if out else []
    if pictures:
        layout = Layout.open(dataset)
        written.append(write_pictures(pictures, layout, found.pairs, library.classes_in(layout), progress("drawing")))
    _print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False) if as_json else _audited(found))
    for path in written:
        typer.echo(f"written: {path}", err=True)
    if found.problems:
        raise typer.Exit(1)


def split(
    dataset: DatasetFolder,
    val: Annotated[
        float | None, typer.Option(help="Share of the cases to validate on; 0.3 unless --folds is given.", show_default=False)
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Number of folds for cross-validation.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same lists on every machine.")] = 0,
    group: Annotated[
        str,
        typer.Option(
            help="What is kept in one list: none, duplicates (images that show the same frame, as audit finds them), a column of "
            "cases.csv such as patient, or a CSV file with the columns case and group; auto is patient where cases.csv has it, else "
            "none."
        ),
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="The folder to write to; DATASET by default.", show_default=False)] = None,
    name: Annotated[
        str | None, typer.Option(help="Start of the lists' names; DATASET's name by default.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Cut a dataset into NAME_train.txt and NAME_val.txt, or into folds, stratified by class."""
    from cmunext.cli.console import progress
    from cmunext.data import split as library

    val = 0.3 if val is None and folds is None else val
    stages = progress("looking for duplicates", "proposing duplicates", "confirming them")
    report = library.split(
        dataset, val=val, folds=folds, seed=seed, group=group, out=out, name=name, overwrite=overwrite, progress=stages
    )
    _print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if as_json else _cut(report))


def _print(text: str) -> None:
    typer.echo(text)


def _prepared(report: "PrepareReport", dst: Path) -> str:
    lines = [f"{report.cases} cases in {dst} ({report.kind}): {report.written} written, {report.unchanged} unchanged"]
    for what, names in (
        ("masks merged", report.merged),
        ("masks resized to their image", report.resized),
        ("masks made 0 and 255", report.binarised),
        ("without a lesion", report.empty),
        ("normal cases left out", report.left_out),
    ):
        if names:
            lines.append(f"{what} ({len(names)}): {_some(names)}")
    return "\n".join(lines + _listed("skipped", [f"{case}: {message}" for case, message in report.skipped]))


def _audited(found: "Audit") -> str:
    images = found.images
    modes = ", ".join(f"{count} {mode}" for mode, count in images["modes"].items() if count)
    lines = [f"{found.cases} cases: {modes}", f"classes: {_classes(found.classes)}"]
    for side in ("height", "width"):
        if images[side]["p50"] is not None:
            lines.append(f"{side}: {images[side]['p0']:g} to {images[side]['p100']:g} pixels, median {images[side]['p50']:g}")
    if images["coloured"]:
        lines.append(f"coloured marks ({len(images['coloured'])}): {_some(images['coloured'])}")
    for number, mask in enumerate(found.masks):
        of_class = f"masks/{number}: "
        if mask["area"]["p50"] is not None:
            shares = ", ".join(f"{percent} {100 * mask['area'][percent]:.2g} %" for percent in ("p5", "p50", "p95"))
            lines.append(f"{of_class}lesion area {shares} of the image")
        several = sum(cases for count, cases in mask["regions"].items() if int(count) > 1)
        lines.append(f"{of_class}{len(mask['empty'])} empty, {several} with more than one connected region")
    for label, one in found.lists.items():
        lines.append(
            f"{label}: {one['cases']} cases ({_classes(one['classes'])}), {len(found.leaks[label])} of them in a list before it"
        )
    if found.unlisted:
        lines.append(f"in none of the lists ({len(found.unlisted)}): {_some(found.unlisted)}")
    if found.search != "none":
        what = "groups of images that show the same frame" if found.search == "near" else "groups of equal images"
        lines += _listed(what, [" = ".join(cluster) for cluster in found.clusters])
    lines += _listed("duplicates of different classes", [" = ".join(pair) for pair in found.cross_class])
    if found.annotated_twice["pairs"]:
        twice = found.annotated_twice
        lines.append(f"frames annotated twice ({twice['pairs']}): IoU of the two masks {twice['mean']:.2f} on average")
    lines += _listed("problems", [f"{problem.kind}: {problem.message}" for problem in found.problems])
    return "\n".join(lines if found.problems else [*lines, "no problems"])


def _cut(report: "SplitReport") -> str:
    lines = [f"seed {report.seed}, {report.groups} groups (kept together: {report.group})"]
    for one in report.lists:
        lines.append(f"{one.path}: {one.cases} cases ({_classes(one.classes)}){', unchanged' if one.unchanged else ''}")
    return "\n".join(lines + _listed("left out", [message for _, message in report.left_out]))


def _classes(counts: dict[str, int] | Any) -> str:
    return ", ".join(f"{count} {kind or 'of unknown class'}" for kind, count in counts.items()) or "none"


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _listed(what: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    more = [f"  and {len(entries) - SHOWN} more; --json has them all"] if len(entries) > SHOWN else []
    return [f"{what} ({len(entries)}):", *(f"  {entry}" for entry in entries[:SHOWN]), *more]
