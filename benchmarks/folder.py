"""Images a second of `cmunext segment` over a folder, beside those of its network alone, in one interleaved run.

    python benchmarks/folder.py FOLDER [--images N] [--run BACKEND:PRECISION ...] [--threads N] [--jobs N] [--rounds N]

The network alone is the same backend object, called with inputs that lie ready in memory. Both take turns, N images at a time, and each
line is the median over the rounds. Wall time is what a user waits, and other load on the machine falls into it. Processor time (of all
threads) hardly notices other load; network_cpu_ms / folder_cpu_ms is the ratio that a single idle core would come to.
The last line of each run splits one image's processor time: every stage by itself, in one thread, on all the images.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmunext.image.files import find_images, read_image, write_image, write_mask
from cmunext.inference import results
from cmunext.inference.lesions import measure
from cmunext.inference.records import recording
from cmunext.inference.segmenter import Segmenter

RUNS = ("onnxruntime:float32", "openvino:float32", "openvino:bfloat16")


def throughput(segmenter: Segmenter, sources: Sequence[Path], out: Path, jobs: int, rounds: int) -> dict[str, float]:
    """Images a second and milliseconds of processor time an image, with and without all that is around the network.

    Every round writes into a folder of its own in `out`, and none is deleted meanwhile: ext4 takes long to make files where others
    have just been deleted.
    """
    inputs = [segmenter.preprocessing.to_input(read_image(source)) for source in sources]

    def network() -> None:
        for each in inputs:
            segmenter.backend(each)

    def folder() -> None:
        for result in results.segment_files(segmenter, sources, tempfile.mkdtemp(dir=out), jobs=jobs):
            assert result.record, result.error

    segmenter.backend(inputs[0])
    measured: dict[str, list[tuple[float, float]]] = {"network": [], "folder": []}
    for _ in range(rounds):
        for name, run in (("network", network), ("folder", folder)):
            measured[name].append(_timed(run))
    wall, cpu = ({name: np.array(times)[:, kind] / len(sources) for name, times in measured.items()} for kind in (0, 1))
    return {
        "network_images_per_s": round(statistics.median(1 / wall["network"]), 2),
        "folder_images_per_s": round(statistics.median(1 / wall["folder"]), 2),
        "ratio": round(statistics.median(wall["network"] / wall["folder"]), 3),
        "network_cpu_ms": round(1000 * statistics.median(cpu["network"]), 2),
        "folder_cpu_ms": round(1000 * statistics.median(cpu["folder"]), 2),
        "ratio_cpu": round(statistics.median(cpu["network"] / cpu["folder"]), 3),
    }


def split(segmenter: Segmenter, sources: Sequence[Path]) -> dict[str, float]:
    """Milliseconds of processor time that each stage takes for one image, on average."""
    milliseconds: dict[str, float] = {}

    def stage(name: str, work: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
        began = time.process_time()
        done = [work(*each) for each in zip(*arguments, strict=True)]
        milliseconds[name] = round(1000 * (time.process_time() - began) / len(sources), 3)
        return done

    preprocessing = segmenter.preprocessing
    images = stage("decode", read_image, sources)
    inputs = stage("to_input", preprocessing.to_input, images)
    logits = [each[0] for each in stage("network", segmenter.predict_batch, inputs)]

    found = stage("masks", lambda each, image: preprocessing.to_foreground(each, image.shape[:2]), logits, images)
    stage("lesions", lambda each: [measure(mask, probability) for mask, probability in zip(*each, strict=True)], found)
    segmentations = [segmenter.interpret(each, image.shape[:2]) for each, image in zip(logits, images, strict=True)]
    pictures = stage("overlay", results.draw, images, segmentations)
    with tempfile.TemporaryDirectory() as out:
        paths = [Path(out) / f"{number}.png" for number in range(len(sources))]
        stage("write mask", write_mask, paths, [mask[0] for mask, _ in found])
        stage("write overlay", write_image, paths, pictures)
        records = list(results.segment_files(segmenter, sources, Path(out) / "all"))
        began, classes = time.process_time(), segmenter.metadata.classes
        with recording(Path(out) / "all", sources, lambda name: results.output_names(name, classes), overwrite=False) as opened:
            for each in records:
                opened.add(each.source, each.record or {})
        milliseconds["records"] = round(1000 * (time.process_time() - began) / len(sources), 3)
    return milliseconds


def _timed(run: Callable[[], None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--run", nargs="+", default=RUNS, metavar="BACKEND:PRECISION")
    parser.add_argument("--weights", default="cmunext-s-busi")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found = find_images([given.folder])
    sources = found[:: max(1, len(found) // given.images)][: given.images]
    for run in given.run:
        backend, precision = run.split(":")
        segmenter = Segmenter.load(given.weights, backend, threads=given.threads, precision=precision)
        with tempfile.TemporaryDirectory() as out:
            measured = throughput(segmenter, sources, Path(out), given.jobs, given.rounds)
        print(json.dumps({"run": run, "images": len(sources), **measured}), flush=True)
        print(json.dumps({"run": run, **split(segmenter, sources)}), flush=True)


if __name__ == "__main__":
    main()
