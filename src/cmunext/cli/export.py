"""`cmunext export`."""

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cmunext.export.parity import Report


def export(
    weights: Annotated[
        str,
        typer.Argument(help="Weights: a .safetensors file, an official .pth checkpoint, or a name.", show_default=False),
    ],
    out: Annotated[Path, typer.Argument(help="The .onnx file to write.", show_default=False)],
    half: Annotated[bool, typer.Option("--half", help="Store the weights as float16; arithmetic stays float32.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Compute in INT8 but for convolutions of under 16 channels; needs --calibrate.")
    ] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="DATASET", help="Dataset whose images calibrate INT8, and on which every file is compared."),
    ] = None,
    list_: Annotated[
        Path | None, typer.Option("--list", help="List of cases of that dataset; all of them without it.", show_default=False)
    ] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="HEIGHT WIDTH",
            help="Height and width: take one image of this size only; without it the network's sizes and any batch.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document on stdout.")] = False,
) -> None:
    """Write weights as one self-describing ONNX file that runs without PyTorch.

    The file is run beside PyTorch first, on simulated images or those of --calibrate. It is not written when the two disagree: logits by
    more than 1e-4, or with --half and --int8 the masks by more than a stated tolerance. What was measured stays in the file's metadata.
    """
    from cmunext import weights as weights_files
    from cmunext.data.layout import Layout
    from cmunext.errors import UsageError
    from cmunext.export.onnx import export as write_onnx
    from cmunext.export.onnx import preprocessing_at
    from cmunext.export.samples import of_dataset
    from cmunext.inference.named_weights import weights_path

    if half and int8:
        raise UsageError("--half and --int8 exclude each other; choose one")
    if list_ is not None and calibrate is None:
        raise UsageError(f"--list {list_} names cases of a dataset; give it with --calibrate DATASET")
    samples = None
    if calibrate is not None:
        layout = Layout.open(calibrate)
        names = layout.cases if list_ is None else layout.read_list(list_)
    loaded = weights_files.load(weights_path(weights, ".safetensors"))
    if calibrate is not None:
        samples = of_dataset(layout, names, preprocessing_at(loaded, size), loaded.metadata.num_classes)
    precision = "float16" if half else "int8" if int8 else "float32"
    report = write_onnx(loaded, out, precision=precision, size=size, samples=samples)
    if json:
        document = {"out": str(out), "bytes": out.stat().st_size, "precision": precision, **report.to_dict()}
        print(json_module.dumps(document, ensure_ascii=False))
    else:
        print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {precision}; {_agreement(report)}")


def _agreement(report: "Report") -> str:
    over = f"{report.images} {'simulated images' if report.source == 'simulated' else f'images of {report.source}'}"
    text = (
        f"on {over}, logits within {report.max_abs_diff:.1e} of PyTorch's, masks the same on {100 * report.equal_pixels:.3f} % of "
        f"pixels (mean IoU {report.mask_iou:.4f})"
    )
    if report.iou_file is None:
        return text
    return f"{text}; IoU to the truth {report.iou_file:.4f}, PyTorch's {report.iou_torch:.4f}"
