"""Where the commands print tables and show progress."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track


def table_console(width: int, soft_wrap: bool = False) -> Console:
    """A console as wide as the terminal; of `width` characters where there is none, because a pipe has no width of its own."""
    console = Console(highlight=False, soft_wrap=soft_wrap)
    console.width = console.width if console.is_terminal else width
    return console


def progress(*stages: str) -> Callable[[Sequence[Any]], Iterable[Any]]:
    """What goes through a sequence with a bar on stderr while a terminal looks on, for one stage after the other."""
    descriptions = iter(stages)

    def bar(cases: Sequence[Any]) -> Iterable[Any]:
        console = Console(stderr=True)
        shown = console.is_terminal and bool(cases)
        return track(cases, next(descriptions, stages[-1]), console=console, transient=True, disable=not shown)

    return bar
