"""The command `cmunext`: finds a command's module, runs it, and turns every failure into one sentence and an exit code."""

import io
import os
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

from cmunext import __version__
from cmunext.errors import InputError, UsageError

COMMANDS = {  # name -> (module, what it does), in the order of the help; a module is imported only when its command runs
    "segment": ("cmunext.cli.segment", "outline and measure lesions in images"),
    "demo": ("cmunext.cli.demo", "the main job on images that the program makes itself"),
    "prepare": ("cmunext.cli.data", "bring a download into the dataset layout"),
    "audit": ("cmunext.cli.data", "look for what is wrong in a dataset and its lists"),
    "split": ("cmunext.cli.data", "write lists of training and validation cases"),
    "train": ("cmunext.cli.train", "train a network, or go on with a training"),
    "average": ("cmunext.cli.average", "the mean of several trainings' weights"),
    "evaluate": ("cmunext.cli.evaluate", "score weights, or masks, on a list of cases"),
    "compare": ("cmunext.cli.compare", "which of several networks is better on the same cases"),
    "benchmark": ("cmunext.cli.benchmark", "a grid of trainings to scores, tables and figures"),
    "networks": ("cmunext.cli.networks", "the networks, their parameters and cost"),
    "export": ("cmunext.cli.export", "write weights as ONNX, checked against PyTorch"),
    "latency": ("cmunext.cli.latency", "milliseconds an image, by backend and precision"),
}


def run() -> None:
    """Run the command line. Exit codes: 0 done, 1 the work failed, 2 the call was wrong, 130 interrupted or out of time, 141 nobody reads on."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may hold what is no text, or not in this terminal's
    try:
        code = main(sys.argv[1:])
        if sys.stdout is not None:  # which a process without a standard output has not
            sys.stdout.flush()
    except BrokenPipeError:  # `cmunext --help | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


def main(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    match arguments:
        case [] | ["-h" | "--help", *_]:
            print(_help())
            return 0 if arguments else 2
        case ["--version", *_]:
            print(f"cmunext {__version__}")
            return 0
        case [name, *_] if name not in COMMANDS:
            return _fail(f"there is no command {name!r}; choose one of {', '.join(COMMANDS)}", 2)
    try:
        return _run_command(*arguments)
    except UsageError as error:
        return _fail(str(error), 2)
    except (InputError, OSError) as error:
        return _fail(_sentence(error), 1)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in (
            "torch",
            "lightning_fabric",
            "safetensors",
            "scipy",
            "onnx",
            "onnx_ir",
            "onnxscript",
        ):
            raise
        return _fail(f"{arguments[0]} needs {error.name}, which is not installed; run: pip install 'cmunext[train]'", 1)
    except (KeyboardInterrupt, _Interrupted):
        return _fail("interrupted; finished files are whole and stay", 130)


def command(name: str):
    """The typer application of one command."""
    import typer

    module, _ = COMMANDS[name]
    application = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    application.command(name)(_telling_of_interrupts(getattr(import_module(module), name)))
    return application


class _Interrupted(Exception):
    """A KeyboardInterrupt on its way through typer, which would end the process without a word."""


def _telling_of_interrupts(work: Callable[..., None]) -> Callable[..., None]:
    @wraps(work)
    def told(*args: Any, **kwargs: Any) -> None:
        try:
            work(*args, **kwargs)
        except KeyboardInterrupt as interrupt:
            raise _Interrupted from interrupt

    return told


def _run_command(name: str, *arguments: str) -> int:
    try:
        command(name)(args=list(arguments), prog_name=f"cmunext {name}")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _help() -> str:
    rows = "\n".join(f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items())
    return (
        "Usage: cmunext COMMAND [OPTIONS]\n\nLightweight 2-D medical image segmentation.\n\n"
        f"Commands:\n{rows}\n\n`cmunext COMMAND --help` tells a command's options. Research software, not a medical device."
    )


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; nothing was left half-written, mend this and run it again"
    return str(error)


def _fail(message: str, code: int) -> int:
    if os.environ.get("CMUNEXT_TRACEBACK"):
        import traceback

        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
