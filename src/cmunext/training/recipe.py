"""Recipes: everything that decides how a network is trained, frozen, complete and saved with the run."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from cmunext.data.augment import Augmentation
from cmunext.errors import InputError, UsageError
from cmunext.image import preprocess
from cmunext.image.preprocess import Preprocessing
from cmunext.storage import read_json

CHOICES = {
    "loss": ("bce-dice", "boundary-dou"),
    "optimizer": ("sgd", "adamw"),
    "schedule": ("poly", "cosine", "constant"),
    "precision": ("auto", "32-true", "bf16-mixed"),
}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The values here are the paper's (section 3.1), apart from those that `PAPER` sets.

    Attributes
    ----------
    name : what the recipe is called in the run, the weights file and tables.
    epochs, batch_size, seed : the last batch of an epoch is kept even when it is smaller.
    epochs_before : epochs of an earlier run with this seed that the run goes on from (`--start-from`): the order and the random
        views of its epochs follow theirs. With 0 it would be shown the very views again that its start has learnt from.
    preprocessing : size, channels and normalisation of the network's input, and how logits become a mask.
    augmentation : random changes of the training images.
    augment_before_resize : flip the native mask and then resize it with OpenCV's asymmetric nearest neighbour, as the released
        code does; False samples masks at pixel centres.
    loss : "bce-dice" (equation 7) or "boundary-dou".
    distill_weight : of the teachers' mean probability as a target beside the truth (see `losses.DistillationLoss`), 0 to 1. It
        matters only in a run that is given teachers, which needs loss "bce-dice"; 0.5 counts both alike.
    optimizer : "sgd" (with `momentum`) or "adamw".
    learning_rate, momentum, weight_decay : of the optimiser; the decay applies to every parameter, norms and biases included.
    schedule : "poly" (with `poly_power`), "cosine" or "constant"; `warmup_epochs` rise linearly before it.
    schedule_lag : let "poly" and "cosine" run one step late, as the released code does with its "poly"; the warm-up is not late.
    ema_decay : decay a step of the exponential moving average of weights and batch statistics, 0 for none. It ramps up as
        (1 + t) / (10 + t). With an average, it is the averaged network that is validated and kept as best.
    freeze_batch_statistics : normalise by the running statistics also in training.
    validate_every : epochs between validations; the last epoch is always validated.
    precision : of the network's arithmetic; "auto" takes bfloat16 where the processor has it in hardware, else float32.
    """

    name: str = "custom"
    epochs: int = 300
    batch_size: int = 8
    seed: int = 41
    epochs_before: int = 0
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    augmentation: Augmentation = field(default_factory=Augmentation)
    augment_before_resize: bool = True
    loss: str = "bce-dice"
    distill_weight: float = 0.5
    optimizer: str = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "poly"
    poly_power: float = 0.9
    schedule_lag: bool = True
    warmup_epochs: float = 0.0
    ema_decay: float = 0.0
    freeze_batch_statistics: bool = False
    validate_every: int = 1
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UsageError(f"recipe {name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")
        for name in ("epochs", "batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"recipe {name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"recipe seed is {self.seed}; it must lie in 0..{2**32 - 1}")
        if not 0 <= self.epochs_before < 2**31:
            raise UsageError(f"recipe epochs_before is {self.epochs_before}; it must lie in 0..{2**31 - 1}")
        if not 0 <= self.distill_weight <= 1:
            raise UsageError(f"recipe distill_weight is {self.distill_weight}; it must lie in [0, 1]")
        for name in ("momentum", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"recipe {name} is {getattr(self, name)}; it must lie in [0, 1)")
        for name in ("weight_decay", "poly_power"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"recipe {name} is {getattr(self, name)}; it must be finite and not negative")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"recipe learning_rate is {self.learning_rate}; it must be positive and finite")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise UsageError(
                f"recipe warmup_epochs is {self.warmup_epochs}; it must lie in 0..{self.epochs}, the epochs; set one of them"
            )
        if self.augmentation.rotate90 and self.preprocessing.height != self.preprocessing.width:
            raise UsageError(
                f"a network input of {self.preprocessing.height} x {self.preprocessing.width} cannot be rotated by 90 degrees; "
                "set augmentation.rotate90=0 or a square size"
            )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values, for JSON.

        What recipes did not always have is left out at its default, where it changes nothing: so runs and results from before still
        compare equal.
        """
        values = asdict(self)
        later = {
            Recipe: (values, ("epochs_before", "distill_weight")),
            Augmentation: (values["augmentation"], ("mirror", "cutmix")),
        }
        for kind, (some, names) in later.items():
            for name in names:
                if some[name] == getattr(kind, name):
                    del some[name]
        return values


PAPER = Recipe(name="paper", preprocessing=preprocess.PAPER, precision="32-true")
DEFAULT = replace(PAPER, name="default", preprocessing=Preprocessing(), ema_decay=0.998, precision="auto")

STRONG = replace(
    DEFAULT,
    name="strong",
    optimizer="adamw",
    learning_rate=0.002,
    weight_decay=0.01,
    schedule="cosine",
    schedule_lag=False,
    warmup_epochs=2.0,
    augment_before_resize=False,
    augmentation=Augmentation(
        affine=0.5, rotation=20.0, scale=1.25, shift=0.06,
        intensity=0.5, brightness=0.1, contrast=1.2, gamma=1.3, noise=0.02,
    ),
    validate_every=5,
)  # fmt: skip
"""AdamW with warm-up and cosine, moderate changes of geometry and intensity, EMA: found on an inner split of a training list, see
results/levers, which also tells what did not help."""

ROBUST = replace(
    STRONG,
    name="robust",
    augmentation=replace(STRONG.augmentation, intensity=1.0, brightness=0.2, contrast=1.6, gamma=1.8, noise=0.04),
)
"""`STRONG` with large changes of intensity in every image: for images of scanners that are not in the training list, see results/levers."""

RECIPES: dict[str, Recipe] = {"paper": PAPER, "default": DEFAULT, "strong": STRONG, "robust": ROBUST}


def named(name_or_file: str | os.PathLike[str]) -> Recipe:
    """A recipe of `RECIPES`, or one saved as JSON (`recipe.json` of a run, or values that change some of `DEFAULT`'s).

    Raises
    ------
    UsageError : neither a name nor a file. InputError : the file is not a recipe.
    """
    if str(name_or_file) in RECIPES:
        return RECIPES[str(name_or_file)]
    path = Path(name_or_file)
    if not path.is_file():
        raise UsageError(f"there is no recipe {str(name_or_file)!r}; choose one of {', '.join(RECIPES)}, or a JSON file")
    try:
        content = read_json(path)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); a recipe is a JSON object such as a run's recipe.json") from error
    values = content.get("recipe", content) if isinstance(content, dict) else content
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a recipe; it must hold a JSON object such as a run's recipe.json")
    return from_dict(values)


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values; what they leave out is `DEFAULT`'s. Raises UsageError on unknown names or wrong types."""
    return _replaced(DEFAULT, values, "")


def with_settings(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """The recipe with `KEY=VALUE` settings applied, such as "epochs=5", "preprocessing.height=128" or "augmentation.flip=0".

    `size=128` sets height and width together. Values are read as JSON where they are, else as text.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"the setting {setting!r} has no '='; write KEY=VALUE, such as epochs=5")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        for name in ("preprocessing.height", "preprocessing.width") if key == "size" else (key.strip(),):
            *groups, last = name.split(".")
            target = values
            for group in groups:
                target = target.setdefault(group, {})
                if not isinstance(target, dict):
                    raise UsageError(f"the settings set {group} to {target!r} and {name} to {value!r}; leave out one of them")
            target[last] = value
    return _replaced(recipe, values, "") if values else recipe


def _replaced(record: Any, values: Mapping[str, Any], prefix: str) -> Any:
    known = {item.name: getattr(record, item.name) for item in fields(record)}
    changes = {}
    for key, value in values.items():
        if key not in known:
            also = "" if prefix else ", size (height and width)"
            raise UsageError(
                f"there is no setting {prefix + key!r}; known are {', '.join(prefix + name for name in known)}{also}"
            )
        changes[key] = _checked(known[key], value, prefix + key)
    try:
        return replace(record, **changes)
    except InputError as error:  # a preprocessing, which files have too
        raise UsageError(str(error)) from error


def _checked(old: Any, value: Any, name: str) -> Any:
    """`value` in the type of the value that it takes the place of."""
    if is_dataclass(old):
        if not isinstance(value, Mapping):
            raise UsageError(f"the setting {name} is {value!r}; set its parts, such as {name}.{fields(old)[0].name}=...")
        return _replaced(old, value, f"{name}.")
    if isinstance(old, tuple) and isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        return tuple(_float(item, name) for item in value)
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return _float(value, name)
    if type(value) is not type(old):
        raise UsageError(f"the setting {name} is {value!r}; it must be of the type of {old!r} ({type(old).__name__})")
    return value


def _float(value: int | float, name: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise UsageError(f"the setting {name} has a number of {len(str(value))} digits; give one that is finite") from error
