"""Where the tables of the commands are printed."""

from rich.console import Console


def table_console(width: int, soft_wrap: bool = False) -> Console:
    """A console as wide as the terminal; of `width` characters where there is none, because a pipe has no width of its own."""
    console = Console(highlight=False, soft_wrap=soft_wrap)
    console.width = console.width if console.is_terminal else width
    return console
