"""How long a training step takes on this machine, beside the loop that the paper's released code runs, in one interleaved run.

    python benchmarks/training_step.py [--device cuda] [NETWORK ...]

The baseline is that loop's step, written anew: float32, contiguous tensors, PyTorch's defaults, SGD, 0.5 BCE + Dice, and a wait for the
loss. Ours is the step of `cmunext train --recipe default`. On a CPU: channels_last, bfloat16 where the processor has it, memory kept by the C
library, our own kernels for most other layers than convolutions. On a GPU: bfloat16, the faster layout, the whole step as a CUDA graph.
Both with the average of weights, which the baseline does not have to keep. Neither counts reading and augmenting images. The two live
in processes of their own, because the C library's options hold for a whole process, and take turns.

With each network stand the bounds of a step: its operations (three times the forward pass's) over the rate of a large matrix product, and the
bytes of its activations, each layer reading and writing its own (twice forward, three times backward, in the precision of our step), over the
rate of a copy, both measured here. A step of separate kernels cannot be faster than the larger bound; one that fuses layers can pass the second.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

BATCH, SIDE, ROUNDS = 8, 256, 5
STEPS = {"cpu": 3, "cuda": 30}  # a round
FORWARD_PASSES, PASSES = 3, 5  # of operations and of activations in a whole step


def baseline(name: str, threads: int, device: str) -> Callable[[], Any]:
    import torch

    from cmunext import losses, networks

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = networks.create(name).train().to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    loss_of = losses.BCEDiceLoss()
    images = torch.randn(BATCH, 3, SIDE, SIDE, device=device)
    masks = (torch.rand(BATCH, 1, SIDE, SIDE, device=device) > 0.7).float()

    def step() -> float:
        loss = loss_of(network(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def ours(name: str, threads: int, device: str) -> Callable[[], Any]:
    import torch
    from lightning_fabric import Fabric

    from cmunext import losses, networks
    from cmunext.training import host
    from cmunext.training import step as steps
    from cmunext.training.batches import Normalise, Share
    from cmunext.training.kernels.library import load as load_kernels
    from cmunext.training.recipe import DEFAULT

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    on_gpu = device == "cuda"
    fabric = Fabric(accelerator=device, devices=1, precision="bf16-mixed" if on_gpu or host.has_bfloat16() else "32-true")
    network = networks.create(name).train().to(fabric.device)
    average, optimizer = steps.average_of(network, DEFAULT.ema_decay), steps.optimizer_of(network, DEFAULT, recorded=on_gpu)
    assert average is not None  # the recipe has a decay
    loss_of, normalise = losses.BCEDiceLoss(), Normalise(DEFAULT.preprocessing, fabric.device)
    images = torch.randint(0, 256, (BATCH, SIDE, SIDE, 3), dtype=torch.uint8).permute(0, 3, 1, 2).to(fabric.device)
    masks = (torch.rand(BATCH, 1, SIDE, SIDE) > 0.7).to(fabric.device, torch.uint8)
    layout = torch.channels_last
    if on_gpu:
        torch.backends.cudnn.benchmark = True
        layout = steps.fastest_layout(fabric, network, loss_of, normalise, (images, masks), steps.record_on_gpu)
    steps.lay_out(network, layout, optimizer)
    steps.lay_out(average.module, layout)
    if on_gpu:
        decay = DEFAULT.ema_decay
        step: Any = steps.RecordedStep(
            fabric, network, optimizer, average, decay, loss_of, normalise, layout, steps.record_on_gpu
        )
        step.prepare(images, (masks,))
    else:
        host.keep_freed_memory()
        host.speed_up_narrow_norms(network)
        wrapped, stepping = fabric.setup_module(network), fabric.setup_optimizers(optimizer)
        step = steps.EagerStep(fabric, wrapped, stepping, network, average, loss_of, normalise, load_kernels(print))
    whole = Share(np.arange(BATCH), BATCH, 1.0)
    return lambda: step(images, (masks,), whole, DEFAULT.learning_rate)


def bounds(name: str, threads: int, device: str) -> dict[str, float]:
    """What a step computes and moves, what this device does of each in a second, and so the least milliseconds."""
    import torch

    from cmunext import networks
    from cmunext.benchmark.cost import strict_macs
    from cmunext.training import host

    torch.set_num_threads(threads)
    network = networks.create(name).eval()
    dtype = torch.bfloat16 if device == "cuda" or host.has_bfloat16() else torch.float32
    values = 0.0

    def count(module: Any, given: Any, output: Any) -> None:
        nonlocal values
        values += sum(one.numel() for one in (*given, output) if isinstance(one, torch.Tensor)) / 2

    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, SIDE, SIDE))
    gigaflop = 2 * FORWARD_PASSES * BATCH * strict_macs(network, torch.zeros(1, 3, SIDE, SIDE)) / 1e9
    gigabytes = values * BATCH * dtype.itemsize * PASSES / 1e9  # `values`: the mean of what goes in and what comes out
    side = 8192 if device == "cuda" else 2048
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    memory = torch.zeros(2**28 if device == "cuda" else 2**26, device=device)
    other = torch.empty_like(memory)
    teraflops = 2 * side**3 / fastest(lambda: matrix @ matrix, device) / 1e12
    bandwidth = 2 * 4 * memory.numel() / fastest(lambda: other.copy_(memory), device) / 1e9
    return {
        "gigaflop": gigaflop,
        "gigabytes": gigabytes,
        "teraflops": teraflops,
        "gigabytes_per_s": bandwidth,
        "operations_ms": gigaflop / teraflops,
        "memory_ms": 1e3 * gigabytes / bandwidth,
    }


def fastest(work: Callable[[], Any], device: str) -> float:
    """Seconds of the fastest of some runs."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    found = []
    for _ in range(7):
        wait()
        started = time.perf_counter()
        work()
        wait()
        found.append(time.perf_counter() - started)
    return min(found)


def serve(pipe: Connection, make: str, name: str, threads: int, device: str) -> None:
    """In a process of its own: make a step, and time rounds of it as often as asked."""
    step = {"baseline": baseline, "ours": ours}[make](name, threads, device)
    float(step())
    pipe.send(None)
    while pipe.recv():
        started = time.perf_counter()
        for _ in range(STEPS[device]):
            loss = step()
        float(loss)  # waits for a GPU
        pipe.send((time.perf_counter() - started) / STEPS[device])


def measure(name: str, threads: int, device: str) -> dict[str, Any]:
    """Both steps in turns, and the bounds."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for make in ("baseline", "ours"):
        pipes[make], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, make, name, threads, device), daemon=True))
        processes[-1].start()
        theirs.close()  # so that a process that dies ends the wait for it
        pipes[make].recv()
    seconds: dict[str, list[float]] = {make: [] for make in pipes}
    for _ in range(ROUNDS):
        for make, pipe in pipes.items():
            pipe.send(True)
            seconds[make].append(pipe.recv())
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()
    medians = {make: statistics.median(values) for make, values in seconds.items()}
    return {
        "network": name,
        "device": device,
        "threads": threads,
        **{f"{make}_images_per_s": BATCH / value for make, value in medians.items()},
        "ratio": medians["baseline"] / medians["ours"],
        "ours_ms": 1e3 * medians["ours"],
        **bounds(name, threads, device),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=["cmunext-s", "cmunext"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    chosen = parser.parse_args()
    for network in chosen.networks:
        told = measure(network, len(os.sched_getaffinity(0)), chosen.device)
        print(
            json.dumps({key: round(value, 2) if isinstance(value, float) else value for key, value in told.items()}), flush=True
        )
