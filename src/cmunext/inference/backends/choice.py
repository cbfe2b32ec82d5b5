"""Which runtime and precision `auto` takes for an .onnx file on this machine's CPU: timed once, remembered, and forgotten at will.

ONNX Runtime in float32 is what everything starts from. OpenVINO where it is installed, and the native library where it was built, take over
where they were measured to be faster, in bfloat16 only where their masks of simulated images agree with those of float32. What was measured
lies in one small file of the cache folder, an entry for each weights file, machine and number of threads; without the file, or where it
cannot be read or written, the only loss is a measurement.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from cmunext.errors import InputError, UsageError
from cmunext.inference.backends import backend_module
from cmunext.inference.native import library
from cmunext.metadata import measured_classes
from cmunext.metrics import count, scores
from cmunext.processor import cores, processor
from cmunext.storage import cache_folder, read_json, write_json

# Smallest mean IoU between the masks in bfloat16 and in float32 with which `auto` takes bfloat16. What is meant is 0.995 on patients, but
# phantoms are easier: CMUNeXt-S, trained on BUSI, loses 0.0011 on 64 of them and 0.0038 on the 195 images of BUSI's first validation list.
TOLERANCE = 0.9985
PHANTOMS = 16  # simulated images on which they are compared
SHOWING = 8  # of these must show something in float32: agreeing on empty masks means nothing
ROUNDS = 7  # timed runs of each candidate, in turn
FILE = "backends.json"

ONNXRUNTIME = ("onnxruntime", "float32")
CANDIDATES = (ONNXRUNTIME, ("openvino", "float32"), ("openvino", "bfloat16"), ("native", "float32"), ("native", "bfloat16"))

# {"median_ms": {"BACKEND PRECISION": milliseconds}, "agreement": {"BACKEND bfloat16": mean IoU with float32, or None}}
Measurement = Mapping[str, Any]


def choose(
    path: Path, threads: int | None, precision: str | None = None, streams: int | None = None, measure_now: bool = False
) -> tuple[str, str | None]:
    """Backend and precision for the .onnx file `path`.

    Parameters
    ----------
    threads : of the CPU; None leaves it to the runtime. A measurement counts for this number only.
    precision : what was asked for; None leaves it open.
    streams : more than one are there in OpenVINO only, and asking for them asks for it.
    measure_now : measure and remember where nothing is remembered; otherwise onnxruntime is taken then.

    Raises
    ------
    InputError : what opening the file raises, when it is measured.
    """
    if (streams or 1) > 1:
        return "openvino", precision
    others, remembered, found = _others(), _remembered(), None
    if others and (remembered or measure_now):
        key = _key(path, threads, others)
        found = remembered.get(key)
        if measure_now and not _is_measurement(found):
            found = measure(path, threads)
            _remember(key, found)
        elif not _is_measurement(found):  # what was measured before native was built is still true of the others
            found = remembered.get(_key(path, threads, ()))
    if _is_measurement(found):
        return best(cast(Measurement, found), precision)
    if precision == "bfloat16":
        return (others[0] if others else "openvino"), precision
    return "onnxruntime", precision


def best(measurement: Measurement, precision: str | None = None) -> tuple[str, str | None]:
    """The fastest of the measured: in bfloat16 where that was asked for, or where nobody asked and it agrees within `TOLERANCE`."""
    times, agreement = measurement["median_ms"], measurement["agreement"]

    def allowed(name: str, computed_in: str) -> bool:
        if computed_in == "float32":
            return precision != "bfloat16"
        return precision == "bfloat16" or (precision is None and (agreement.get(name) or 0) >= TOLERANCE)

    usable = [each for each in CANDIDATES if " ".join(each) in times and allowed(" ".join(each), each[1])]
    if not usable:
        return "openvino", precision  # which says what it cannot do
    backend, chosen = min(usable, key=lambda each: times[" ".join(each)])
    return backend, (chosen if chosen == "bfloat16" else precision)


def measure(path: Path, threads: int | None) -> Measurement:
    """Time the candidates in turn, on one image, and compare the masks of bfloat16 with those of float32.

    Raises InputError when the file cannot be used. A candidate that this machine or file does not run in is left out.
    """
    from cmunext.inference.backends import onnx
    from cmunext.phantom import MIN_SIDE, simulate

    reference = onnx.load(path, threads)
    running: dict[str, Any] = {" ".join(ONNXRUNTIME): reference}
    others = _others()
    for backend, precision in CANDIDATES[1:]:
        if backend in others and (precision == "float32" or reference.precision == "float32"):
            with suppress(InputError, UsageError):  # it cannot run this file, or not in this precision
                asked = precision if reference.precision == "float32" else None
                running[f"{backend} {precision}"] = backend_module(backend).load(path, threads, precision=asked)
    preprocessing = reference.metadata.preprocessing
    height, width = (max(side, MIN_SIDE) for side in (preprocessing.height, preprocessing.width))
    images = [preprocessing.to_input(simulate(seed, height, width)[0]) for seed in range(PHANTOMS)]
    times = _interleaved({name: partial(backend, images[0]) for name, backend in running.items()})
    size = (preprocessing.height, preprocessing.width)
    kept = measured_classes(reference.metadata.classes)  # a background is easy, and would make up for the others
    exact = [preprocessing.to_mask(reference(image)[0], size)[kept] for image in images]
    agreement = {
        name: _agreement(
            [(mask, preprocessing.to_mask(backend(image)[0], size)[kept]) for mask, image in zip(exact, images, strict=True)]
        )
        for name, backend in running.items()
        if name.endswith("bfloat16")
    }
    return {"weights": path.name, "threads": threads, "median_ms": times, "agreement": agreement}


def _interleaved(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of each, run in turn after one untimed round, so that other load on the machine meets all alike."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if turn:
                taken[name].append(1000 * (time.perf_counter() - started))
    return {name: float(np.median(times)) for name, times in taken.items()}


def _agreement(pairs: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> float | None:
    """Mean IoU of mask pairs (two empty masks agree); None where too few of the first show anything, and not everything."""
    if sum(first.any() and not first.all() for first, _ in pairs) < SHOWING:
        return None
    return float(np.mean([scores(count(a, b).pooled())["iou"] for a, b in pairs]))


def _key(path: Path, threads: int | None, others: Collection[str]) -> str:
    """Changes with the weights' bytes, the machine, the runtimes (native where it is one of the others) and the threads."""
    runtimes = [
        _version("onnxruntime"),
        _version("onnx"),
        _version("openvino"),
        *([library.library_path().name] if "native" in others else []),
    ]
    what = (processor(), cores(), runtimes, threads)
    return hashlib.sha256(path.read_bytes() + repr(what).encode()).hexdigest()


def _others() -> list[str]:
    """The runtimes beside onnxruntime that are ready: what is not built is not built here."""
    ready = {"openvino": _version("openvino") is not None, "native": _version("onnx") is not None and library.is_built()}
    return [name for name, is_ready in ready.items() if is_ready]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _file() -> Path:
    return cache_folder() / FILE


def _remembered() -> dict[str, Any]:
    try:
        entries = read_json(_file())
    except (OSError, ValueError):  # not there or damaged: measured again
        return {}
    return entries if isinstance(entries, dict) else {}


def _is_measurement(entry: Any) -> bool:
    times = entry.get("median_ms") if isinstance(entry, dict) else None
    agreement = entry.get("agreement") if isinstance(entry, dict) else None
    return (
        isinstance(times, dict)
        and " ".join(ONNXRUNTIME) in times
        and all(isinstance(value, (int, float)) and value > 0 for value in times.values())
        and isinstance(agreement, dict)
        and all(value is None or isinstance(value, (int, float)) for value in agreement.values())
    )


def _remember(key: str, measurement: Measurement) -> None:
    try:
        write_json(_file(), {**_remembered(), key: measurement})
    except OSError:  # a disk that takes nothing costs a measurement the next time, and no more
        return
