"""The layers that are made faster compute the same values, gradients and statistics."""

from copy import deepcopy

import torch
from torch import nn

from cmunext.training import host


def test_norms_and_gelus_compute_the_same() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
    ).double()
    fast = deepcopy(plain)
    host.speed_up(fast)
    images = torch.randn(4, 3, 10, 12, dtype=torch.float64).to(memory_format=torch.channels_last)
    outputs = []
    for network in (plain, fast):
        network.to(memory_format=torch.channels_last).train()
        output = network(images)
        output.square().sum().backward()
        outputs.append(output)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)
    assert outputs[1].is_contiguous(memory_format=torch.channels_last)
    for (name, a), b in zip(plain.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9, msg=name)
    for a, b in zip(plain.buffers(), fast.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert plain.state_dict().keys() == fast.state_dict().keys()


def test_a_gelu_in_bfloat16_is_as_exact_as_pytorchs() -> None:
    x = (4 * torch.randn(4, 16, 20, 24, generator=torch.Generator().manual_seed(0))).to(memory_format=torch.channels_last)
    module = nn.Sequential(nn.GELU())
    host.speed_up(module)
    exact = torch.nn.functional.gelu(x.bfloat16().double())
    errors = [float((gelu(x.bfloat16()).double() - exact).abs().max()) for gelu in (module, nn.GELU())]
    assert errors[0] <= 1.01 * errors[1]
