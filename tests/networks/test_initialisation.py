"""Networks start as in their papers, and take ImageNet weights from local files in the public formats."""

from collections.abc import Callable
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cmunext.errors import InputError
from cmunext.networks import create, transunet


def deviation(tensor: torch.Tensor) -> float:
    return tensor.detach().std().item()


def test_unet_plus_plus_trunk_starts_as_resnet_and_the_rest_as_pytorch() -> None:
    network = create("unet++")
    trunk = network.trunk
    assert deviation(trunk.layer3[1].conv2.weight) == pytest.approx(sqrt(2 / (256 * 9)), rel=0.01)
    assert deviation(trunk.conv1.weight) == pytest.approx(sqrt(2 / (64 * 49)), rel=0.05)
    assert deviation(network.nodes["31"][0].weight) == pytest.approx(sqrt(1 / 3 / (768 * 9)), rel=0.01)  # uniform, 1 / fan_in
    assert network.mix.tolist() == [1.0] * 5


def test_swin_unet_starts_truncated_normal() -> None:
    network = create("swin-unet")
    for module in network.modules():
        if isinstance(module, nn.Linear):
            assert deviation(module.weight) == pytest.approx(0.02, rel=0.05)
            assert module.bias is None or not module.bias.any()
    assert deviation(network.encoder[3][0].attention.bias_table) == pytest.approx(0.02, rel=0.1)


def test_unext_token_levels_start_as_published() -> None:
    network = create("unext")
    stage = network.encoder_tokens[1]
    assert deviation(stage.mlp.along_width.weight) == pytest.approx(0.02, rel=0.05)
    assert deviation(stage.mlp.depthwise.weight) == pytest.approx(sqrt(2 / 9), rel=0.05)
    assert deviation(stage.embed.weight) == pytest.approx(sqrt(2 / (9 * 256)), rel=0.01)
    assert not stage.embed.bias.any()
    assert deviation(network.encoder[2][0].weight) == pytest.approx(sqrt(1 / 3 / (32 * 9)), rel=0.05)  # PyTorch's default


def test_medt_starts_as_published() -> None:
    network = create("medt")
    deep = network.local.layers[3][0].width_attention
    assert deviation(deep.projection.weight) == pytest.approx(sqrt(1 / 128), rel=0.05)
    assert deviation(network.whole.layer2[0].height_attention.relative) == pytest.approx(sqrt(1 / 4), rel=0.1)


def test_transunet_starts_as_published() -> None:
    network = create("transunet", image_size=32)
    layer = network.transformer[0].mlp[0]
    bound = sqrt(6 / (768 + 3072))
    assert deviation(layer.weight) == pytest.approx(bound / sqrt(3), rel=0.01)
    assert layer.weight.abs().max() <= bound
    assert deviation(layer.bias) == pytest.approx(1e-6, rel=0.1)
    assert not network.position.any()


def torchvision_resnet34() -> dict[str, torch.Tensor]:
    """Random weights under the names and shapes of torchvision's resnet34 file, classifier included."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def norm(name: str, channels: int) -> None:
        for suffix in ("weight", "bias", "running_mean"):
            state[f"{name}.{suffix}"] = torch.randn(channels, generator=generator)
        state[f"{name}.running_var"] = torch.rand(channels, generator=generator) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(17)

    state["conv1.weight"] = torch.randn(64, 3, 7, 7, generator=generator)
    norm("bn1", 64)
    before = 64
    for layer, (channels, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            state[f"{name}.conv1.weight"] = torch.randn(channels, before, 3, 3, generator=generator)
            norm(f"{name}.bn1", channels)
            state[f"{name}.conv2.weight"] = torch.randn(channels, channels, 3, 3, generator=generator)
            norm(f"{name}.bn2", channels)
            if block == 0 and layer > 1:
                state[f"{name}.downsample.0.weight"] = torch.randn(channels, before, 1, 1, generator=generator)
                norm(f"{name}.downsample.1", channels)
            before = channels
    state["fc.weight"] = torch.randn(1000, 512, generator=generator)
    state["fc.bias"] = torch.randn(1000, generator=generator)
    return state


def test_unet_plus_plus_loads_a_torchvision_file(tmp_path: Path) -> None:
    state, path = torchvision_resnet34(), tmp_path / "resnet34.pth"
    torch.save(state, path)
    colour = create("unet++", pretrained=path)
    loaded = colour.trunk.state_dict()
    assert set(loaded) == {name for name in state if not name.startswith("fc.")}
    assert all(torch.equal(loaded[name], state[name]) for name in loaded)

    grey = create("unet++", in_channels=1, pretrained=str(path)).eval()
    x = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        of_grey, of_colour = grey.trunk(x)[0], colour.eval().trunk(x.repeat(1, 3, 1, 1))[0]
    torch.testing.assert_close(of_grey, of_colour, rtol=1e-4, atol=1e-4)


def test_what_is_no_resnet34_is_refused(tmp_path: Path) -> None:
    good, other, rubbish, unsafe = (tmp_path / name for name in ("good.pth", "other.pth", "rubbish.pth", "unsafe.pth"))
    torch.save(torchvision_resnet34(), good)
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, other)
    rubbish.write_bytes(b"no weights")
    torch.save(nn.Linear(2, 2), unsafe)  # a pickled object, which weights_only=True must not execute
    for path in (other, rubbish, unsafe):
        with pytest.raises(InputError, match="does not hold ResNet-34 weights"):
            create("unet++", pretrained=path)
    with pytest.raises(InputError, match="1 or 3 input channels"):
        create("unet++", in_channels=4, pretrained=good)
    with pytest.raises(FileNotFoundError):
        create("unet++", pretrained=tmp_path / "absent.pth")


def google_arrays(width: int, depth: int, heads: int, mlp: int, blocks, make: Callable[..., np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays under the names and shapes of Google's R50+ViT-B_16 file, class token and classifier included."""
    arrays: dict[str, np.ndarray] = {}

    def convolution(name: str, size: int, inputs: int, outputs: int) -> None:
        arrays[f"{name}/kernel"] = make(size, size, inputs, outputs)

    def norm(name: str, *shape: int) -> None:
        arrays[f"{name}/scale"], arrays[f"{name}/bias"] = make(*shape), make(*shape)

    convolution("conv_root", 7, 3, 64)
    norm("gn_root", 1, 1, 1, 64)
    before = 64
    for index, (channels, units) in enumerate(blocks, start=1):
        middle = channels // 4
        for unit in range(1, units + 1):
            name = f"block{index}/unit{unit}"
            for part, size, inputs, outputs in (("1", 1, before, middle), ("2", 3, middle, middle), ("3", 1, middle, channels)):
                convolution(f"{name}/conv{part}", size, inputs, outputs)
                norm(f"{name}/gn{part}", 1, 1, 1, outputs)
            if unit == 1:
                convolution(f"{name}/conv_proj", 1, before, channels)
                norm(f"{name}/gn_proj", 1, 1, 1, channels)
            before = channels
    convolution("embedding", 1, before, width)
    arrays["embedding/bias"] = make(width)
    arrays["cls"] = make(1, 1, width)
    arrays["Transformer/posembed_input/pos_embedding"] = make(1, 1 + 14 * 14, width)
    for index in range(depth):
        name = f"Transformer/encoderblock_{index}"
        norm(f"{name}/LayerNorm_0", width)
        norm(f"{name}/LayerNorm_2", width)
        attention = f"{name}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            arrays[f"{attention}/{part}/kernel"] = make(width, heads, width // heads)
            arrays[f"{attention}/{part}/bias"] = make(heads, width // heads)
        arrays[f"{attention}/out/kernel"] = make(heads, width // heads, width)
        arrays[f"{attention}/out/bias"] = make(width)
        for layer, inputs, outputs in (("Dense_0", width, mlp), ("Dense_1", mlp, width)):
            arrays[f"{name}/MlpBlock_3/{layer}/kernel"] = make(inputs, outputs)
            arrays[f"{name}/MlpBlock_3/{layer}/bias"] = make(outputs)
    norm("Transformer/encoder_norm", width)
    arrays["head/kernel"], arrays["head/bias"] = make(width, 21843), make(21843)
    return arrays


@pytest.fixture
def small_transunet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[dict[str, np.ndarray], Path]:
    """TransUNet made small for the test, and a file of random arrays that fits it."""
    blocks = ((128, 2), (256, 1), (512, 1))
    for name, value in {"WIDTH": 24, "DEPTH": 2, "HEADS": 4, "MLP_WIDTH": 40, "RESNET_BLOCKS": blocks}.items():
        monkeypatch.setattr(transunet, name, value)
    monkeypatch.setattr(transunet, "SKIP_CHANNELS", (256, 128, 64, 0))
    rng = np.random.default_rng(0)
    arrays = google_arrays(24, 2, 4, 40, blocks, lambda *shape: rng.standard_normal(shape).astype(np.float32))
    path = tmp_path / "vit.npz"
    np.savez(path, **arrays)
    return arrays, path


def test_transunet_reads_googles_arrays_by_what_they_mean(small_transunet) -> None:
    """Each kind of array is checked through its effect: Flax multiplies inputs by kernels from the left."""
    arrays, path = small_transunet
    network = create("transunet", image_size=64, pretrained=path).eval()
    rng = np.random.default_rng(1)
    tokens = rng.standard_normal((5, 24)).astype(np.float32)
    prefix = "Transformer/encoderblock_1/"
    attention = network.transformer[1].attention
    close = {"rtol": 1e-4, "atol": 1e-5}
    with torch.no_grad():
        for part in ("query", "key", "value"):
            name = f"{prefix}MultiHeadDotProductAttention_1/{part}/"
            expected = np.einsum("lc,chd->lhd", tokens, arrays[name + "kernel"]) + arrays[name + "bias"]
            actual = getattr(attention, part)(torch.from_numpy(tokens)).reshape(5, 4, 6)
            np.testing.assert_allclose(actual, expected, **close)
        merged = rng.standard_normal((5, 4, 6)).astype(np.float32)
        name = f"{prefix}MultiHeadDotProductAttention_1/out/"
        expected = np.einsum("lhd,hdc->lc", merged, arrays[name + "kernel"]) + arrays[name + "bias"]
        np.testing.assert_allclose(attention.out(torch.from_numpy(merged.reshape(5, 24))), expected, **close)

        hidden = tokens @ arrays[prefix + "MlpBlock_3/Dense_0/kernel"] + arrays[prefix + "MlpBlock_3/Dense_0/bias"]
        np.testing.assert_allclose(network.transformer[1].mlp[0](torch.from_numpy(tokens)), hidden, **close)
        out = hidden @ arrays[prefix + "MlpBlock_3/Dense_1/kernel"] + arrays[prefix + "MlpBlock_3/Dense_1/bias"]
        np.testing.assert_allclose(network.transformer[1].mlp[3](torch.from_numpy(hidden)), out, **close)

    pixels = rng.standard_normal((3, 3, 32)).astype(np.float32)  # one window of H x W x C
    kernel = arrays["block1/unit2/conv2/kernel"]
    weight = network.resnet.blocks[0][1].conv2.weight.detach().numpy()
    window = np.einsum("hwc,hwco->o", pixels, kernel)
    np.testing.assert_allclose(np.einsum("hwc,ochw->o", pixels, weight), window, **close)
    np.testing.assert_array_equal(
        network.resnet.blocks[1][0].gn_proj.weight.detach(), arrays["block2/unit1/gn_proj/scale"].ravel()
    )
    np.testing.assert_array_equal(
        network.transformer[0].mlp_norm.bias.detach(), arrays["Transformer/encoderblock_0/LayerNorm_2/bias"]
    )
    np.testing.assert_array_equal(network.norm.weight.detach(), arrays["Transformer/encoder_norm/scale"])


def test_transunet_resamples_the_position_table(small_transunet) -> None:
    """As the publication does: bilinear between the corner patches, checked against SciPy."""
    zoom = pytest.importorskip("scipy.ndimage").zoom
    arrays, path = small_transunet
    network = create("transunet", image_size=(64, 96), pretrained=path)
    table = arrays["Transformer/posembed_input/pos_embedding"][0, 1:].reshape(14, 14, 24)
    expected = zoom(table, (4 / 14, 6 / 14, 1), order=1).reshape(24, 24)
    np.testing.assert_allclose(network.position[0].detach(), expected, rtol=1e-4, atol=1e-5)


def test_transunet_of_three_channels_repeats_grey_input(small_transunet) -> None:
    _, path = small_transunet
    network = create("transunet", image_size=64, pretrained=path).eval()
    grey = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(network(grey), network(grey.repeat(1, 3, 1, 1)))


def test_what_is_no_r50_vit_is_refused(small_transunet, tmp_path: Path) -> None:
    arrays, good = small_transunet
    other, rubbish, unsafe = (tmp_path / name for name in ("other.npz", "rubbish.npz", "unsafe.npz"))
    np.savez(other, **{name: array for name, array in arrays.items() if name != "embedding/kernel"})
    rubbish.write_bytes(b"no arrays")
    np.savez(unsafe, **{**arrays, "conv_root/kernel": np.array([{"an": "object"}], dtype=object)})
    for path in (other, rubbish, unsafe):
        with pytest.raises(InputError, match="does not hold R50"):
            create("transunet", image_size=64, pretrained=path)
    with pytest.raises(InputError, match="in_channels=3"):
        create("transunet", in_channels=1, image_size=64, pretrained=good)
    with pytest.raises(FileNotFoundError):
        create("transunet", image_size=64, pretrained=tmp_path / "absent.npz")


@pytest.mark.slow
def test_transunet_takes_the_real_files_names_and_shapes(tmp_path: Path) -> None:
    blocks = ((256, 3), (512, 4), (1024, 9))
    arrays = google_arrays(768, 12, 12, 3072, blocks, lambda *shape: np.full(shape, 0.25, dtype=np.float32))
    path = tmp_path / "R50+ViT-B_16.npz"
    np.savez_compressed(path, **arrays)
    network = create("transunet", pretrained=path)
    for name, tensor in network.state_dict().items():
        if name.startswith(("resnet.", "embed.", "position", "transformer.", "norm.")):
            torch.testing.assert_close(tensor, torch.full_like(tensor, 0.25))
