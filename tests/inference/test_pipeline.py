"""Decode, network and encode side by side: same order, same files, few images in memory, and errors where they belong."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.tiny_network import dark_discs, write_network

from cmunext.errors import InputError
from cmunext.image.files import write_image
from cmunext.inference.pipeline import overlapped
from cmunext.inference.results import segment_files
from cmunext.inference.segmenter import Segmenter


def double(batch: list[int]) -> list[int]:
    return [2 * each for each in batch]


@pytest.mark.parametrize(("jobs", "batch"), [(1, 1), (3, 1), (1, 4), (4, 3)])
def test_results_come_in_order_and_few_are_on_their_way(jobs: int, batch: int) -> None:
    lock = threading.Lock()
    begun, most, sizes = 0, 0, []
    taken = 0

    def prepare(item: int) -> int:
        nonlocal begun, most
        with lock:
            begun += 1
            most = max(most, begun - taken)
        time.sleep(0.001 * (item * 7 % 5))
        return item + 100

    def run(prepared: list[int]) -> list[int]:
        sizes.append(len(prepared))
        return double(prepared)

    def finish(item: int, prepared: int, raw: int) -> tuple[int, int, int]:
        time.sleep(0.001 * (item * 3 % 4))
        return item, prepared, raw

    seen = []
    for item, outcome in overlapped(range(60), prepare, run, finish, jobs, batch):
        assert outcome == (item, item + 100, 2 * (item + 100))
        seen.append(item)
        with lock:
            taken += 1
    assert seen == list(range(60))
    assert most <= 2 * jobs + 3 * batch
    assert max(sizes) == batch


def test_the_three_stages_overlap() -> None:
    """While an item is in a stage, the next one gets into the stage before: each waits for that."""
    items = range(15)
    prepared, ran = ([threading.Event() for _ in items] for _ in range(2))

    def prepare(item: int) -> int:
        prepared[item].set()
        return item

    def run(group: list[int]) -> list[bool]:
        (item,) = group
        ran[item].set()
        return [prepared[min(item + 1, items[-1])].wait(timeout=30)]

    def finish(item: int, prepared: int, raw: bool) -> bool:
        return raw and ran[min(item + 1, items[-1])].wait(timeout=30)

    assert [outcome for _, outcome in overlapped(items, prepare, run, finish, 2, 1)] == [True] * len(items)


def test_an_input_error_belongs_to_its_item_and_others_end_the_iteration() -> None:
    def prepare(item: int) -> int:
        if item % 3 == 0:
            raise InputError(f"{item} is bad")
        return item

    outcomes = list(overlapped(range(10), prepare, double, lambda item, prepared, raw: raw, 2, 4))
    assert [item for item, _ in outcomes] == list(range(10))
    assert [str(outcome) for _, outcome in outcomes] == [f"{i} is bad" if i % 3 == 0 else str(2 * i) for i in range(10)]

    def full_disk(item: int, prepared: int, raw: int) -> int:
        if item == 4:
            raise OSError("the disk is full")
        return raw

    done = []
    with pytest.raises(OSError, match="the disk is full"):
        done.extend(item for item, _ in overlapped(range(10), int, double, full_disk, 2))
    with pytest.raises(ValueError, match="invalid literal"):
        list(overlapped(["1", "x"], int, double, lambda item, prepared, raw: raw, 2))
    with pytest.raises(InputError, match="the network is damaged"):
        list(overlapped(range(3), int, lambda group: (_ for _ in ()).throw(InputError("the network is damaged")), full_disk))


def test_closing_early_finishes_what_has_begun_and_leaves_no_helper() -> None:
    started, ended = [], []

    def finish(item: int, prepared: int, raw: int) -> int:
        started.append(item)
        time.sleep(0.01)
        ended.append(item)
        return raw

    results = overlapped(range(1000), int, double, finish, 3)
    assert next(results) == (0, 0)
    results.close()
    assert sorted(started) == sorted(ended)
    assert len(ended) < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cmunext")]


@pytest.mark.parametrize("busy", ["prepare", "finish"])
def test_a_caller_that_would_wait_prepares_what_no_helper_has_begun(busy: str) -> None:
    """The only helper is kept busy by the first item until the caller has prepared one."""
    caller, helped = threading.get_ident(), threading.Event()

    def prepare(item: int) -> int:
        if threading.get_ident() == caller:
            helped.set()
            raise InputError(f"{item} is bad")
        assert item or busy != "prepare" or helped.wait(10), "the caller waited"
        return item

    def run(batch: list[int]) -> list[int]:
        time.sleep(0.01)  # the helper has prepared by then whatever was handed in before
        return double(batch)

    def finish(item: int, prepared: int, raw: int) -> int:
        assert threading.get_ident() != caller
        assert item or busy != "finish" or helped.wait(10), "the caller waited"
        return raw

    outcomes = dict(overlapped(range(20), prepare, run, finish, 1))
    assert list(outcomes) == list(range(20))
    bad = {item for item, outcome in outcomes.items() if isinstance(outcome, InputError)}
    assert bad
    assert all(str(outcomes[item]) == (f"{item} is bad" if item in bad else f"{2 * item}") for item in outcomes)


def test_a_caller_that_is_interrupted_while_it_prepares_leaves_no_helper() -> None:
    caller = threading.get_ident()

    def prepare(item: int) -> int:
        if threading.get_ident() == caller:
            raise KeyboardInterrupt
        time.sleep(0.01)
        return item

    with pytest.raises(KeyboardInterrupt):
        list(overlapped(range(20), prepare, double, lambda item, prepared, raw: raw, 1))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cmunext")]


def cores_of_helpers(jobs: int) -> set[frozenset[int]]:
    def where(item: int) -> frozenset[int]:
        return frozenset(os.sched_getaffinity(0))  # of the calling thread

    return {cores for _, cores in overlapped(range(20), int, double, lambda item, prepared, raw: where(item), jobs)}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not let a thread choose its cores")
def test_helpers_leave_a_core_to_the_network_where_there_is_another() -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) == 1:
        pytest.skip("this machine has one core")
    (cores,) = cores_of_helpers(3)
    assert cores < allowed
    assert len(cores) == len(allowed) - 1
    assert os.sched_getaffinity(0) == allowed  # of the caller


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not let a thread choose its cores")
def test_on_a_single_core_helpers_share_it() -> None:
    single = {min(os.sched_getaffinity(0))}

    def on_one_core() -> set[frozenset[int]]:
        os.sched_setaffinity(0, single)
        return cores_of_helpers(1)

    with ThreadPoolExecutor(1) as pool:  # a thread of its own, which takes the restriction with it
        assert pool.submit(on_one_core).result() == {frozenset(single)}


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    paths = []
    for number in range(12):
        path = tmp_path / "images" / f"{number}.png"
        size = (90 + 5 * number, 160 - 4 * number)
        write_image(path, dark_discs(size, tuple((20 + 30 * k, 30 + 4 * number, 9 + k) for k in range(1 + number % 3))))
        paths.append(path)
    paths[5].write_bytes(paths[5].read_bytes()[:60])
    return paths


def test_jobs_batches_and_streams_write_the_same_bytes(sources: list[Path], tmp_path: Path) -> None:
    network = write_network(tmp_path / "tiny.onnx")
    expected = Segmenter.load(network)
    out = tmp_path / "out"
    written = []
    for jobs, batch in ((1, 1), (4, 1), (2, 5), (3, 64)):
        results = list(segment_files(Segmenter.load(network), sources, out, overwrite=True, jobs=jobs, batch=batch))
        assert [result.source for result in results] == sources
        assert [result.error is not None for result in results] == [number == 5 for number in range(12)]
        for result in results:
            if result.record:
                lesions = expected(result.source).lesions
                assert result.record["lesions"] == [lesion.to_dict() for lesion in lesions]
                assert (result.record["backend"], result.record["precision"]) == ("onnxruntime", "float32")
        written.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert len(written[0]) == 2 * 11 + 1
    assert all(each == written[0] for each in written)


def test_a_batch_that_the_network_spoils_is_an_error_of_the_run(sources: list[Path], tmp_path: Path) -> None:
    segmenter = Segmenter.load(write_network(tmp_path / "nan.onnx", gain=float("nan")))
    with pytest.raises(InputError, match="NaN or infinite logits"):
        list(segment_files(segmenter, sources, tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*")) or not (tmp_path / "out").exists()


def test_stopping_early_records_what_is_on_disk(sources: list[Path], tmp_path: Path) -> None:
    import json

    out = tmp_path / "out"
    results = segment_files(Segmenter.load(write_network(tmp_path / "tiny.onnx")), sources, out, jobs=3)
    next(results)
    results.close()
    records = json.loads((out / "segmentation.json").read_text())
    on_disk = sorted(path.name for path in out.iterdir())
    assert on_disk == sorted([Path(r[key]).name for r in records for key in ("mask", "overlay")] + ["segmentation.json"])
    assert 1 <= len(records) < 12
    assert np.all([Path(record["source"]) in sources for record in records])
