"""How long one image takes on this machine: networks x runtimes x precisions x threads, side by side in one run.

Every configuration is a process of its own (see `latency_worker`). They take turns, a few images each, in an order that changes from
turn to turn: whatever else the machine does meets all of them alike, so that ratios between rows hold where the times
themselves do not. What a row computes is compared with PyTorch in float32, on the same images.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunext.benchmark.latency_files import Prepared, prepare_all
from cmunext.errors import InputError, UsageError
from cmunext.image.files import read_image
from cmunext.inference.native import library
from cmunext.metadata import Metadata, measured_classes
from cmunext.metrics import count, scores
from cmunext.phantom import simulate

RUNS_IN = {  # backend -> precisions
    "onnxruntime": ("float32",),
    "openvino": ("float32", "bfloat16"),
    "native": ("float32", "bfloat16"),
    "torch": ("float32",),
}
BURST = 4  # images in a row before the next configuration's turn
PHANTOMS = 4
SIZE = (480, 560)  # of the phantoms, pixels: that of many ultrasound images, so that masks are compared where people see them
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One configuration, measured.

    Attributes
    ----------
    network : as it was asked for: a registered name, the name of weights that come along, or a file.
    backend, precision, threads : what ran it. The precision is what the runtime says, "int8" for such a file.
    median_ms, p5_ms, p95_ms : of one image's way through the network, milliseconds; median, 5th and 95th percentile.
    images_per_second : one after the other, from the median.
    start_up_ms : from the start of the process to its first result: Python, imports, opening, first image.
    peak_memory_bytes : of the whole process; None where the system does not tell.
    file_bytes : the file that this backend opens.
    reference : what the last two are against: "torch in float32", or where the weights are .onnx only "onnxruntime in float32"; "onnxruntime in
        int8" where that file is: then it is itself, and what `export` measured stands in the file.
    max_abs_diff : largest difference of logits.
    mask_iou : mean IoU between the two masks of an image, at the image's size; two empty masks have 1.
    images : timed images.
    """

    network: str
    backend: str
    precision: str
    threads: int
    median_ms: float
    p5_ms: float
    p95_ms: float
    images_per_second: float
    start_up_ms: float
    peak_memory_bytes: int | None
    file_bytes: int
    reference: str
    max_abs_diff: float
    mask_iou: float
    images: int


def measure(
    networks: Sequence[str],
    backends: Sequence[str] = (),
    precisions: Sequence[str] = (),
    threads: Sequence[int] = (1,),
    images: Sequence[Path] = (),
    count: int = 40,
    progress: Progress = lambda text: None,
) -> tuple[list[Row], list[str]]:
    """Measure every combination that exists.

    Parameters
    ----------
    networks : registered names (random weights, with the batch statistics of simulated images), names of weights that come along, or files.
    backends : keys of `RUNS_IN`; none means those that are installed.
    precisions : "float32", "bfloat16"; none means all that a backend runs in.
    threads : of the CPU.
    images : files to compare on; none takes simulated ones.
    count : timed images of each configuration, at least.
    progress : told what is being done.

    Returns
    -------
    The rows, in the order of the arguments, and a sentence for each combination that could not be measured.

    Raises
    ------
    UsageError : an unknown name, a missing file, or no combination at all.
    InputError : an image or a file cannot be used.
    """
    plan = _plan(backends, precisions, threads)
    pixels = [read_image(path) for path in images] or [simulate(seed, *SIZE)[0] for seed in range(PHANTOMS)]
    if any(backend == "native" for backend, _, _ in plan):
        with suppress(InputError, UsageError):  # the process that needs it says so
            library.load_library()  # or the first one's start-up would count it
    with tempfile.TemporaryDirectory(prefix="cmunext-") as folder:
        prepared, troubles = prepare_all(networks, {backend for backend, _, _ in plan}, Path(folder), progress)
        with ExitStack() as stack:
            workers, more = _start(prepared, plan, pixels, Path(folder), stack, progress)
            if not precisions:  # nobody asked for them
                more = {each: trouble for each, trouble in more.items() if each[2] == "float32"}
            if not backends:  # native runs CMUNeXt, and nobody asked for it elsewhere
                more = {each: trouble for each, trouble in more.items() if each[1] != "native"}
            _take_turns(workers, -(-count // BURST), progress)
            rows = [worker.row() for worker in workers]
    return rows, [*troubles, *more.values()]


def installed() -> tuple[str, ...]:
    """The backends whose packages are here; native where it is built, or can be."""
    return tuple(backend for backend in RUNS_IN if (library.available() if backend == "native" else find_spec(backend)))


def _plan(backends: Sequence[str], precisions: Sequence[str], threads: Sequence[int]) -> list[tuple[str, str, int]]:
    for name, given, known in (("backend", backends, RUNS_IN), ("precision", precisions, ("float32", "bfloat16"))):
        for each in given:
            if each not in known:
                raise UsageError(f"there is no {name} {each!r}; choose from {', '.join(known)}")
    if bad := [number for number in threads if number < 1]:
        raise UsageError(f"threads is {bad[0]}; it must be at least 1")
    chosen = backends or installed()
    usable = [(b, p, t) for b in chosen for p in RUNS_IN[b] if not precisions or p in precisions for t in threads]
    if not usable:
        raise UsageError(
            f"{', '.join(chosen)} does not run in {', '.join(precisions)} here; only openvino and native run in bfloat16"
        )
    return usable


class _Worker:
    """One process; `row` is known once it has ended."""

    def __init__(self, template: Row, process: subprocess.Popen[str]):
        self._row, self._process, self._times = template, process, list[float]()

    def ask(self, images: int) -> None:
        """Let it take its turn."""
        assert self._process.stdin is not None
        print(images, file=self._process.stdin, flush=True)
        self._times += _answer(self._process, self._row.network)

    def row(self) -> Row:
        """End it, and say what it measured."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        memory = _answer(self._process, self._row.network)["peak_memory_bytes"]
        p5, median, p95 = (float(each) for each in np.percentile(self._times, (5, 50, 95)))
        return replace(
            self._row,
            median_ms=median,
            p5_ms=p5,
            p95_ms=p95,
            images_per_second=1000 / median,
            peak_memory_bytes=memory,
            images=len(self._times),
        )


def _start(
    prepared: Sequence[Prepared],
    plan: Sequence[tuple[str, str, int]],
    pixels: Sequence[NDArray[np.uint8]],
    folder: Path,
    stack: ExitStack,
    progress: Progress,
) -> tuple[list[_Worker], dict[tuple[str, str, str], str]]:
    """Every configuration's process, ready; and a sentence for each (network, backend, precision) that did not get there."""
    workers, troubles = [], {}
    for number, network in enumerate(prepared):
        preprocessing = network.metadata.preprocessing
        inputs, logits = folder / f"{number}-inputs.npy", folder / f"{number}-logits.npy"
        np.save(inputs, np.concatenate([preprocessing.to_input(image) for image in pixels]))
        reference = "torch" if "torch" in network.files and find_spec("torch") else "onnxruntime"
        with _process(network.files[reference], reference, "float32", 1, inputs, logits) as (started, first):
            if "error" in first:
                raise InputError(first["error"])
            _answer(started, network.name)
        reference = f"{reference} in {first['precision']}"
        expected = np.load(logits)
        for backend, precision, threads in plan:
            if backend not in network.files:
                continue
            progress(f"opening {network.name} with {backend} in {precision}")
            begun = time.perf_counter()
            process, ready = stack.enter_context(_process(network.files[backend], backend, precision, threads, inputs, logits))
            start_up = time.perf_counter() - begun
            if "error" in ready:
                troubles[network.name, backend, precision] = f"{network.name} with {backend} in {precision}: {ready['error']}"
                continue
            _answer(process, network.name)
            difference, iou = _agreement(expected, np.load(logits), network.metadata, pixels)
            size = network.files[backend].stat().st_size
            unknown = float("nan")
            template = Row(
                network.name, backend, ready["precision"], threads, unknown, unknown, unknown, unknown, 1000 * start_up, None,
                size, reference, difference, iou, 0,
            )  # fmt: skip
            workers.append(_Worker(template, process))
    return workers, troubles


@contextmanager
def _process(
    path: Path, backend: str, precision: str, threads: int, inputs: Path, logits: Path
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A process that has opened its file and said so; it is ended behind."""
    job = dict(path=str(path), backend=backend, precision=precision, threads=threads, inputs=str(inputs), logits=str(logits))
    process = subprocess.Popen(
        [sys.executable, "-m", "cmunext.benchmark.latency_worker", json.dumps(job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    try:
        yield process, _answer(process, str(path))
    finally:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answer(process: subprocess.Popen[str], name: str) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise InputError(f"{name}: the process that measured it ended with {process.wait()}; is there memory enough for it?")
    return json.loads(line)


def _take_turns(workers: Sequence[_Worker], turns: int, progress: Progress) -> None:
    order = random.Random(0)
    for turn in range(turns):
        progress(f"measuring, turn {turn + 1} of {turns}")
        for worker in order.sample(list(workers), len(workers)):
            worker.ask(BURST)


def _agreement(
    expected: NDArray[np.float32],
    logits: NDArray[np.float32],
    metadata: Metadata,
    pixels: Sequence[NDArray[np.uint8]],
) -> tuple[float, float]:
    """The largest difference of logits, and the mean IoU of masks; without a background, which would make up for the other classes."""
    to_mask, kept = metadata.preprocessing.to_mask, measured_classes(metadata.classes)
    ious: list[float] = []
    for first, second, image in zip(expected, logits, pixels, strict=True):
        ious += scores(count(*(to_mask(each, image.shape[:2])[kept] for each in (first, second))))["iou"].tolist()
    return float(np.abs(expected - logits).max()), float(np.mean(ious))
