"""`cmunext networks`: what can be built, and what it costs."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cmunext.benchmark.cost import Cost


def networks(
    name: Annotated[list[str] | None, typer.Argument(help="Networks to list (or module:callable); default: all.")] = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Add multiply-accumulates, activation memory, the paper's figures.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON list on standard output.")] = False,
) -> None:
    """List the networks with their exact number of parameters, and with --cost what one image of 256 x 256 costs."""
    from dataclasses import asdict
    from json import dumps

    from cmunext.benchmark.cost import build, count_parameters, measure_all
    from cmunext.networks import names

    if cost:
        costs = measure_all(name or ())
        if json:
            print(dumps([asdict(row) for row in costs], indent=2))
        else:
            _print_costs(costs)
        return
    counts = {each: count_parameters(build(each)) for each in name or names()}
    if json:
        print(dumps([{"name": each, "parameters": count} for each, count in counts.items()], indent=2))
    else:
        width = max(map(len, counts))
        print(f"{'network':{width}}  {'parameters':>11}")
        for each, count in counts.items():
            print(f"{each:{width}}  {count:>11,}")


def _print_costs(costs: "list[Cost]") -> None:
    """One line a network, in millions (M), thousand millions (G) and mebibytes; notes on the paper's figures below."""
    width = max(len(row.name) for row in costs)
    columns = f"{'parameters':>11}  {'MACs':>9}  {'MACs*':>9}  {'memory':>9}  {'paper':>16}"
    print(f"{'network':{width}}  {columns}")
    notes = []
    for row in costs:
        printed = "-"
        if row.paper_parameters_millions is not None:
            printed = f"{row.paper_parameters_millions:.2f} M {row.paper_gigaflops:.2f} G"
        mark = ""
        if row.note:
            notes.append(row.note)
            mark = f" [{len(notes)}]"
        strict, counted = f"{row.macs / 1e9:.3f} G", f"{row.macs_paper_counter / 1e9:.3f} G"
        memory = f"{row.peak_activation_bytes / 2**20:.1f} MiB"
        print(f"{row.name:{width}}  {row.parameters:>11,}  {strict:>9}  {counted:>9}  {memory:>9}  {printed:>16}{mark}")
    print()
    print("MACs: multiply-accumulates of convolutions, linear layers and attention products, on one image of 3 channels,")
    print("      256 x 256 pixels unless the network is built for another size. MACs*: by the counter of the paper's tables.")
    print("memory: the most that float32 activations hold at once. paper: as printed there, its GFLOPs being MACs*.")
    for number, note in enumerate(notes, start=1):
        print(f"[{number}] {note}.")
