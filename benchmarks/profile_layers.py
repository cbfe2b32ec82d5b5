"""Where the time of an exported network goes: every kernel that a runtime ran, with its time and its multiply-accumulates a second.

    python benchmarks/profile_layers.py cmunext-s-busi --backend openvino --precision bfloat16

One thread, one image of the network's size, and of each kernel the shortest of many runs, so that other load on the machine counts
little. A runtime's own profiler costs a few per cent more than it shows. onnxruntime fills channels up to 16, which its
multiply-accumulates include. docs/profile.md reads such tables.
"""

import argparse
import json
import math
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmunext.inference.backends import onnx as onnx_backend
from cmunext.inference.backends.signature import INPUT
from cmunext.inference.named_weights import weights_path

RUNS = 40


@dataclass(frozen=True)
class Layer:
    """One kernel: `kind` of operation, shapes of its result and weights (None: it has none), and the milliseconds of its shortest run."""

    kind: str
    name: str
    output: tuple[int, ...]
    weights: tuple[int, ...] | None
    milliseconds: float

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a convolution, whose weights are (... out a group, in a group, height, width)."""
        return 0 if self.weights is None else math.prod(self.output) * math.prod(self.weights[-3:])


def by_onnxruntime(path: Path, image: np.ndarray) -> list[Layer]:
    """The layers that onnxruntime ran, by its profile file."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        session = onnx_backend.open_session(path, options, ["CPUExecutionProvider"])
        for _ in range(RUNS):
            session.run(None, {INPUT: image})
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[float]] = defaultdict(list)
    described = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name, arguments = event["name"].removesuffix("_kernel_time"), event["args"]
            times[name].append(event["dur"] / 1000)
            inputs, outputs = (
                [tuple(*each.values()) for each in arguments[key]] for key in ("input_type_shape", "output_type_shape")
            )
            weights = inputs[1] if "Conv" in arguments["op_name"] else None
            described[name] = arguments["op_name"], outputs[0], weights
    return [Layer(kind, name, output, weights, min(times[name])) for name, (kind, output, weights) in described.items()]


def by_openvino(path: Path, image: np.ndarray, precision: str) -> list[Layer]:
    """The layers that OpenVINO ran, by its performance counters."""
    import openvino

    from cmunext.inference.backends.openvino import HINTS

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape(image.shape)
    settings = {"INFERENCE_PRECISION_HINT": HINTS[precision], "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERF_COUNT": True}
    compiled = core.compile_model(model, "CPU", settings)
    nodes = {node.get_friendly_name(): node for node in compiled.get_runtime_model().get_ordered_ops()}
    request = compiled.create_infer_request()
    times: dict[str, list[float]] = defaultdict(list)
    kinds = {}
    for _ in range(RUNS):
        request.infer({0: image})
        for counted in request.get_profiling_info():
            times[counted.node_name].append(1000 * counted.real_time.total_seconds())
            kinds[counted.node_name] = f"{counted.node_type} {counted.exec_type}"
    layers = []
    for name, taken in times.items():
        node = nodes.get(name)
        shapes = [tuple(port.get_shape()) for port in node.inputs()] if node else []
        weights = shapes[1] if "Convolution" in kinds[name] else None
        output = tuple(node.output(0).get_shape()) if node and node.get_output_size() else ()
        layers.append(Layer(kinds[name], name, output, weights, min(taken)))
    return layers


def report(layers: list[Layer], top: int) -> None:
    """Print the kinds of kernels, then the `top` longest layers."""
    total = sum(layer.milliseconds for layer in layers)
    print(f"{total:.2f} ms an image, {sum(layer.macs for layer in layers) / 1e9:.3f} G multiply-accumulates in convolutions\n")
    kinds: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        if layer.milliseconds > 0:  # what was fused into another takes none
            kinds[layer.kind].append(layer)
    print(f"{'ms':>7} {'share':>6} {'GMAC/s':>7}  kind of kernel")
    for kind, group in sorted(kinds.items(), key=lambda item: -sum(layer.milliseconds for layer in item[1])):
        taken = sum(layer.milliseconds for layer in group)
        print(f"{taken:7.2f} {taken / total:6.1%} {_rate(sum(layer.macs for layer in group), taken)}  {kind} ({len(group)})")
    print(f"\n{'ms':>7} {'share':>6} {'GMAC/s':>7}  layer")
    for layer in sorted(layers, key=lambda layer: -layer.milliseconds)[:top]:
        shape = " x ".join(map(str, layer.output))
        kernel = f", weights {' x '.join(map(str, layer.weights))}" if layer.weights else ""
        print(
            f"{layer.milliseconds:7.2f} {layer.milliseconds / total:6.1%} {_rate(layer.macs, layer.milliseconds)}"
            f"  {layer.kind}: {shape}{kernel}"
        )


def _rate(macs: int, milliseconds: float) -> str:
    return f"{macs / milliseconds / 1e6:7.1f}" if macs and milliseconds else f"{'':7}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="bundled name or .onnx file")
    parser.add_argument("--backend", choices=("onnxruntime", "openvino"), default="openvino")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--top", type=int, default=15, help="layers listed")
    given = parser.parse_args()
    file = weights_path(given.weights, ".onnx")
    preprocessing = onnx_backend.load(file).metadata.preprocessing
    shape = (1, preprocessing.in_channels, preprocessing.height, preprocessing.width)
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    measured = by_onnxruntime(file, noise) if given.backend == "onnxruntime" else by_openvino(file, noise, given.precision)
    report(measured, given.top)
