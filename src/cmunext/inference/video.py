"""Segmenting a video, or what a camera sees, frame by frame: an overlay video, and a table of the lesions' area over time."""

import csv
import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunext.errors import InputError, UsageError
from cmunext.image.files import MIN_SIDE, silence_opencv
from cmunext.inference.lesions import Spacing
from cmunext.inference.pipeline import overlapped
from cmunext.inference.records import Record, recording
from cmunext.inference.results import draw, pace
from cmunext.inference.segmenter import Segmentation, Segmenter
from cmunext.metadata import BACKGROUND
from cmunext.storage import replacing

CODECS = {".avi": "MJPG", ".mp4": "mp4v"}  # of the overlays; both are in every build of OpenCV from PyPI
FRAME_RATE = 25.0  # where a file or camera does not tell one
COLUMNS = ("frame", "time_s", "class", "lesions", "area", "area_mm2", "largest_area", "mean_probability")

Frame = tuple[float, NDArray[np.uint8]]  # seconds since the first one, and uint8 H x W x 3 (RGB)


def segment_video(
    segmenter: Segmenter,
    source: Path | int,
    out: str | os.PathLike[str],
    spacing: Spacing | None = None,
    overwrite: bool = False,
    weights: str = "",
    jobs: int = 0,
    frames: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Segment a video and write NAME_overlay.mp4 (.avi for .avi), NAME_areas.csv and an entry of segmentation.json into `out`.

    The table has a row for each frame and class: frame (from 0), time_s (from the frame rate; of a camera, by the clock), class,
    lesions (their number), area (of all, pixels), area_mm2 (empty without a spacing), largest_area (pixels), mean_probability
    (over the lesions; empty without one).

    Parameters
    ----------
    source : a file, or the number of a camera.
    spacing, overwrite, weights, jobs : as for `segment_files`.
    frames : stop after so many; None goes on to the end, with a camera until it is interrupted.
    progress : told the number of frames that are done.

    Returns
    -------
    The record: {"source", "width", "height", "frames", "frames_missing", "frame_rate", "weights", "backend", "precision", "spacing_mm",
    "classes", "mask": [], "overlay", "areas", "frame", "lesions"}. The lesions are those of "frame", the one in which they are largest
    together. "frames_missing" is 0 unless the file, cut off or damaged, declares so many more than could be read; numbers and times of those
    behind a damaged place are then too small. In segmentation.json paths are kept as `segment_files` tells.

    Raises
    ------
    UsageError : when there is no such file, or an output would overwrite an input or a file that no earlier run wrote.
    InputError : when it cannot be opened as a video, or has no frame.
    OSError : when the folder cannot be written, or the disk is full. An interrupted file leaves nothing behind.
    """
    live = isinstance(source, int)
    named = Path(f"camera-{source}") if live else Path(str(source))
    suffix = ".avi" if named.suffix.lower() == ".avi" else ".mp4"

    def outputs(name: str) -> Record:
        return {"mask": [], "overlay": f"{name}_overlay{suffix}", "areas": f"{name}_areas.csv"}

    with _opened(source) as capture:
        rate = _frame_rate(capture)
        moving = _frames(capture, rate, live, frames)
        first = next(moving, None)
        if first is None:
            raise InputError(f"{named}: this video has no frame that can be read; export it again, as .mp4 or .avi")
        height, width = first[1].shape[:2]
        if min(height, width) < MIN_SIDE:  # OpenCV's encoders do not survive 4 x 4
            raise InputError(f"{named}: {width} x {height} pixels are too few; at least {MIN_SIDE} x {MIN_SIDE} are needed")
        with recording(out, [named], outputs, overwrite) as records:
            picture, table = (Path(out) / records.files[named][key] for key in ("overlay", "areas"))
            with replacing(table) as table_file, replacing(picture) as picture_file:
                written_rate = rate if suffix == ".avi" else _writable(rate)
                writer = cv2.VideoWriter(
                    str(picture_file), cv2.VideoWriter.fourcc(*CODECS[suffix]), written_rate, (width, height)
                )
                if not writer.isOpened():
                    raise InputError(f"{picture}: this OpenCV ({cv2.__version__}) has no encoder for it; name the input .avi")
                try:
                    summary = _run(segmenter, first, moving, writer, table_file, spacing, jobs, live, progress)
                finally:
                    writer.release()
                _require_frames(picture_file, summary["frames"], picture)
            record = {
                "source": str(named),
                "width": width,
                "height": height,
                "frames": summary["frames"],
                "frames_missing": 0 if live or summary["frames"] == frames else _missing(capture, summary["frames"]),
                "frame_rate": rate,
                "weights": weights,
                "backend": segmenter.backend.name,
                "precision": segmenter.backend.precision,
                "spacing_mm": list(spacing) if spacing else None,
                "classes": list(segmenter.metadata.classes),
                "mask": [],
                "overlay": str(picture),
                "areas": str(table),
                "frame": summary["frame"],
                "lesions": summary["lesions"],
            }
            records.add(named, record)
    return record


def _run(
    segmenter: Segmenter,
    first: Frame,
    others: Iterator[Frame],
    writer: cv2.VideoWriter,
    table: Path,
    spacing: Spacing | None,
    jobs: int,
    live: bool,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Every frame through the network, into the video and the table; the number of frames, and the one that shows most."""
    size = first[1].shape[:2]

    def finish(
        frame: Frame, prepared: NDArray[np.float32], logits: NDArray[np.float32]
    ) -> tuple[Segmentation, NDArray[np.uint8]]:
        segmentation = segmenter.interpret(logits, size, spacing)
        return segmentation, cv2.cvtColor(draw(frame[1], segmentation), cv2.COLOR_RGB2BGR)

    def all_frames() -> Iterator[Frame]:
        yield first
        yield from others

    helpers, batch = pace(segmenter, 2, jobs, 0)
    results = overlapped(
        all_frames(),
        lambda frame: segmenter.preprocessing.to_input(frame[1]),
        segmenter.predict_inputs,
        finish,
        jobs=helpers,
        batch=1 if live else batch,
    )
    summary: dict[str, Any] = {"frames": 0, "frame": None, "lesions": []}
    largest = 0
    with table.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(COLUMNS)
        try:
            for number, (frame, outcome) in enumerate(results):
                if isinstance(outcome, InputError):
                    raise outcome
                segmentation, drawn = outcome
                writer.write(drawn)
                rows.writerows(_rows(number, frame[0], segmentation, segmenter.metadata.classes))
                area = sum(lesion.area for lesion in segmentation.lesions)
                if area > largest:
                    largest = area
                    summary |= {"frame": number, "lesions": [lesion.to_dict() for lesion in segmentation.lesions]}
                summary["frames"] = number + 1
                progress(number + 1)
        except KeyboardInterrupt:
            if not live or not summary["frames"]:  # a camera has no other end
                raise
        finally:
            results.close()
    return summary


def _rows(number: int, seconds: float, segmentation: Segmentation, classes: tuple[str, ...]) -> Iterator[list[Any]]:
    for index, name in enumerate(classes):
        if name == BACKGROUND:
            continue
        lesions = [lesion for lesion in segmentation.lesions if lesion.class_index == index]
        area = sum(lesion.area for lesion in lesions)
        millimetres = [lesion.area_mm2 for lesion in lesions if lesion.area_mm2 is not None]
        yield [
            number,
            f"{seconds:.3f}",
            name,
            len(lesions),
            area,
            f"{sum(millimetres):.3f}" if millimetres else "",
            lesions[0].area if lesions else 0,
            f"{sum(lesion.mean_probability * lesion.area for lesion in lesions) / area:.4f}" if lesions else "",
        ]


def _require_frames(written: Path, frames: int, named: Path) -> None:
    """Raise OSError when a video holds fewer frames than it was given: OpenCV's writer does not tell of a disk that is full."""
    video = cv2.VideoCapture(str(written))
    try:
        whole = all(video.grab() for _ in range(frames))
    finally:
        video.release()
    if not whole:
        raise OSError(errno.ENOSPC, f"not all of its {frames} frames could be written; is the disk full?", str(named))


@contextmanager
def _opened(source: Path | int) -> Iterator[cv2.VideoCapture]:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet: whatever there is to say, we say
    if isinstance(source, Path) and not source.exists():
        raise UsageError(f"{source}: there is no such file; check the name")
    silence_opencv()
    capture = cv2.VideoCapture(source) if isinstance(source, int) else cv2.VideoCapture(str(source), _reader())
    try:
        if not capture.isOpened():
            if isinstance(source, int):
                raise InputError(f"camera {source} cannot be opened; connect it, or choose another number")
            raise InputError(f"{source}: this OpenCV ({cv2.__version__}) cannot open it as a video; export it as .mp4 or .avi")
        yield capture
    finally:
        capture.release()


def _reader() -> int:
    """FFmpeg where this OpenCV has it: the others that it would try in turn complain on stderr about what they cannot read."""
    return cv2.CAP_FFMPEG if cv2.CAP_FFMPEG in cv2.videoio_registry.getStreamBackends() else cv2.CAP_ANY


def check_camera(camera: int) -> None:
    """Raise InputError when the camera of that number cannot be opened."""
    with _opened(camera):
        pass


def _frame_rate(capture: cv2.VideoCapture) -> float:
    told = capture.get(cv2.CAP_PROP_FPS)
    return float(told) if 0 < told < 1000 else FRAME_RATE


def _writable(rate: float) -> float:
    """The rate as MPEG-4 holds it: a fraction of numbers up to 65535, which OpenCV takes from its decimals."""
    return round(rate, 3 if rate < 65 else 2 if rate < 655 else 1)


def _missing(capture: cv2.VideoCapture, read: int) -> int:
    """How many frames a file declares beyond those that could be read. What some formats declare is an estimate: one in a hundred is none."""
    missing = round(capture.get(cv2.CAP_PROP_FRAME_COUNT)) - read
    return missing if missing > 1 + read // 100 else 0


def _frames(capture: cv2.VideoCapture, rate: float, live: bool, most: int | None) -> Iterator[Frame]:
    began, number = time.monotonic(), 0
    while most is None or number < most:
        good, frame = capture.read()
        if not good:
            return
        pixels = cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB if frame.ndim == 2 else cv2.COLOR_BGR2RGB)
        yield (time.monotonic() - began if live else number / rate), pixels
        number += 1
