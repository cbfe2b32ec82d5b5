"""The command line as a whole: help, unknown commands, one sentence for every failure, and the reference page."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cmunext.cli import main as cli
from cmunext.errors import InputError, UsageError

ROOT = Path(__file__).resolve().parents[2]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {name}" in told for name in cli.COMMANDS)
    assert cli.main([]) == 2


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert f"cmunext {name}" in capsys.readouterr().out


RUN = [sys.executable, "-u", "-c", "from cmunext.cli.main import run; run()"]


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    with subprocess.Popen([*RUN, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.skipif(sys.platform == "win32", reason="closes a file descriptor in the child")
def test_a_process_without_a_standard_output_works() -> None:
    done = subprocess.run([*RUN, "--version"], stderr=subprocess.PIPE, text=True, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_command_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["segmnt"]) == 2
    assert "no command 'segmnt'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UsageError("the value is 3; use 4"), 2, "error: the value is 3; use 4"),
        (InputError("a.png is empty;\n copy it again"), 1, "error: a.png is empty; copy it again"),
        (OSError(28, "No space left on device", "out.png"), 1, "error: out.png: No space left on device"),
        (PermissionError(13, "Permission denied", "out"), 1, "error: out: Permission denied"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 1, "pip install 'cmunext[train]'"),
        (ModuleNotFoundError("No module named 'onnx_ir'", name="onnx_ir"), 1, "needs onnx_ir, which is not installed; run: pip"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_failures_become_one_sentence(error, code: int, told: str, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: str) -> int:
        raise error

    monkeypatch.setattr(cli, "_run_command", fails)
    assert cli.main(["demo"]) == code
    printed = capsys.readouterr().err
    assert told in printed
    assert printed.count("\n") == 1


def test_ctrl_c_within_a_command_is_told(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cmunext.cli.demo.demo", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "error: interrupted; finished files are whole and stay\n"


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: str) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_run_command", fails)
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])


def test_the_reference_page_is_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("cli_reference", ROOT / "docs" / "cli_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text("utf-8") == module.reference(), "run: python docs/cli_reference.py"
