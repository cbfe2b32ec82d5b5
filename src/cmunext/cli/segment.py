"""`cmunext segment`."""

import json as json_module
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cmunext.cli.termination import termination_as_interrupt

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".m4v", ".webm", ".mpg", ".mpeg", ".wmv")
SQUEEZE = 3  # times, one way more than the other; BUSI's and BUS-BRA's images, from which the weights learnt, stay below 2.2
WORTH_MEASURING = 20  # images from which on `auto` may spend seconds on finding the fastest runtime


def segment(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="PATH...", help="Images, folders of images, glob patterns, or video files.")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="Name of weights that come along, or a file: .onnx, .safetensors, .pth.")
    ] = "cmunext-s-busi",
    out: Annotated[Path, typer.Option(help="Folder for masks, overlays and segmentation.json.")] = Path("segmentation"),
    backend: Annotated[
        str,
        typer.Option(
            help="auto (the fastest here, measured once before the first large folder), onnxruntime, openvino, native or torch."
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, tensorrt, coreml or directml.")] = "cpu",
    precision: Annotated[
        str | None,
        typer.Option(
            help="float32, or with openvino and native bfloat16. Left out: float32, unless auto saw bfloat16 give the same masks."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of the network; 0 leaves it to the runtime.")] = 0,
    streams: Annotated[int, typer.Option(min=0, help="Images that openvino runs at the same time; 0: one.")] = 0,
    jobs: Annotated[int, typer.Option(min=0, help="Helpers that read and write files beside the network; 0: one a core.")] = 0,
    batch: Annotated[int, typer.Option(min=0, help="Images that the network takes at a time; 0: what suits the device.")] = 0,
    spacing: Annotated[
        str | None, typer.Option(metavar="MM[,MM]", help="Millimetres a pixel; two values mean down,across. Adds measures in mm.")
    ] = None,
    camera: Annotated[
        int | None, typer.Option(min=0, help="Segment what this camera sees, until interrupted or --frames are done.")
    ] = None,
    frames: Annotated[int, typer.Option(min=0, help="Stop a video or camera after so many frames; 0: at its end.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files in --out that this program did not write.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the records as one JSON document on stdout.")] = False,
) -> None:
    """Outline the lesions in images, and measure them.

    For each image NAME, the folder --out (by default ./segmentation) gets NAME_mask.png, NAME_overlay.png and an entry in
    segmentation.json: area, box, centroid, axes, perimeter and mean probability of each lesion, and where the
    files lie, absolute. Running it again replaces its own results and nothing else. A file that cannot be read
    is reported, the others are done, and the exit code is 1. Of a TIFF of several pages, and of an animated GIF, the first is segmented.
    Of a folder, masks (NAME_mask.png, NAME_mask_1.png, ... beside NAME.png) and files that are no images are left out, which is said.

    Of a video or camera, --out gets NAME_overlay.mp4 (.avi for .avi), NAME_areas.csv with the lesions of every frame, and an entry
    with those of the frame that shows most.
    """
    from cmunext.errors import UsageError
    from cmunext.image.files import find_images
    from cmunext.inference.results import segment_files
    from cmunext.inference.segmenter import Segmenter

    if not paths and camera is None:
        raise UsageError("there is nothing to segment; name images, folders, or videos, or give --camera 0")
    if any(Path(path).is_dir() and Path(path).resolve() == out.resolve() for path in paths or []):
        raise UsageError(
            f"--out is {out}, the folder to be segmented, where overlays would be taken for images later; choose another --out"
        )
    steps = _spacing(spacing)
    videos: list[Path | int] = [Path(path) for path in paths or [] if path.lower().endswith(VIDEO_SUFFIXES)]
    left_out: list[Path] = []
    sources = find_images((path for path in paths or [] if not path.lower().endswith(VIDEO_SUFFIXES)), left_out.append)
    if camera is not None:
        from cmunext.inference.video import check_camera

        check_camera(camera)
        videos.append(camera)
    if frames and not videos:
        raise UsageError(f"--frames is {frames}, but there is neither a video nor a --camera; leave it out")
    many = bool(videos) or len(sources) >= WORTH_MEASURING
    segmenter = Segmenter.load(weights, backend, device, threads or None, precision, streams or None, measure=many)
    _say_what_was_left_out(left_out)
    records: list[dict[str, Any]] = []
    with termination_as_interrupt():  # either way what is done is recorded
        if sources:
            results = segment_files(segmenter, sources, out, steps, overwrite, weights, jobs, batch)
            for result in _with_progress(results, len(sources)):
                if result.record:
                    records.append(result.record)
                else:
                    print(f"error: {result.error}", file=sys.stderr)
        films = list(_films(videos, segmenter, out, steps, overwrite, weights, jobs, frames or None))
    damaged = [film for film in films if film["frames_missing"]]
    for film in damaged:
        print(
            f"error: {film['source']}: {film['frames_missing']} of its {film['frames'] + film['frames_missing']} frames cannot be read, so "
            "it is cut off or damaged, and the table's times may be too small; copy or export it again",
            file=sys.stderr,
        )
    _warn_of_squeezed([*records, *films], segmenter.preprocessing.height, segmenter.preprocessing.width)
    if json:
        print(json_module.dumps([*records, *films], ensure_ascii=False))
    else:
        if records:
            _print_table(records)
        for film in films:
            print(f"{film['source']}: {film['frames']} frames; overlay {film['overlay']}, areas over time {film['areas']}")
        if records or films:
            how = f"by {segmenter.backend.name} in {segmenter.backend.precision}"
            done = f"{len(records) + len(films)} of {len(sources) + len(videos)} done {how}"
            print(f"{done}; masks, overlays and segmentation.json are in {out}. Not a medical device.")
    if damaged or len(records) + len(films) < len(sources) + len(videos):
        raise typer.Exit(1)


def _say_what_was_left_out(files: list[Path]) -> None:
    """A line on stderr for the masks of images in the folders, and one for what is no image, videos first."""
    from cmunext.image.files import IMAGE_SUFFIXES

    masks = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    films = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    others = [path for path in files if path.suffix.lower() not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)]
    for found, kind, remedy in (
        (masks, "masks of the images beside them", "; give a mask by its name to segment it"),
        (films + others, "no images", "; give a video by its name" if films else ""),
    ):
        if found:
            print(f"left out as {kind}: {found[0].name!r}{_and_more(found)}{remedy}", file=sys.stderr)


def _warn_of_squeezed(records: list[dict[str, Any]], height: int, width: int) -> None:
    """A line on stderr when images are much wider, or much taller, than what the network was made for."""
    ratios = [(record, record["width"] * height / (record["height"] * width)) for record in records]
    squeezed = [record for record, ratio in ratios if max(ratio, 1 / ratio) > SQUEEZE]
    if squeezed:
        first = squeezed[0]
        print(
            f"warning: squeezed to the network's {width} x {height}: {Path(first['source']).name!r} ({first['width']} x "
            f"{first['height']} pixels){_and_more(squeezed)}; what is found there may mean little, crop to the part that matters",
            file=sys.stderr,
        )


def _and_more(found: Sequence[object]) -> str:
    """What follows the name of the first."""
    return f" and {len(found) - 1} more" if len(found) > 1 else ""


def _films(videos, segmenter, out, spacing, overwrite, weights, jobs, frames):
    """The record of each video that could be read; of the others, the error on stderr."""
    if not videos:
        return
    from cmunext.errors import InputError, UsageError
    from cmunext.inference.video import segment_video

    for video in videos:
        progress = (
            (lambda done: print(f"\r{done} frames", end="", file=sys.stderr)) if sys.stderr.isatty() else (lambda done: None)
        )
        try:
            yield segment_video(segmenter, video, out, spacing, overwrite, weights, jobs, frames, progress)
        except UsageError:
            raise
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
        finally:
            if sys.stderr.isatty():
                print(file=sys.stderr)


def _spacing(text: str | None) -> tuple[float, float] | None:
    from cmunext.errors import UsageError

    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 2) or not all(0 < value < float("inf") for value in values):
        raise UsageError(f"--spacing is {text!r}; give millimetres a pixel as one positive number, or two: down,across")
    return values[0], values[-1]


def _with_progress(results, total: int):
    if total == 1 or not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(results, "segmenting", total=total, console=Console(stderr=True))


def _print_table(records: list[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from cmunext.cli.console import table_console

    millimetres = records[0]["spacing_mm"] is not None
    unit, area, suffix = ("mm", "mm²", "_mm") if millimetres else ("px", "px", "")
    several = len(records[0]["classes"]) > 1
    table = Table(box=SIMPLE_HEAD)
    table.add_column("image", overflow="fold")
    columns = (
        "lesion",
        *(("class",) if several else ()),
        f"area {area}",
        f"axes {unit}",
        f"perimeter {unit}",
        "centre x, y px",
        "probability",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for record in records:
        name = Text(Path(record["source"]).name)
        if not record["lesions"]:
            table.add_row(name, "none")
        for number, lesion in enumerate(record["lesions"], 1):
            table.add_row(
                name if number == 1 else "",
                str(number),
                *((Text(record["classes"][lesion["class_index"]]),) if several else ()),
                f"{lesion['area_mm2']:.1f}" if millimetres else str(lesion["area"]),
                f"{lesion['major_axis' + suffix]:.1f} x {lesion['minor_axis' + suffix]:.1f}",
                f"{lesion['perimeter' + suffix]:.1f}",
                f"{lesion['centroid'][0]:.0f}, {lesion['centroid'][1]:.0f}",
                f"{lesion['mean_probability']:.2f}",
            )
    table_console(120).print(table)
