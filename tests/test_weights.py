"""Weights files: ours, official ones, and what is refused."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cmunext import networks, weights
from cmunext.errors import InputError, UsageError
from cmunext.image import preprocess
from cmunext.metadata import KEY, Metadata
from cmunext.training import checkpoint

ARGUMENTS = {"in_channels": 3, "num_classes": 1}


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return networks.create("cmunext-s").eval()


def described(**changes: object) -> Metadata:
    plain = Metadata("cmunext-s", ARGUMENTS, preprocess.DEFAULT, ("lesion",))
    return replace(plain, **changes)


def same_output(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        return torch.equal(a(images), b(images))


def test_round_trip_is_exact_and_bytes_repeat(network, tmp_path: Path) -> None:
    for name in ("a", "b"):
        weights.save(tmp_path / f"{name}.safetensors", network, described(training={"seed": 3}))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded = weights.load(tmp_path / "a.safetensors")
    assert loaded.metadata == described(training={"seed": 3})
    assert not loaded.network.training
    assert same_output(network, loaded.network)


@pytest.mark.parametrize("halve", [False, True])
def test_a_changed_byte_is_noticed_and_other_hands_need_no_checksum(network, tmp_path: Path, halve: bool) -> None:
    path = tmp_path / "w.safetensors"
    weights.save(path, network, described())
    if halve:
        path.write_bytes(weights.halved(path))
    content = path.read_bytes()
    weights.load(path)
    for place in torch.linspace(8 + int.from_bytes(content[:8], "little"), len(content) - 1, 20).long():  # of the tensors
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(InputError, match=r"w\.safetensors: it was changed after it was written"):
            weights.load(path)
    path.write_bytes(content.replace(b"0.485", b"0.458"))
    for read in (weights.load, weights.halved):
        with pytest.raises(InputError, match="it was changed after it was written"):
            read(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    save_file(tensors, path, {KEY: described().to_json()})
    assert weights.load(path).metadata == described()


def test_others_may_read_what_is_written(network, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    weights.save(tmp_path / "w.safetensors", network, described())
    weights.save_official(tmp_path / "w.pth", network)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_a_full_disk_leaves_what_was_there(network, tmp_path: Path, full_disk) -> None:
    writers = {
        "w.safetensors": lambda path: weights.save(path, network, described()),
        "w.pth": lambda path: weights.save_official(path, network),
        checkpoint.FILE: lambda path: checkpoint.save(path.parent, checkpoint.Progress(), {"network": network.state_dict()}, ""),
    }
    for name, write in writers.items():
        (tmp_path / name).write_bytes(b"before")
        with full_disk(), pytest.raises(OSError, match="File too large"):
            write(tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == len(writers), "and nothing half-written lies about"


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", ["cmunext-s", "cmunext"])
def test_official_checkpoints_load_and_save_back(name: str, prefix: str, tmp_path: Path) -> None:
    original = networks.create(name, num_classes=2).eval()
    weights.save_official(tmp_path / "ours.pth", original)
    state = torch.load(tmp_path / "ours.pth", weights_only=True)
    torch.save({prefix + key: tensor for key, tensor in state.items()}, tmp_path / "theirs.pth")
    loaded = weights.load(tmp_path / "theirs.pth")
    assert loaded.metadata.network == name
    assert loaded.metadata.num_classes == 2
    assert loaded.preprocessing == preprocess.PAPER
    assert same_output(original, loaded.network)
    weights.save_official(tmp_path / "back.pth", loaded.network)
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(back) == list(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize(("name", "file"), [("cmunext-s", "cmunext_s"), ("cmunext", "cmunext"), ("cmunext-l", "cmunext_l")])
def test_official_keys_shapes_and_order(name: str, file: str, fixtures: Path, tmp_path: Path) -> None:
    golden = json.loads((fixtures / f"{file}_statedict.json").read_text())["state_dict_keys"]
    weights.save_official(tmp_path / "x.pth", networks.create(name))
    state = torch.load(tmp_path / "x.pth", weights_only=True)
    assert [[key, list(tensor.shape)] for key, tensor in state.items()] == golden


class Payload:
    def __reduce__(self):
        return (Path.write_text, (Path("pwned.txt"), "executed"))


def test_a_pickle_payload_is_refused_and_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"stem.conv.0.weight": Payload()}, tmp_path / "evil.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Payload()))
    for name in ("evil.pth", "bare.pth"):
        with pytest.raises(InputError, match="refused"):
            weights.load(tmp_path / name)
    assert not (tmp_path / "pwned.txt").exists()


def test_what_does_not_fit_is_told(network, tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    path = tmp_path / "w.safetensors"

    def refused(told: str) -> None:
        with pytest.raises(InputError, match=told) as raised:
            weights.load(path)
        assert "\n" not in str(raised.value)

    save_file(tensors, path)
    refused("does not describe itself")
    save_file({**tensors, "extra": torch.zeros(1)}, path, {KEY: described().to_json()})
    refused("unknown tensor extra")
    save_file({k: v for k, v in tensors.items() if k != "head.bias"}, path, {KEY: described().to_json()})
    refused("lacks head.bias")
    save_file(tensors, path, {KEY: described(arguments={**ARGUMENTS, "num_classes": 2}, classes=("a", "b")).to_json()})
    refused(r"head.* instead of \(2")
    save_file(tensors, path, {KEY: described(network="cmunext-xxl").to_json()})
    refused("no network 'cmunext-xxl'")
    path.write_bytes(path.read_bytes()[:5000])
    refused("not a readable safetensors")
    path.write_bytes(b"")
    refused("not a readable safetensors")


def test_other_checkpoints_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    for content, told in (
        ({"weird": torch.zeros(2)}, "no official CMUNeXt"),
        ([1, 2], "no state_dict"),
        ({}, "no state_dict"),
        ({"epoch": 3}, "no state_dict"),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=told):
            weights.load(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"x\.pth"):
        weights.load(path)
    path.write_text("hello")
    with pytest.raises(InputError, match=r"x\.pth"):
        weights.load(path)
    with pytest.raises(UsageError, match="does not exist"):
        weights.load(tmp_path / "none.pth")
    with pytest.raises(UsageError, match="suffixes"):
        weights.load(tmp_path / "none.h5")
