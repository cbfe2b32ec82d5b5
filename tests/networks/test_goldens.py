"""Every network is the authors' function: outputs under a fill that follows from tensor shapes, and exact parameter counts.

`goldens/` holds the numbers of networks that are cheap to run; the shared fixtures hold all. Cases of a size under 224 come from
this package itself, written while its outputs agreed with the authors' at 256 x 256 to 1e-12: they guard the heavy networks
between runs of the slow tests.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fill import fill_by_shape, golden_input, run_in_float64, state_by_name

from cmunext.networks import create, names, remap

HERE = Path(__file__).parent / "goldens"


@dataclass(frozen=True)
class Case:
    """A golden: the fixture's file name, the network, and how far ours may be off."""

    file: str
    network: str
    size: int = 256
    arguments: dict[str, Any] = field(default_factory=dict)
    relative: float = 1e-8


CHEAP = [
    Case("cmunext_s", "cmunext-s", relative=1e-9),
    Case("cmunext", "cmunext", relative=1e-9),
    Case("cmunext_l", "cmunext-l", relative=1e-9),
    Case("ablation_cmunext_block_matching_table", "cmunext-plain-skip"),
    Case("ablation_reduced_unet", "reduced-unet"),
    Case("medt_128", "medt", 128, {"image_size": 128}),
    Case("swinunet", "swin-unet", 224),
    Case("unext", "unext"),
    Case("convunext", "convunext"),
]
HEAVY = [
    Case("unet", "unet"),
    Case("attention_unet", "attention-unet"),
    Case("unetpp_resnet34", "unet++"),
    Case("unet3plus", "unet3+"),
    Case("cmunet", "cmunet"),
    Case("transunet", "transunet"),
    Case("medt_256", "medt"),
]
SMALL = [
    Case("unet_64", "unet", 64),
    Case("attention_unet_64", "attention-unet", 64),
    Case("unetpp_resnet34_64", "unet++", 64),
    Case("unet3plus_64", "unet3+", 64),
    Case("cmunet_64", "cmunet", 64),
    Case("transunet_64", "transunet", 64, {"image_size": 64}),
]
MOBILE = [Case("mobile_uvit", "mobile-uvit"), Case("mobile_uvit_l", "mobile-uvit-l")]


def outputs(case: Case, gain: float) -> tuple[int, np.ndarray]:
    """Number of parameters, and the flattened output under the fill."""
    network = create(case.network, **case.arguments)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    y = run_in_float64(fill_by_shape(network, gain), golden_input((1, 3, case.size, case.size)))
    assert y.shape == (1, 1, case.size, case.size)
    return parameters, y.flatten().numpy()


def check(case: Case, golden: dict[str, Any]) -> None:
    parameters, y = outputs(case, gain=1.0)
    block = golden["gain1"]
    assert parameters == golden["params"]
    np.testing.assert_allclose(y[block["index"]], block["value"], rtol=case.relative, atol=0)
    np.testing.assert_allclose([y.mean(), y.std()], [block["mean"], block["std"]], rtol=case.relative, atol=0)


def committed(name: str) -> dict[str, Any]:
    return json.loads((HERE / f"{name}.json").read_text())


@pytest.mark.parametrize("case", [*CHEAP, *SMALL], ids=lambda case: case.file)
def test_output_is_the_golden(case: Case) -> None:
    check(case, committed(case.file))


@pytest.mark.slow
@pytest.mark.parametrize("case", HEAVY, ids=lambda case: case.file)
def test_output_of_heavy_networks_is_the_golden(case: Case, fixtures: Path) -> None:
    check(case, json.loads((fixtures / f"{case.file}.json").read_text()))


@pytest.mark.parametrize("case", MOBILE, ids=lambda case: case.file)
@pytest.mark.parametrize(("gain", "in_deviations"), [(0.5, 1e-10), (1.0, 1e-7)])
def test_mobile_uvit_under_both_gains(case: Case, gain: float, in_deviations: float) -> None:
    """At gain 1 its gates amplify every rounding, at gain 0.5 they hide the sparse attention: the two see different faults."""
    golden = committed(case.file)
    block = golden["gain1"] if gain == 1 else golden["gain0.5"]
    parameters, y = outputs(case, gain)
    assert parameters == golden["params"]
    np.testing.assert_allclose(y[block["index"]], block["value"], rtol=0, atol=in_deviations * block["std"])


@pytest.mark.parametrize("case", [*CHEAP, *MOBILE], ids=lambda case: case.file)
def test_committed_goldens_are_the_shared_ones(case: Case, fixtures: Path) -> None:
    ours, theirs = committed(case.file), json.loads((fixtures / f"{case.file}.json").read_text())
    assert ours["params"] == theirs["params"]
    assert ours["gain1"].items() <= theirs["gain1"].items()
    assert ours.get("gain0.5", {}).items() <= theirs.items()


@pytest.mark.parametrize("name", ["cmunext_s", "cmunext", "cmunext_l"])
def test_official_checkpoint_loads_and_runs(name: str, fixtures: Path) -> None:
    golden = json.loads((fixtures / f"{name}_statedict.json").read_text())
    official = state_by_name([(key, tuple(shape)) for key, shape in golden["state_dict_keys"]])
    network_name, arguments, state = remap.from_official(official, name)
    network = create(network_name, **arguments)
    network.load_state_dict(state)
    y = run_in_float64(network, golden_input()).flatten().numpy()
    np.testing.assert_allclose(y[golden["index"]], golden["value"], rtol=1e-9, atol=0)


def test_every_network_has_a_golden() -> None:
    assert {case.network for case in (*CHEAP, *HEAVY, *MOBILE)} == set(names())


def test_goldens_see_a_small_change() -> None:
    """A tolerance that lets a changed function through would be no test: BatchNorm's epsilon alone must fail."""
    network = fill_by_shape(create("cmunext-s"))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1.1e-5
    y = run_in_float64(network, golden_input()).flatten().numpy()
    block = committed("cmunext_s")["gain1"]
    assert np.abs(y[block["index"]] - block["value"]).max() > 1e-8 * block["std"]
