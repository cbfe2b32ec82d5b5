"""Writes docs/cli.md from the commands themselves: `python docs/cli_reference.py`. A test checks that the file is what this gives."""

from pathlib import Path

import typer

from cmunext.cli.main import COMMANDS, command

PAGE = Path(__file__).with_name("cli.md")


def reference() -> str:
    """The page: every command with its help, arguments and options."""
    codes = "Exit codes: 0 done, 1 the work failed, 2 the call was wrong, 130 interrupted or out of time."
    head = f"Made by `python docs/cli_reference.py` from the code. {codes}"
    parts = ["# Commands\n", f"{head}\n"]
    for name in COMMANDS:
        program = typer.main.get_command(command(name))
        parts.append(f"## cmunext {name}\n\n{_paragraphs(program.help)}\n")
        rows = [_row(parameter) for parameter in program.params if parameter.name != "help"]
        parts.append("\n".join(["| | default | |", "|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def _paragraphs(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def _row(parameter) -> str:
    names = ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
    shown = names if names.startswith("`-") else f"`{parameter.name.upper()}`"
    default = parameter.default() if callable(parameter.default) else parameter.default
    given = "required" if parameter.required else "" if default in (None, "", [], ()) or default is False else f"`{default}`"
    return f"| {shown} | {given} | {' '.join((parameter.help or '').split()).replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    PAGE.write_text(reference(), "utf-8")
