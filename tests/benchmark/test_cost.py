"""Costs: equal to the published counters' to the unit, and memory equal to what can be worked out by hand."""

import json
from math import floor, isclose
from pathlib import Path

import pytest
import torch
from torch import nn

from cmunext.benchmark.cost import PUBLISHED, measure, measure_all, peak_activation_bytes
from cmunext.cli.networks import networks as command
from cmunext.networks import create, names

# Parameters, multiply-accumulates and parameters by the counter of the paper's tables, FLOPs by PyTorch's counter.
TABLE = {
    "cmunext-s": (417505, 1090109440, 417505, 2024767488),
    "cmunext": (3149185, 7417733120, 3149185, 14461255680),
    "cmunext-l": (8286721, 17183211520, 8286721, 33706868736),
    "unet": (34527041, 65522368512, 34527041, 130694512640),
    "attention-unet": (34878573, 66631847936, 34878573, 132849860608),
    "unet++": (26904137, 37626183680, 26904132, 75042390016),
    "unet3+": (26971777, 199742455808, 26971777, 395304763392),
    "cmunet": (49932353, 91254161408, 49932353, 181877080064),
    "transunet": (105322001, 32228732928, 93230545, 76768837632),
    "medt": (1564202, 2406080512, 1370969, 4639555584),
    "swin-unet": (27168132, 5910806496, 27145824, 12142491648),
    "unext": (1471921, 573022208, 1471921, 1124007936),
    "convunext": (3505697, 7253721088, 3505697, 14244249600),
    "mobile-uvit": (1390305, 2506997760, 1390305, 6492258304),
    "mobile-uvit-l": (6209217, 10431201280, 6209217, 24888475648),
    "reduced-unet": (3343217, 7346847744, 3343217, 14591983616),
    "cmunext-plain-skip": (3181457, 6819078144, 3181457, 13363036160),
}
# Printed figures that the counter behind the others does not give, cut after two decimals.
NOT_THE_COUNTERS = {"transunet", "unext", "mobile-uvit"}


def cut(value: float) -> float:
    return floor(value * 100 + 1e-9) / 100


@pytest.mark.parametrize("name", names())
def test_costs_are_those_of_the_table(name: str) -> None:
    cost = measure(name)
    assert (cost.parameters, cost.macs_paper_counter, cost.parameters_paper_counter, 2 * cost.macs) == TABLE[name]
    assert cost.input_shape == (1, 3, *((224, 224) if name == "swin-unet" else (256, 256)))

    published = PUBLISHED.get(name)
    if published is None:
        assert name == "mobile-uvit-l"
        return
    # Medical Transformer and Swin-Unet are printed with the counter's own number of parameters; the others agree anyhow.
    parameters = cost.parameters if name == "transunet" else cost.parameters_paper_counter
    assert published.parameters_millions == cut(parameters / 1e6)
    assert (published.gigaflops == cut(cost.macs_paper_counter / 1e9)) == (name not in NOT_THE_COUNTERS)
    assert bool(published.note) == (name in NOT_THE_COUNTERS | {"medt", "swin-unet"})


def test_memory_of_a_chain_is_what_can_be_worked_out() -> None:
    """Input, the convolution's output and ReLU's are alive together: 1, 4 and 4 channels of 8 x 8 float32."""
    chain = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU())
    assert peak_activation_bytes(chain, torch.zeros(1, 1, 8, 8)) == (1 + 4 + 4) * 64 * 4


def test_memory_counts_views_once_and_lets_go() -> None:
    class Steps(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(5):
                x = (x.transpose(0, 1).flatten(2).unflatten(2, (8, 8)) + 1).transpose(0, 1)
            return x

    # The caller's input, the step before and the step itself; transposing and flattening one batch are views.
    assert peak_activation_bytes(Steps(), torch.zeros(1, 1, 8, 8)) == 3 * 64 * 4


@pytest.mark.parametrize("name", ["cmunext-s", "unext"])
def test_memory_without_computing_is_memory_when_computing(name: str) -> None:
    computed = peak_activation_bytes(create(name).eval(), torch.zeros(1, 3, 256, 256))
    assert isclose(measure(name).peak_activation_bytes, computed, rel_tol=1e-3)


def test_a_network_of_ones_own_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "measured_network.py").write_text(
        "from torch import nn\n\ndef tiny(in_channels, num_classes):\n    return nn.Conv2d(in_channels, num_classes, 3, padding=1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (cost,) = measure_all(["measured_network:tiny"])
    assert (cost.parameters, cost.macs, cost.macs_paper_counter) == (28, 27 * 256 * 256, 27 * 256 * 256)
    assert cost.paper_gigaflops is None


def test_command_prints_one_json_list(capsys: pytest.CaptureFixture[str]) -> None:
    command(name=None, cost=False, json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["parameters"]) for row in rows] == [(name, TABLE[name][0]) for name in names()]

    command(name=["cmunext-s", "medt"], cost=True, json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["cmunext-s", "medt"]
    assert rows[0]["macs"] == 2024767488 // 2
    assert rows[1]["macs_paper_counter"] == 2406080512


def test_command_prints_a_table_with_the_papers_figures_explained(capsys: pytest.CaptureFixture[str]) -> None:
    command(name=["cmunext-s", "unext"], cost=True, json=False)
    text = capsys.readouterr().out
    assert "417,505" in text
    assert "1.090 G" in text
    assert "1.47 M 0.58 G [1]" in text
    assert "[1] 0.58 G cannot be reproduced" in text
    command(name=["unet"], cost=False, json=False)
    assert capsys.readouterr().out.split()[-2:] == ["unet", "34,527,041"]
