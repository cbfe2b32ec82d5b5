"""One configuration of `latency` in its own process, so that memory and start-up time are its own: opens the file, then does as told.

Called as `python -m cmunext.benchmark.latency_worker JOB`, with JOB a JSON object {"path", "backend", "precision", "threads", "inputs"
(.npy), "logits" (.npy, to write)}. Says one JSON line when it is ready; then, for each line on standard input, a number of images, one
with the milliseconds that each took; and at the end of the input one with the peak memory.
"""

import json
import os
import sys
import time
from pathlib import Path


def main(job: dict[str, object]) -> None:
    """Serve one configuration until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # whatever a runtime prints is not an answer

    import numpy as np

    from cmunext.errors import InputError
    from cmunext.inference.backends import open_weights

    inputs = np.load(str(job["inputs"]))
    try:
        precision = None if job["precision"] == "float32" else str(job["precision"])  # None: the file's own, of an INT8 file too
        backend = open_weights(Path(str(job["path"])), str(job["backend"]), threads=int(str(job["threads"])), precision=precision)
        backend(inputs[:1])
    except InputError as error:
        print(json.dumps({"error": str(error)}), file=answers)
        return
    print(json.dumps({"precision": backend.precision}), file=answers)
    np.save(str(job["logits"]), np.concatenate([backend(image[None]) for image in inputs]))
    print(json.dumps({"saved": len(inputs)}), file=answers)
    turn = 0
    for line in sys.stdin:
        times = []
        backend(inputs[:1])  # brings caches and clock back after the others' turn; not timed
        for _ in range(int(line)):
            image = inputs[turn % len(inputs)][None]
            turn += 1
            started = time.perf_counter()
            backend(image)
            times.append(1000 * (time.perf_counter() - started))
        print(json.dumps(times), file=answers)
    print(json.dumps({"peak_memory_bytes": peak_memory()}), file=answers)


def peak_memory() -> int | None:
    """The most physical memory that this process had at any moment, bytes; None where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(
            encoding="ascii"
        )  # not getrusage: that counts the parent before exec as well
        return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
