"""Three stages at a time: while the network runs on some images, helpers decode the next ones and write the results of the last."""

import ctypes
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from cmunext.errors import InputError
from cmunext.processor import cores

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Raw = TypeVar("Raw")
Outcome = TypeVar("Outcome")


def overlapped(
    items: Iterable[Item],
    prepare: Callable[[Item], Prepared],
    run: Callable[[list[Prepared]], Iterable[Raw]],
    finish: Callable[[Item, Prepared, Raw], Outcome],
    jobs: int = 1,
    batch: int = 1,
) -> Generator[tuple[Item, Outcome | InputError], None, None]:
    """Bring each item through `prepare`, `run` and `finish`, and yield it with what came of it, in the order of the items.

    `run` is called in the caller's thread, with the prepared ones of `batch` items; `finish` in `jobs` threads of helpers; `prepare`
    in these too, and in the caller's, which would otherwise wait for busy helpers. At most 2 jobs + 3 batch items are on their way
    at a time, however many there are. An item whose `prepare` raises an InputError is yielded with that error; whatever else is
    raised ends the iteration, as does closing it: what has begun is finished then, and nothing else is begun.
    """
    waiting = iter(items)
    prepared: deque[tuple[Item, Future[Prepared]]] = deque()
    finished: deque[tuple[Item, Future[Outcome] | InputError]] = deque()
    pool = ThreadPoolExecutor(jobs, "cmunext", _leave, (_current_core(),))

    def prepare_more() -> None:
        while len(prepared) < jobs + batch:
            try:
                item = next(waiting)
            except StopIteration:
                return
            prepared.append((item, pool.submit(prepare, item)))

    def prepare_until(awaited: Future[Any]) -> None:
        for place, (item, future) in enumerate(prepared):
            if awaited.done():
                return
            if future.cancel():  # no helper has begun it
                prepared[place] = item, _called(prepare, item)

    try:
        prepare_more()
        while prepared:
            ready: list[tuple[Item, Prepared | InputError]] = []
            for _ in range(min(batch, len(prepared))):
                prepare_until(prepared[0][1])
                item, future = prepared.popleft()
                try:
                    ready.append((item, future.result()))
                except InputError as error:
                    ready.append((item, error))
            prepare_more()
            good = [each for _, each in ready if not isinstance(each, InputError)]
            raw = iter(run(good) if good else ())
            for item, each in ready:
                finished.append((item, each if isinstance(each, InputError) else pool.submit(finish, item, each, next(raw))))
            while finished and (not prepared or len(finished) > jobs + batch or _is_done(finished[0][1])):
                item, outcome = finished.popleft()
                if isinstance(outcome, InputError):
                    yield item, outcome
                    continue
                prepare_until(outcome)
                yield item, outcome.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def helpers() -> int:
    """How many helpers keep a network busy on this machine: one a core, and not more than four."""
    return min(4, cores())


def _current_core() -> int | None:
    """The core that the calling thread runs on; None where the system does not tell."""
    try:
        return ctypes.CDLL(None).sched_getcpu()
    except (OSError, AttributeError, TypeError):  # not Linux
        return None


def _leave(core: int | None) -> None:
    """Let the calling thread run on every other core, if there are any.

    Not all schedulers see to it: on virtual machines of two cores, all threads were seen to share one while the other was idle.
    """
    if core is not None and hasattr(os, "sched_setaffinity"):
        others = os.sched_getaffinity(0) - {core}
        with suppress(OSError):  # not allowed, or no other core
            os.sched_setaffinity(0, others)


def _called(work: Callable[[Item], Outcome], item: Item) -> Future[Outcome]:
    """What `work` makes of an item, called in this thread, as if a pool had done it."""
    future: Future[Outcome] = Future()
    try:
        future.set_result(work(item))
    except Exception as error:
        future.set_exception(error)
    return future


def _is_done(outcome: Future[Outcome] | InputError) -> bool:
    return isinstance(outcome, InputError) or outcome.done()
