"""`cmunext average`."""

from pathlib import Path
from typing import Annotated

import typer


def average(
    weights: Annotated[
        list[Path], typer.Argument(help="Weights of one network (.safetensors) or names, two or more.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.", show_default=False)],
) -> None:
    """Write the mean of several weights of one network, BatchNorm's running statistics included: as fast as one of them.

    Worth trying for trainings that went on from one another or from the same start; what it is worth tells `cmunext evaluate`. The file's
    description is that of the last weights, with the files that were averaged and every image that one of them learnt from.
    """
    from cmunext.inference.named_weights import weights_path
    from cmunext.training.average import write_average

    write_average([weights_path(one, ".safetensors") for one in weights], out)
    typer.echo(out)
