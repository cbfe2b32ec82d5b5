"""What the search for near duplicates finds and misses in a dataset folder, and what it costs. Run it from the repository's root:

    python -m benchmarks.duplicates DATASET [--lists TRAIN VAL] [--copies 100]
    python -m benchmarks.duplicates DATASET ... --size 10000

The first prints what the dataset holds: pairs, clusters, leaks of the lists, and clusters that mix patients where its table names them
(BUS-BRA's does), which are wrong unless the pictures say otherwise: `cmunext audit --pictures` shows them. Then the share of made copies
that are found again, by kind, each among all images of the dataset. The second prints time and memory alone, over so many images:
those of the datasets, then simulated ones. Every line is a JSON object.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain, count, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.data.copies import KINDS

from cmunext.data.duplicates import Pair, clusters, digest, find, plain
from cmunext.data.fingerprint import Fingerprint, fingerprint
from cmunext.data.layout import Layout
from cmunext.data.leaks import find_leaks
from cmunext.data.split import AUTO, groups_of
from cmunext.data.table import PATIENT_COLUMN
from cmunext.image.files import read_grey, read_image
from cmunext.phantom import simulate

Named = tuple[str, NDArray[np.uint8]]
Taken = tuple[dict[str, bytes], dict[str, Fingerprint]]  # digests and fingerprints, by case


def of_folder(layout: Layout) -> Iterator[Named]:
    return ((name, plain(read_image(layout.image(name)))) for name in layout.cases)


def simulated() -> Iterator[Named]:
    return ((f"simulated {seed}", simulate(seed, 300, 360)[0]) for seed in count())


def take(images: Iterable[Named]) -> tuple[Taken, dict[str, float]]:
    """Digests and fingerprints, and seconds to read (or make) the images and to take fingerprints of them."""
    digests, prints, reading, taking = {}, {}, 0.0, 0.0
    before = time.process_time()
    for name, image in images:
        ready = time.process_time()
        digests[name], prints[name] = digest(image), fingerprint(image)
        done = time.process_time()
        reading, taking, before = reading + ready - before, taking + done - ready, done
    return (digests, prints), {"images_s": reading, "fingerprints_s": taking}


def searched(images: Iterable[Named]) -> tuple[Taken, tuple[Pair, ...], dict[str, float]]:
    """Digests and fingerprints, the pairs found, and the cost: seconds, and the most memory the process held."""
    taken, seconds = take(images)
    before = time.process_time()
    pairs = find(*taken)
    seconds["search_s"] = time.process_time() - before
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return taken, pairs, {stage: round(value, 1) for stage, value in (seconds | {"peak_mb": peak}).items()}


def contents(layout: Layout, pairs: tuple[Pair, ...], lists: list[list[str]]) -> dict[str, Any]:
    """What the dataset holds: pairs, clusters, leaks, and clusters in which a table of patients names several."""
    found = clusters(pairs)
    told: dict[str, str] = {}
    report: dict[str, Any] = {"images": len(layout.cases), "pairs": len(pairs), "clusters": len(found), "leaks": told}
    for names in lists:
        entries = {name: layout.read_list(name) for name in names}
        leaks = find_leaks(entries, found)[names[1]]
        told[names[1]] = f"{len(leaks)} of {len(entries[names[1]])}"
    column, patient = groups_of(layout, layout.cases, AUTO)
    if column == PATIENT_COLUMN:
        mixed = [cluster for cluster in found if len({patient[case] for case in cluster}) > 1]
        report["of_several_patients"] = mixed
        report["share_of_images"] = round(sum(map(len, mixed)) / len(layout.cases), 4)
    return report


def recall(layout: Layout, taken: Taken, pairs: tuple[Pair, ...], number: int) -> Iterator[dict[str, Any]]:
    """By kind: how many copies of `number` images are paired with their original, and which with images that are no duplicates of it."""
    digests, prints = taken
    random = np.random.default_rng(0)
    chosen = random.choice(layout.cases, min(number, len(layout.cases)), replace=False).tolist()
    cluster_of = {case: cluster for cluster in clusters(pairs) for case in cluster}
    for kind, copy in KINDS.items():
        original_of = {f"{case}/copy": case for case in chosen}
        copies = ((name, copy(read_grey(layout.image(case)), random)) for name, case in original_of.items())
        (more_digests, more_prints), _ = take(copies)
        found = [pair for pair in find(digests | more_digests, prints | more_prints) if pair.second in original_of]
        own = {pair.second: pair.correlation for pair in found if pair.first == original_of[pair.second]}
        relatives = {name: {case, *cluster_of.get(case, ())} for name, case in original_of.items()}
        wrong = [pair for pair in found if original_of.get(pair.first, pair.first) not in relatives[pair.second]]
        yield {
            "kind": kind,
            "copies": len(original_of),
            "recall": round(len(own) / len(original_of), 3),
            "lowest_correlation": round(min(own.values(), default=0), 3),
            "missed": sorted(case for name, case in original_of.items() if name not in own),
            "wrong": [(pair.first, pair.second) for pair in wrong],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", metavar="DATASET")
    parser.add_argument("--lists", nargs=2, action="append", default=[], metavar=("TRAIN", "VAL"), help="may be given again")
    parser.add_argument("--copies", type=int, default=100, help="made of each kind; 0 for none")
    parser.add_argument("--size", type=int, help="number of images, for time and memory alone")
    given = parser.parse_args()
    layouts = [Layout.open(root) for root in given.datasets]
    if given.size:
        images = (image for _, image in chain(*map(of_folder, layouts), simulated()))
        _, pairs, cost = searched((str(number), image) for number, image in enumerate(islice(images, given.size)))
        print(json.dumps({"images": given.size, "pairs": len(pairs), **cost}))
        return
    for layout in layouts:
        taken, pairs, cost = searched(of_folder(layout))
        print(json.dumps(contents(layout, pairs, given.lists) | cost), flush=True)
        for line in recall(layout, taken, pairs, given.copies) if given.copies else ():
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
