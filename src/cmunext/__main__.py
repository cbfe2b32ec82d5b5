"""`python -m cmunext` is the command `cmunext`."""

from cmunext.cli.main import run

run()
