"""`cmunext train`."""

import json as json_module
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder: images/ and masks/0/ (see `cmunext prepare`).")],
    network: Annotated[str, typer.Option(help="Network name (`cmunext networks`), or module:callable for your own.")],
    train: Annotated[Path, typer.Option(help="List of training cases, a name a line; looked for in DATASET too.")],
    val: Annotated[Path, typer.Option(help="List of validation cases.")],
    recipe: Annotated[
        str, typer.Option(help="default, paper, strong, robust, or a JSON file such as a run's recipe.json.")
    ] = "default",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE changes one entry of the recipe: epochs=20, size=128, ...")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. By default runs/NETWORK-LIST-RECIPE-seedN.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, or begin it when it is not there.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="GPUs, or CPU processes, that share each batch.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to PyTorch.")] = 0,
    network_arguments: Annotated[
        str, typer.Option("--network-arguments", help='What else the network takes, as JSON: \'{"local_patches": "all"}\'.')
    ] = "{}",
    teachers: Annotated[
        list[Path] | None,
        typer.Option(help="Weights (.safetensors) to learn from too, weighted by distill_weight of the recipe; may be repeated."),
    ] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(help="Weights (.safetensors) of the same network to start from (fine-tuning), or a name."),
    ] = None,
    licence: Annotated[str, typer.Option(help="Terms of the data, written into the weights.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document on stdout.")] = False,
) -> None:
    """Train a network; or, with --resume, go on exactly where a run stopped.

    The run's folder gets recipe.json, history.csv, last.ckpt, best.safetensors (best validation IoU), last.safetensors,
    ema.safetensors (average of weights at the last epoch) and TensorBoard events. Ctrl-C finishes the step, saves, and says
    how to go on.
    """
    import logging

    from lightning_fabric.utilities.rank_zero import rank_zero_only
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from cmunext.errors import UsageError
    from cmunext.inference.named_weights import weights_path
    from cmunext.training import recipe as recipes
    from cmunext.training.run import Reporter
    from cmunext.training.run import train as run_training
    from cmunext.training.task import Task

    chosen = recipes.with_settings(recipes.named(recipe), set_ or [])
    try:
        arguments = json_module.loads(network_arguments)
    except ValueError as error:
        raise UsageError(f"--network-arguments is {network_arguments!r}, which is not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise UsageError(f"--network-arguments is {network_arguments!r}; give a JSON object")
    run = out or Path("runs") / f"{network.replace(':', '.')}-{train.stem}-{chosen.name}-seed{chosen.seed}"
    taught_by = tuple(weights_path(teacher, ".safetensors") for teacher in teachers or ())
    start = weights_path(start_from, ".safetensors") if start_from else None
    task = Task(dataset, train, val, network, chosen, run, arguments, resume, device, devices, threads, licence, taught_by, start)

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces precision and processes; we say what matters
    # Each process that shares the batches runs this command; only the first one tells.
    speaks = devices == 1 or rank_zero_only.rank == 0  # type: ignore[attr-defined]
    console = Console(stderr=True, quiet=not speaks)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with ExitStack() as stack:
        bars = stack.enter_context(Progress(*columns, console=console, disable=not (speaks and console.is_terminal)))
        total = bars.add_task("training", total=None, note="")

        def loading(cases: int):
            bar = bars.add_task("reading images", total=cases, note="")
            return lambda: bars.advance(bar)

        def step(epoch: int, done: int, batches: int, loss: float | None) -> None:
            note = f"epoch {epoch + 1}/{chosen.epochs}" + ("" if loss is None else f" loss {loss:.3f}")
            bars.update(total, total=chosen.epochs * batches, completed=epoch * batches + done, note=note)

        def epoch(row: dict[str, Any]) -> None:
            scores = "" if row["val_iou"] is None else f"  val loss {row['val_loss']:.4f}  IoU {row['val_iou']:.4f}"
            console.print(f"epoch {row['epoch']:>4}  loss {row['loss']:.4f}{scores}", highlight=False)

        say = lambda sentence: console.print(sentence, highlight=False)  # noqa: E731
        progress = run_training(task, Reporter(say, loading, step, epoch))

    if progress.epoch < chosen.epochs:
        console.print(
            f"stopped in epoch {progress.epoch + 1} and saved; go on with the same command and --resume", highlight=False
        )
        raise typer.Exit(130)
    if not speaks:
        return
    result = {"run": str(run), "epochs": progress.epoch, "best_epoch": progress.best_epoch, "best_iou": progress.best_iou}
    if json:
        print(json_module.dumps({**result, "last": progress.history[-1]}))
    else:
        score = progress.history[-1]["val_iou"]
        print(f"{run}: IoU {score:.4f} at the last epoch, {progress.best_iou:.4f} at epoch {progress.best_epoch}, the best")
