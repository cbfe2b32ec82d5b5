"""Which runtime and precision `auto` takes for an .onnx file on this machine's CPU: timed once, remembered, and forgotten at will.

ONNX Runtime in float32 is what everything starts from. OpenVINO takes over where it is installed and was measured to be faster, in
bfloat16 only where its masks of simulated images agree with those of float32. What was measured lies in one small file of the cache
folder, an entry for each weights file, machine and number of threads; without the file, or where it cannot be read or written, the
only loss is a measurement.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from cmunext.storage import cache_folder, write_json

# Smallest mean IoU between the masks in bfloat16 and in float32 with which `auto` takes bfloat16. What is meant is 0.995 on patients, but
# phantoms are easier: CMUNeXt-S, trained on BUSI, loses 0.0011 on 64 of them and 0.0038 on the 195 images of BUSI's first validation list.
TOLERANCE = 0.9985
PHANTOMS = 16  # simulated images on which they are compared
SHOWING = 8  # of these must show something in float32: agreeing on empty masks means nothing
ROUNDS = 7  # timed runs of each candidate, in turn
FILE = "backends.json"

ONNXRUNTIME = ("onnxruntime", "float32")
CANDIDATES = (ONNXRUNTIME, ("openvino", "float32"), ("openvino", "bfloat16"))

Measurement = Mapping[str, Any]  # {"median_ms": {"BACKEND PRECISION": milliseconds}, "agreement": mean IoU or None}


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
    if precision == "bfloat16" or (streams or 1) > 1:
        return "openvino", precision
    remembered = _remembered()
    if not _installed("openvino") or not (remembered or measure_now):
        return "onnxruntime", precision
    key = _key(path, threads)
    found = remembered.get(key)
    if not _is_measurement(found):
        if not measure_now:
            return "onnxruntime", precision
        found = measure(path, threads)
        _remember(key, found)
    return best(cast(Measurement, found), precision)


def best(measurement: Measurement, precision: str | None = None) -> tuple[str, str | None]:
    """The fastest of the measured, bfloat16 among them where nobody asked for float32 and it agrees within `TOLERANCE`."""
    agreement = measurement["agreement"]
    allowed = precision is None and agreement is not None and agreement >= TOLERANCE
    times = measurement["median_ms"]
    usable = [each for each in CANDIDATES if " ".join(each) in times and (allowed or each[1] == "float32")]
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
    running |= _openvino(path, threads, reference.precision)
    preprocessing = reference.metadata.preprocessing
    height, width = (max(side, MIN_SIDE) for side in (preprocessing.height, preprocessing.width))
    images = [preprocessing.to_input(simulate(seed, height, width)[0]) for seed in range(PHANTOMS)]
    times = _interleaved({name: partial(backend, images[0]) for name, backend in running.items()})
    lower = running.get("openvino bfloat16")
    agreement = None
    if lower is not None:
        size = (preprocessing.height, preprocessing.width)
        agreement = _agreement(
            [(preprocessing.to_mask(reference(x)[0], size), preprocessing.to_mask(lower(x)[0], size)) for x in images]
        )
    return {"weights": path.name, "threads": threads, "median_ms": times, "agreement": agreement}


def _openvino(path: Path, threads: int | None, stated: str) -> dict[str, Any]:
    from cmunext.inference.backends import openvino

    running = {}
    for backend, precision in CANDIDATES[1:]:
        if precision == "float32" or (stated == "float32" and openvino.runs_bfloat16()):
            running[f"{backend} {precision}"] = openvino.load(path, threads, precision=precision)
    return running


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
    return float(np.mean([(a & b).sum() / (a | b).sum() if (a | b).any() else 1.0 for a, b in pairs]))


def _key(path: Path, threads: int | None) -> str:
    """Changes with the weights' bytes, the machine, the runtimes and the threads."""
    what = (_processor(), os.cpu_count(), version("onnxruntime"), version("openvino"), threads)
    return hashlib.sha256(path.read_bytes() + repr(what).encode()).hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return f"{platform.machine()} {platform.processor()}"
    return " ".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _file() -> Path:
    return cache_folder() / FILE


def _remembered() -> dict[str, Any]:
    try:
        entries = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # not there or damaged: measured again
        return {}
    return entries if isinstance(entries, dict) else {}


def _is_measurement(entry: Any) -> bool:
    times = entry.get("median_ms") if isinstance(entry, dict) else None
    agreement = entry.get("agreement") if isinstance(entry, dict) else None
    return (
        isinstance(times, dict)
        and " ".join(ONNXRUNTIME) in times
        and all(isinstance(value, (int, float)) and value > 0 for value in times.values())
        and (agreement is None or isinstance(agreement, (int, float)))
    )


def _remember(key: str, measurement: Measurement) -> None:
    try:
        write_json(_file(), {**_remembered(), key: measurement})
    except OSError:  # a disk that takes nothing costs a measurement the next time, and no more
        return
