"""What a weights file says about itself: one JSON document, the same in `.safetensors` and `.onnx`, read without torch.

It stands under the key `cmunext` of the safetensors header's `__metadata__`, or of the ONNX model's `metadata_props`. Whoever has
the file needs nothing else to use it, so whatever does not fit together is refused here, before a network meets it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunext.errors import InputError
from cmunext.image.files import plain
from cmunext.image.preprocess import Preprocessing

KEY = "cmunext"  # where the document stands among a file's metadata
FORMAT = 1  # goes up when an older program could misread a newer document
REQUIRED = ("network", "arguments", "preprocessing", "classes")
OPTIONAL = ("training", "licence", "intended_use", "export")
BACKGROUND = "background"  # a class of this name is segmented, but is no lesion
LEARNT_FROM = "learnt_from"  # entry of `training`: `image_digest` of every image that the weights learnt from, by whatever way


def image_digest(image: NDArray[np.uint8]) -> str:
    """16 hexadecimal digits (of SHA-256) of an image's pixels at native size, as `image.files.read_image` gives them.

    Grey in a colour file is the same image as in a grey one. Images are known by it and not by their names: those repeat between
    datasets, and may say who a patient is.
    """
    return hashlib.sha256(plain(image).tobytes()).hexdigest()[:16]


def unnamed_classes(number: int) -> tuple[str, ...]:
    """Names for so many classes of which nobody gave any: "lesion" for one, else "class 0", "class 1", ..."""
    return ("lesion",) if number == 1 else tuple(f"class {k}" for k in range(number))


def measured_classes(classes: Sequence[str]) -> list[int]:
    """Which of the classes are measured: all but a background beside others."""
    return [k for k, name in enumerate(classes) if name != BACKGROUND] or list(range(len(classes)))


@dataclass(frozen=True)
class Metadata:
    """The description of one weights file.

    Attributes
    ----------
    network : name in the registry of networks.
    arguments : what the network was built with; always `in_channels` and `num_classes`.
    preprocessing : image -> input and logits -> mask.
    classes : a name for each channel of the logits.
    training : where the weights come from (data, split, recipe, epochs, seed, scores, ...), plain JSON values.
    licence, intended_use : sentences for whoever wants to use the weights; may be empty.
    export : of an exported file, how it was made and how far it is from PyTorch (see `export.parity`), plain JSON values.

    Raises InputError when the parts contradict each other.
    """

    network: str
    arguments: Mapping[str, Any]
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    training: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    intended_use: str = ""
    export: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _expect(isinstance(self.network, str) and self.network, "network", self.network, "a name")
        for name in ("arguments", "training", "export"):
            value = getattr(self, name)
            _expect(isinstance(value, Mapping), name, value, "an object")
            object.__setattr__(self, name, dict(value))
        for name in ("in_channels", "num_classes"):
            value = self.arguments.get(name)
            _expect(type(value) is int and value >= 1, f"arguments.{name}", value, "a whole number of at least 1")
        is_list = isinstance(self.classes, (list, tuple))
        _expect(
            is_list and all(isinstance(name, str) and name for name in self.classes), "classes", self.classes, "a list of names"
        )
        object.__setattr__(self, "classes", tuple(self.classes))
        for name in ("licence", "intended_use"):
            _expect(isinstance(getattr(self, name), str), name, getattr(self, name), "text")
        if len(self.classes) != self.num_classes:
            raise InputError(
                f"metadata names {len(self.classes)} classes, but num_classes is {self.num_classes}; give one name for each"
            )
        if self.preprocessing.in_channels != self.in_channels:
            raise InputError(
                f"metadata says in_channels {self.in_channels}, but preprocessing feeds {self.preprocessing.in_channels} "
                f"({self.preprocessing.channels}); the two must agree"
            )

    @property
    def in_channels(self) -> int:
        """Channels of the network's input."""
        return self.arguments["in_channels"]

    @property
    def num_classes(self) -> int:
        """Channels of the network's logits."""
        return self.arguments["num_classes"]

    @property
    def learnt_from(self) -> frozenset[str] | None:
        """`image_digest` of all images that the weights learnt from; None when the document does not say."""
        said = self.training.get(LEARNT_FROM)
        return frozenset(said) if isinstance(said, list) else None

    def to_json(self) -> str:
        """The document. Raises InputError when `arguments` or `training` hold what JSON has no word for, NaN included."""
        document = {
            "format": FORMAT,
            "network": self.network,
            "arguments": self.arguments,
            "preprocessing": self.preprocessing.to_dict(),
            "classes": self.classes,
            "training": self.training,
            "licence": self.licence,
            "intended_use": self.intended_use,
            **({"export": self.export} if self.export else {}),
        }
        try:
            return json.dumps(document, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"metadata cannot be written as JSON: {error}; use finite numbers, text, lists, objects and null"
            ) from error

    @classmethod
    def from_json(cls, text: str, source: str = "the weights file") -> "Metadata":
        """The record from `to_json`'s text. Raises InputError when anything is missing or contradictory."""
        try:
            document = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{source}: its metadata is not JSON ({error}); write the file again with this program") from error
        try:
            return cls._from_document(document)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error

    @classmethod
    def from_properties(cls, properties: Mapping[str, str], source: str = "the weights file") -> "Metadata":
        """The record from all of a file's metadata (key -> text). Raises InputError when ours is not there."""
        if KEY not in properties:
            raise InputError(
                f"{source}: it does not describe itself (no {KEY!r} entry in its metadata); "
                "give weights that this program wrote, or make such a file from a checkpoint"
            )
        return cls.from_json(properties[KEY], source)

    @classmethod
    def _from_document(cls, document: Any) -> "Metadata":
        _expect(isinstance(document, dict), "the document", document, "an object")
        if document.get("format") != FORMAT or isinstance(document["format"], bool):
            raise InputError(
                f"metadata format is {document.get('format')!r}, and this program reads {FORMAT}; use a matching version"
            )
        if missing := [name for name in REQUIRED if name not in document]:
            raise InputError(f"metadata lacks {missing[0]!r}; write the file again with this program")
        if unknown := set(document) - {"format", *REQUIRED, *OPTIONAL}:
            raise InputError(f"metadata has the unknown entry {sorted(unknown)[0]!r}; write the file again with this program")
        values = {name: value for name, value in document.items() if name != "format"}
        return cls(**{**values, "preprocessing": _preprocessing(document["preprocessing"])})


def _preprocessing(values: Any) -> Preprocessing:
    _expect(isinstance(values, dict), "preprocessing", values, "an object")
    return Preprocessing.from_dict(values)


def _expect(good: object, name: str, value: object, what: str) -> None:
    if not good:
        shown = repr(value)
        raise InputError(f"metadata: {name} is {shown if len(shown) <= 60 else shown[:57] + '...'}; it must be {what}")
