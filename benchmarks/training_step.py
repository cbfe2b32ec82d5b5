"""How long a training step takes on this machine, beside the loop that the paper's released code runs, in one interleaved run.

    python benchmarks/training_step.py [NETWORK ...]

The baseline is that loop's step on a CPU, written anew: float32, contiguous tensors, PyTorch's defaults, SGD, 0.5 BCE + Dice. Ours is the
step of `cmunext train --recipe default`: channels_last, bfloat16 where the processor has it, memory kept by the C library, narrow
BatchNorms in the contiguous layout, GELUs through oneDNN, and the average of weights (which the baseline does not have to keep). Neither counts reading images.
The two live in processes of their own, because the C library's options hold for a whole process, and take turns.
"""

import json
import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection

import numpy as np

BATCH, SIDE, ROUNDS, STEPS = 8, 256, 5, 3


def baseline(name: str, threads: int):
    import torch

    from cmunext import losses, networks

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = networks.create(name).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    loss_of = losses.BCEDiceLoss()
    images, masks = torch.randn(BATCH, 3, SIDE, SIDE), (torch.rand(BATCH, 1, SIDE, SIDE) > 0.7).float()

    def step() -> None:
        loss = loss_of(network(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def ours(name: str, threads: int):
    import torch
    from lightning.fabric import Fabric

    from cmunext import losses, networks
    from cmunext.training import host
    from cmunext.training.batches import Normalise, Share
    from cmunext.training.recipe import DEFAULT
    from cmunext.training.step import EagerStep, average_of, lay_out, optimizer_of

    torch.set_num_threads(threads)
    host.keep_freed_memory()
    torch.manual_seed(0)
    network = networks.create(name).train()
    average, optimizer = average_of(network, DEFAULT.ema_decay), optimizer_of(network, DEFAULT, recorded=False)
    for module in (network, average.module):
        lay_out(module, torch.channels_last)
    host.speed_up(network)
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed" if host.has_bfloat16() else "32-true")
    wrapped, stepping = fabric.setup_module(network), fabric.setup_optimizers(optimizer)
    normalise = Normalise(DEFAULT.preprocessing, fabric.device)
    step = EagerStep(fabric, wrapped, stepping, network, average, losses.BCEDiceLoss(), normalise)
    images = torch.randint(0, 256, (BATCH, SIDE, SIDE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    masks = (torch.rand(BATCH, 1, SIDE, SIDE) > 0.7).to(torch.uint8)
    whole = Share(np.arange(BATCH), BATCH, 1.0)
    return lambda: step(images, (masks,), whole, DEFAULT.learning_rate)


def serve(pipe: Connection, make: str, name: str, threads: int) -> None:
    step = {"baseline": baseline, "ours": ours}[make](name, threads)
    step()
    pipe.send(None)
    while pipe.recv():
        seconds = []
        for _ in range(STEPS):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        pipe.send(seconds)


def measure(name: str, threads: int) -> dict[str, float | str]:
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for make in ("baseline", "ours"):
        pipes[make], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, make, name, threads), daemon=True))
        processes[-1].start()
        pipes[make].recv()
    seconds: dict[str, list[float]] = {make: [] for make in pipes}
    for _ in range(ROUNDS):
        for make, pipe in pipes.items():
            pipe.send(True)
            seconds[make] += pipe.recv()
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()
    medians = {make: statistics.median(values) for make, values in seconds.items()}
    return {
        "network": name,
        "threads": threads,
        **{f"{make}_images_per_s": round(BATCH / value, 2) for make, value in medians.items()},
        "ratio": round(medians["baseline"] / medians["ours"], 2),
    }


if __name__ == "__main__":
    import os

    for network in sys.argv[1:] or ("cmunext-s", "cmunext"):
        print(json.dumps(measure(network, len(os.sched_getaffinity(0)))), flush=True)
