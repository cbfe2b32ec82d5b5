"""Fine-tuning: starting from weights, which weights are refused, and going on exactly."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny_training import one_layer
from tests.training_here import train_here

from cmunext import weights
from cmunext.errors import InputError, UsageError
from cmunext.image.files import read_image, write_image
from cmunext.image.preprocess import Preprocessing
from cmunext.metadata import LEARNT_FROM, Metadata
from cmunext.training.recipe import DEFAULT, with_settings

NETWORK = "tests.tiny_training:one_layer"
RECIPE = with_settings(DEFAULT, ["epochs=2", "size=32", "batch_size=3", "ema_decay=0.0", "precision=32-true"])
pytestmark = pytest.mark.usefixtures("trusted")


def run(dataset: Path, out: Path, *settings: str, **changes) -> list[str]:
    """Train here and give what was said."""
    return train_here(NETWORK, with_settings(RECIPE, settings), dataset, out, **changes)


def copied(dataset: Path, name: str) -> str:
    """Give a case of the dataset a second name, and say it."""
    for path in [*dataset.glob(f"*/{name}.*"), *dataset.glob(f"*/*/{name}.*")]:
        shutil.copy(path, path.with_name(f"copy{path.suffix}"))
    return "copy"


def tensors(file: Path) -> dict[str, torch.Tensor]:
    return weights.load(file).network.state_dict()


def test_training_starts_from_the_weights_also_at_another_size(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path / "first", "size=16", "learning_rate=0.05")
    begun = tmp_path / "first" / "last.safetensors"
    said = run(dataset, tmp_path / "second", "learning_rate=1e-12", "epochs_before=2", start=begun)
    for name, tensor in tensors(tmp_path / "second" / "last.safetensors").items():
        torch.testing.assert_close(tensor, tensors(begun)[name], atol=1e-7, rtol=0)
    assert not said, "same split, same normalisation, other views: nothing to warn of"
    told = json.loads((tmp_path / "second" / "recipe.json").read_text())["start"]
    assert told == {"file": "last.safetensors", "sha256": hashlib.sha256(begun.read_bytes()).hexdigest(), "network": NETWORK}
    training = weights.load(tmp_path / "second" / "last.safetensors").metadata.training
    assert training["start"] == told
    assert len(training[LEARNT_FROM]) == 8, "the same images at two sizes are the same images"


def test_views_that_the_start_has_learnt_from_are_warned_of(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path / "first", "epochs_before=3", "epochs=3")
    begun = tmp_path / "first" / "last.safetensors"

    def warned(name: str, *settings: str) -> str:
        return "".join(run(dataset, tmp_path / name, *settings, start=begun))

    assert "views of 2 of its epochs again; set epochs_before=6 or another seed" in warned("some", "epochs_before=4")
    assert "views of 1 of its epochs again; set epochs_before=6 " in warned("shorter", "epochs_before=3", "epochs=1")
    assert not warned("after", "epochs_before=6")
    assert not warned("before", "epochs_before=1")
    assert not warned("another", "epochs_before=4", "seed=42")


def test_weights_that_learnt_from_a_validation_image_are_refused_at_any_size(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path / "first", "size=16", train_list=Path("val.txt"), validation_list=Path("train.txt"))
    with pytest.raises(UsageError, match=r"was trained on 4 of the 4 validation images of this run"):
        run(dataset, tmp_path / "second", start=tmp_path / "first" / "last.safetensors")
    assert not (tmp_path / "second").exists()


def test_a_start_that_learnt_from_a_validation_image_is_refused_in_whatever_file_the_image_lies(
    dataset: Path, tmp_path: Path
) -> None:
    run(dataset, tmp_path / "first", train_list=Path("val.txt"), validation_list=Path("train.txt"))
    for path in (dataset / "images").iterdir():
        write_image(path, np.dstack([read_image(path)] * 3))
    with pytest.raises(UsageError, match=r"was trained on 4 of the 4 validation images of this run"):
        run(dataset, tmp_path / "second", start=tmp_path / "first" / "last.safetensors")


def test_an_image_that_the_run_itself_trains_on_and_validates_is_no_fault_of_its_start(dataset: Path, tmp_path: Path) -> None:
    validated, *_ = (dataset / "val.txt").read_text().split("\n")
    both = dataset / "both.txt"
    both.write_text((dataset / "train.txt").read_text() + f"\n{copied(dataset, validated)}\n")
    run(dataset, tmp_path / "first", train_list=both)
    begun = tmp_path / "first" / "last.safetensors"
    run(dataset, tmp_path / "second", train_list=both, start=begun)
    with pytest.raises(UsageError, match=r"was trained on 1 of the 4 validation images of this run"):
        run(dataset, tmp_path / "third", start=begun)


def test_weights_of_another_network_are_refused_and_another_normalisation_is_said(dataset: Path, tmp_path: Path) -> None:
    two = tmp_path / "two.safetensors"
    metadata = Metadata(NETWORK, {"in_channels": 3, "num_classes": 2}, Preprocessing(), ("a", "b"))
    weights.save(two, one_layer(3, 2), metadata)
    with pytest.raises(UsageError, match=r'"num_classes": 2.* and this run trains .*"num_classes": 1'):
        run(dataset, tmp_path / "run", start=two)
    assert not (tmp_path / "run").exists()
    other = tmp_path / "other.safetensors"
    metadata = Metadata(NETWORK, {"in_channels": 3, "num_classes": 1}, Preprocessing(mean=(0.0, 0.0, 0.0)), ("lesion",))
    weights.save(other, one_layer(3, 1), metadata)
    said = run(dataset, tmp_path / "run", start=other)
    assert any("another normalisation" in sentence for sentence in said)
    assert any("does not say what it was trained on" in sentence for sentence in said)


def test_going_on_is_exact_and_needs_the_same_start(dataset: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        run(dataset, tmp_path / f"start{seed}", f"seed={seed}")
    starts = [tmp_path / f"start{seed}" / "last.safetensors" for seed in (1, 2)]
    run(dataset, tmp_path / "run", start=starts[0])
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    run(dataset, tmp_path / "run", start=starts[0], resume=True)
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before
    renamed = starts[0].with_name("renamed.safetensors")
    starts[0].rename(renamed)
    run(dataset, tmp_path / "run", start=renamed, resume=True)
    with pytest.raises(UsageError, match=r"begun with --start-from last\.safetensors \(\w{8}\) and is given last\.safetensors"):
        run(dataset, tmp_path / "run", start=starts[1], resume=True)
    with pytest.raises(UsageError, match="is given none"):
        run(dataset, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"recipe": 3}',
        "{",
        "[" * 10**5,
        '{"recipe": {}, "threads": "x"}',
        '{"recipe": {}, "threads": -3}',
        '{"recipe": {}, "start": {}}',
        '{"recipe": {}, "distillation": 5}',
        '{"recipe": {}, "distillation": {"teachers": [{}]}}',
    ],
)
def test_a_damaged_recipe_of_a_run_is_one_sentence(dataset: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text(content)
    with pytest.raises(InputError, match=r"recipe\.json is damaged \(.*\); give another --out"):
        run(dataset, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "recipe.json").read_text() == content


def test_going_on_with_other_devices_is_said(dataset: Path, tmp_path: Path) -> None:
    assert not run(dataset, tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.json"
    recipe.write_text(recipe.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    [said] = run(dataset, tmp_path / "run", resume=True)
    assert "begun on 1 x cuda and goes on on 1 x cpu: not to the same bits" in said


def test_an_image_under_two_names_in_both_lists_is_told_of(dataset: Path, tmp_path: Path) -> None:
    validated, *_ = (dataset / "val.txt").read_text().split("\n")
    both = dataset / "both.txt"
    both.write_text((dataset / "train.txt").read_text() + f"\n{copied(dataset, validated)}\n")
    said = run(dataset, tmp_path / "run", train_list=both)
    assert said == [
        f"warning: 1 image is in both lists, {validated!r} (in training 'copy') among them: validation scores are too good"
    ]
