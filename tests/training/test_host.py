"""The layers that are made faster compute the same values, gradients and statistics."""

from contextlib import nullcontext
from copy import deepcopy

import torch
from torch import nn
from torch.nn.functional import gelu

from cmunext.training import host


def test_norms_and_gelus_compute_the_same() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
    ).double()
    fast = deepcopy(plain)
    host.speed_up_narrow_norms(fast)
    images = torch.randn(4, 3, 10, 12, dtype=torch.float64).to(memory_format=torch.channels_last)
    outputs = []
    for network in (plain, fast):
        network.to(memory_format=torch.channels_last).train()
        with host.FastLayers(None) if network is fast else nullcontext():
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


def test_a_gelu_in_bfloat16_is_as_exact_as_pytorchs_and_another_way() -> None:
    x = (4 * torch.randn(4, 16, 20, 24, generator=torch.Generator().manual_seed(0))).to(memory_format=torch.channels_last)
    exact = gelu(x.bfloat16().double())
    plain = gelu(x.bfloat16())
    with host.FastLayers(None):
        fast, module, tanh = gelu(x.bfloat16()), nn.GELU()(x.bfloat16()), gelu(x, approximate="tanh")
        by_name = gelu(input=x.bfloat16())
    errors = [float((some.double() - exact).abs().max()) for some in (fast, plain)]
    assert errors[0] <= 1.01 * errors[1]
    assert torch.equal(fast, module)
    assert fast.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(tanh, gelu(x, approximate="tanh"))
    assert torch.equal(by_name, plain), "a call that is not the usual one is PyTorch's own"
    if torch.backends.mkldnn.is_available() and host.has_bfloat16():
        assert not torch.equal(fast, plain), "the last bits tell that oneDNN was at work"
