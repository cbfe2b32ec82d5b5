"""Recipes and the schedule, against the figures measured from the authors' code."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from cmunext.errors import InputError, UsageError
from cmunext.training.batches import epoch_batches
from cmunext.training.recipe import DEFAULT, PAPER, from_dict, named, with_settings
from cmunext.training.schedule import learning_rate
from cmunext.training.step import optimizer_of

STEPS = 300 * 57  # 452 images in batches of 8


def test_the_papers_learning_rate_lags_one_step() -> None:
    rates = [learning_rate(PAPER, step, STEPS) for step in range(STEPS)]
    assert rates[0] == rates[1] == 0.01
    assert rates[2] == pytest.approx(0.01 * (1 - 1 / STEPS) ** 0.9, rel=1e-12)
    assert rates[-1] == pytest.approx(2.892e-06, rel=1e-3)
    assert learning_rate(replace(PAPER, schedule_lag=False), STEPS - 1, STEPS) == pytest.approx(1.550e-06, rel=1e-3)


def test_cosine_with_warm_up() -> None:
    recipe = replace(DEFAULT, schedule="cosine", schedule_lag=False, epochs=10, warmup_epochs=1, learning_rate=1.0)
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert rates[50] == pytest.approx(0.5)
    assert all(np.diff(rates[10:]) < 0)


def test_cosine_lags_too_and_the_warm_up_does_not() -> None:
    punctual = replace(DEFAULT, schedule="cosine", schedule_lag=False, epochs=10, warmup_epochs=1)
    late = replace(punctual, schedule_lag=True)
    rates, late_rates = ([learning_rate(recipe, step, 100) for step in range(100)] for recipe in (punctual, late))
    assert late_rates[:10] == rates[:10]
    assert late_rates[11:] == rates[10:-1]


def test_the_papers_double_normalisation_and_bgr() -> None:
    scale, offset = PAPER.preprocessing.scale_and_offset
    np.testing.assert_allclose(offset, [-0.00830551, -0.00798319, -0.00707625], rtol=1e-5)
    np.testing.assert_allclose(255 * scale + offset, [0.00881925, 0.00952381, 0.01035294], rtol=1e-5)
    assert PAPER.preprocessing.channels == "bgr"
    assert (PAPER.preprocessing.mean, PAPER.preprocessing.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "of R, G, B"


def test_the_papers_other_quirks() -> None:
    """As docs/what-the-numbers-mean.md lists them; what becomes of the masks is tested in test_dataset."""
    assert PAPER.schedule_lag and PAPER.augment_before_resize
    assert [len(batch) for batch in epoch_batches(452, PAPER, 0)] == [8] * 56 + [4]
    assert (PAPER.validate_every, PAPER.ema_decay) == (1, 0.0), "every epoch may be the best"
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    (decayed,) = optimizer_of(network, PAPER, recorded=False).param_groups
    assert decayed["weight_decay"] == 1e-4
    assert len(decayed["params"]) == 4, "biases and the norm's parameters too"


def test_default_differs_from_the_paper_only_where_it_says() -> None:
    differing = {key for key, value in DEFAULT.to_dict().items() if value != PAPER.to_dict()[key]}
    assert differing == {"name", "preprocessing", "ema_decay", "precision"}


def test_settings() -> None:
    recipe = with_settings(PAPER, ["epochs=5", "size=128", "augmentation.flip=0", "optimizer=adamw", "learning_rate=1"])
    assert (recipe.epochs, recipe.preprocessing.height, recipe.preprocessing.width) == (5, 128, 128)
    assert (recipe.augmentation.flip, recipe.optimizer, recipe.learning_rate) == (0.0, "adamw", 1.0)
    assert recipe.preprocessing.final_scale == PAPER.preprocessing.final_scale


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("epochs", "no '='"),
        ("epoch=5", "no setting 'epoch'"),
        ("epochs=many", "must be of the type of 300"),
        ("epochs=0", "at least 1"),
        ("optimizer=lion", "choose one of sgd, adamw"),
        ("augmentation=3", "set its parts"),
        ("augmentation.flop=1", "no setting 'augmentation.flop'"),
        ("preprocessing.height=128", "rotated by 90 degrees"),
        ("ema_decay=1.0", r"\[0, 1\)"),
        ("distill_weight=1.5", r"\[0, 1\]"),
        ("preprocessing.channels=hsv", "rgb, bgr, grey"),
        ("preprocessing.final_scale=0", "must be positive"),
        ("learning_rate=Infinity", "positive and finite"),
        ("learning_rate=1" + "0" * 400, "learning_rate has a number of 401 digits"),
        ("preprocessing.mean=[0,0,1" + "0" * 400 + "]", "preprocessing.mean has a number of 401 digits"),
        ("momentum=-1", r"momentum is -1.0; it must lie in \[0, 1\)"),
        ("momentum=NaN", r"\[0, 1\)"),
        ("weight_decay=-1", "weight_decay is -1.0; it must be finite and not negative"),
        ("weight_decay=1e400", "weight_decay is inf"),
        ("poly_power=NaN", "poly_power is nan; it must be finite"),
        ("augmentation.flip=NaN", r"augmentation.flip is nan; a probability lies in 0\.\.1"),
        ("augmentation.scale=NaN", "augmentation.scale is nan; it is a finite factor of at least 1"),
        ("augmentation.gamma=Infinity", "finite factor"),
        ("augmentation.noise=-1", r"augmentation.noise is -1.0; it must lie in 0\.\.1"),
        ("augmentation.shift=NaN", r"augmentation.shift is nan; it must lie in 0\.\.1"),
        ("augmentation.rotation=400", r"it must lie in 0\.\.180"),
        ("epochs_before=-1", "epochs_before is -1; it must lie in 0"),
        ("seed=-4", "seed is -4; it must lie in 0"),
        ("seed=99999999999999999999999", "it must lie in 0"),
    ],
)
def test_bad_settings_are_told(setting: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        with_settings(PAPER, [setting])


@pytest.mark.parametrize("part", ["size=32", "preprocessing.height=32"])
def test_a_record_and_a_part_of_it_are_not_set_at_once(part: str) -> None:
    with pytest.raises(UsageError, match=r"set preprocessing to 3 and preprocessing.height to 32; leave out one"):
        with_settings(PAPER, ["preprocessing=3", part])
    with pytest.raises(UsageError, match="set its parts"):
        with_settings(PAPER, [part, "preprocessing=3"])
    whole = with_settings(PAPER, ['preprocessing={"threshold": 0.4}', "size=64"]).preprocessing
    assert (whole.threshold, whole.height, whole.width) == (0.4, 64, 64)


def test_a_saved_recipe_reads_back(tmp_path: Path) -> None:
    recipe = with_settings(DEFAULT, ["epochs=7", "augmentation.scale=1.25"])
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"recipe": recipe.to_dict(), "network": "cmunext-s"}))
    assert named(path) == recipe
    assert from_dict(recipe.to_dict()) == recipe
    assert named("paper") == PAPER


def test_later_entries_are_saved_only_where_they_change_something() -> None:
    assert not {"distill_weight", "epochs_before"} & DEFAULT.to_dict().keys()
    assert not {"cutmix", "mirror"} & DEFAULT.to_dict()["augmentation"].keys()
    changed = with_settings(DEFAULT, ["distill_weight=0.7", "epochs_before=4", "augmentation.cutmix=0.3"])
    assert (changed.to_dict()["distill_weight"], changed.to_dict()["augmentation"]["cutmix"]) == (0.7, 0.3)
    assert changed.to_dict()["epochs_before"] == 4
    assert from_dict(changed.to_dict()) == changed


def test_what_is_no_recipe_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recipe 'strange'"):
        named("strange")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(InputError, match="must hold a JSON object"):
        named(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        named(tmp_path / "b.json")
