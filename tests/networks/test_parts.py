"""Parts of the networks against plain restatements of what they mean, and what their named arguments change."""

import numpy as np
import pytest
import torch
from fill import fill_by_shape
from torch import nn

from cmunext.networks import create
from cmunext.networks.blocks import DropPath
from cmunext.networks.medt import GatedAttention
from cmunext.networks.swin_unet import PatchExpanding, PatchMerging, SwinBlock
from cmunext.networks.transunet import StandardizedConv2d
from cmunext.networks.unext import shift


@pytest.fixture
def noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("axis", [1, 2])
def test_shift_moves_fifths_of_the_channels_and_brings_zeros(axis: int, noise: torch.Generator) -> None:
    x = torch.randn(2, 6, 7, 11, generator=noise)
    moved = shift(x, axis)
    length = x.shape[axis]
    for channel in range(11):
        step = channel // 3 - 2  # 11 channels make chunks of 3, 3, 3, 2
        for place in range(length):
            source = place - step
            expected = x.select(axis, source)[..., channel] if 0 <= source < length else torch.zeros(())
            assert (moved.select(axis, place)[..., channel] == expected).all()


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25).train()
    y = layer(torch.ones(4000, 3, 2))
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(y.amin(dim=(1, 2)), y.amax(dim=(1, 2)))
    assert y.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(layer.eval()(y), y)


def test_stochastic_depth_is_where_the_papers_have_it() -> None:
    rates = {
        name: [module.rate for module in create(name).modules() if isinstance(module, DropPath)]
        for name in ("swin-unet", "mobile-uvit", "mobile-uvit-l")
    }
    encoder = [0.2 * block / 7 for block in range(8)]
    assert rates["swin-unet"] == pytest.approx(encoder + encoder[4:6] + encoder[2:4] + encoder[0:2])
    assert rates["mobile-uvit"] == [0.1, 0.1, 0.1] * 3 + [0.0] * 3
    assert rates["mobile-uvit-l"] == [0.1, 0.1, 0.1] * 3 + [0.0] * 4


@pytest.mark.parametrize("size", [(8, 8), (8, 12), (4, 4)])
def test_swin_windows_attend_exactly_within_their_region(size: tuple[int, int], noise: torch.Generator) -> None:
    """A change at one pixel reaches the pixels that share its window after the cyclic shift without having wrapped."""
    window, step = 4, 2
    block = SwinBlock(6, 3, size, window, step, drop_path=0.0).double().eval()
    with torch.no_grad():
        block.mlp[2].weight.zero_()  # only attention mixes pixels; leave it alone
    step = 0 if min(size) <= window else step
    x = torch.randn(1, *size, 6, generator=noise, dtype=torch.float64)
    place = (1, 5 % size[1])
    changed = x.clone()
    changed[0, place[0], place[1]] += torch.randn(6, generator=noise, dtype=torch.float64)
    with torch.no_grad():
        reached = (block(changed) - block(x)).abs().amax(dim=-1)[0] > 1e-12

    def region(position: int, side: int) -> tuple[int, bool]:
        shifted = (position - step) % side
        return shifted // window, position < step  # its window, and whether the shift wrapped it round

    for row in range(size[0]):
        for column in range(size[1]):
            together = region(row, size[0]) == region(place[0], size[0]) and region(column, size[1]) == region(place[1], size[1])
            assert reached[row, column] == together


def test_swin_merges_neighbours_in_the_papers_order_and_expands_back() -> None:
    merge = PatchMerging(1)
    merge.norm, merge.reduce = nn.Identity(), nn.Identity()
    x = torch.arange(16.0).reshape(1, 4, 4, 1)
    assert merge(x)[0, 0, 1].tolist() == [2, 6, 3, 7]  # (even, even), (odd, even), (even, odd), (odd, odd) row and column
    expand = PatchExpanding(4, 1, 2)
    expand.expand, expand.norm = nn.Identity(), nn.Identity()
    assert expand(torch.tensor([[[[0.0, 1, 2, 3], [4, 5, 6, 7]]]]))[0, :, :, 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_standardised_filters_have_mean_zero_and_variance_one(noise: torch.Generator) -> None:
    layer = StandardizedConv2d(3, 5, 3, padding=1, bias=False).double()
    filters = layer.weight.detach().numpy()
    layer_like = nn.Conv2d(3, 5, 3, padding=1, bias=False).double()
    flat = filters.reshape(5, -1)
    flat = (flat - flat.mean(axis=1, keepdims=True)) / np.sqrt(flat.var(axis=1, keepdims=True) + 1e-5)
    layer_like.weight.data = torch.from_numpy(flat.reshape(filters.shape))
    x = torch.randn(1, 3, 6, 6, generator=noise, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer_like(x))


def test_gated_attention_reads_its_position_table_as_row_minus_column(noise: torch.Generator) -> None:
    """With content and norms neutral, what remains is the position terms, restated here with loops."""
    channels, span = 16, 5
    layer = GatedAttention(channels, span, trainable_gates=False).double().eval()
    x = torch.randn(1, channels, span, generator=noise, dtype=torch.float64)
    with torch.no_grad():
        query, key, value = (part[0].numpy() for part in layer.project(x))
        actual = layer(x)[0].numpy()
    table = layer.relative.detach().numpy()
    query_table, key_table, value_table = table[:1], table[1:2], table[2:]
    neutral = 1 / np.sqrt(1 + 1e-5)  # what a fresh BatchNorm multiplies by
    for head in range(8):
        scores = np.zeros((span, span))
        for i in range(span):
            for j in range(span):
                content = query[head, :, i] @ key[head, :, j]
                from_query = query[head, :, i] @ query_table[:, i - j + span - 1]
                from_key = key[head, :, j] @ key_table[:, j - i + span - 1]
                scores[i, j] = neutral * (content + 0.1 * from_query + 0.1 * from_key)
        weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        for i in range(span):
            position = sum(weights[i, j] * value_table[:, i - j + span - 1] for j in range(span))
            expected = neutral * (value[head] @ weights[i] + 0.1 * position)
            np.testing.assert_allclose(actual[2 * head : 2 * head + 2, i], expected, rtol=1e-6)  # the gates are float32 numbers


def medt(**arguments) -> nn.Module:
    return fill_by_shape(create("medt", **arguments), gain=0.7).eval()


def test_medt_covers_the_image_only_when_asked() -> None:
    """At 256 the default's local branch ends at row and column 128; with cover_image it reaches the last pixel."""
    x = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    network = create("medt").eval()
    with torch.no_grad():
        local = network._on_patches(x)
        assert local.shape == (1, 16, 128, 128)
        torch.testing.assert_close(local[..., 32:64, 96:128], network.local(x[..., 32:64, 96:128]))
        network = create("medt", cover_image=True).eval()
        local = network._on_patches(x)
        assert local.shape == (1, 16, 256, 256)
        torch.testing.assert_close(local[..., 64:128, 192:], network.local(x[..., 64:128, 192:]))


def test_medts_corrections_change_nothing_where_there_is_nothing_to_correct() -> None:
    x = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    plain, corrected = medt(image_size=128), medt(image_size=128, cover_image=True, trainable_gates=True)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), corrected(x))
    assert sum(parameter.numel() for parameter in plain.parameters()) == 1_560_106
    assert sum(parameter.numel() for parameter in plain.parameters() if parameter.requires_grad) == 1_560_082
    assert all(parameter.requires_grad for parameter in corrected.parameters())


def test_medts_free_gates_get_gradients() -> None:
    network = medt(image_size=128, trainable_gates=True)
    network(torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))).sum().backward()
    gates = [parameter for name, parameter in network.named_parameters() if name.endswith("_gate")]
    assert len(gates) == 24
    assert all(gate.grad is not None and gate.grad != 0 for gate in gates)


def test_medt_gives_every_patch_its_own_statistics_in_training() -> None:
    network = create("medt", image_size=128).train()
    with torch.no_grad():
        network(torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    assert network.local.stem[1].num_batches_tracked == 16
    assert network.whole.stem[1].num_batches_tracked == 1


def test_mobile_uvit_repeats_grey_input() -> None:
    network = create("mobile-uvit").eval()
    grey = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(network(grey), network(grey.repeat(1, 3, 1, 1)))
