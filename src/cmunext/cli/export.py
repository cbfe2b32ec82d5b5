"""`cmunext export`."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer


def export(
    weights: Annotated[str, typer.Argument(help="Weights: a .safetensors file, an official .pth checkpoint, or a bundled name.")],
    out: Annotated[Path, typer.Argument(help="The .onnx file to write.")],
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document on stdout.")] = False,
) -> None:
    """Write weights as one self-describing ONNX file that runs without PyTorch, after comparing the two."""
    from cmunext import weights as weights_files
    from cmunext.export.onnx import export as write_onnx
    from cmunext.inference.segmenter import weights_path

    difference = write_onnx(weights_files.load(weights_path(weights, ".safetensors")), out)
    if json:
        print(json_module.dumps({"out": str(out), "bytes": out.stat().st_size, "max_abs_diff": difference}))
    else:
        print(f"{out}: {out.stat().st_size / 1e6:.2f} MB; logits within {difference:.1e} of PyTorch's")
