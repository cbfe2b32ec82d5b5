"""What a weights file says about itself: written, read back, and refused where it does not fit together."""

import json

import pytest

from cmunext.errors import InputError
from cmunext.image.preprocess import DEFAULT, PAPER, Preprocessing
from cmunext.metadata import KEY, Metadata

GOOD = Metadata(
    network="cmunext-s",
    arguments={"in_channels": 3, "num_classes": 2, "widths": [8, 16]},
    preprocessing=PAPER,
    classes=("lesion", "cyst"),
    training={"epochs": 3, "data": "Brüste", "scores": {"iou": 0.5}},
    licence="CC BY 4.0",
    intended_use="Research.",
)


def test_it_comes_back_as_it_was_written() -> None:
    assert Metadata.from_json(GOOD.to_json()) == GOOD
    assert Metadata.from_properties({"other": "x", KEY: GOOD.to_json()}) == GOOD


def test_the_document_has_the_agreed_form() -> None:
    document = json.loads(GOOD.to_json())
    assert document["format"] == 1
    assert document["network"] == "cmunext-s"
    assert document["arguments"] == {"in_channels": 3, "num_classes": 2, "widths": [8, 16]}
    assert document["preprocessing"] == json.loads(json.dumps(PAPER.to_dict()))
    assert document["classes"] == ["lesion", "cyst"]
    assert document["training"]["data"] == "Brüste"


def test_what_is_optional_may_be_missing() -> None:
    document = {
        name: value for name, value in json.loads(GOOD.to_json()).items() if name not in ("training", "licence", "intended_use")
    }
    assert Metadata.from_json(json.dumps(document)).training == {}


def _changed(**changes) -> str:
    return json.dumps({**json.loads(GOOD.to_json()), **changes})


def _without(name: str) -> str:
    document = json.loads(GOOD.to_json())
    del document[name]
    return json.dumps(document)


PREPROCESSING = json.loads(json.dumps(PAPER.to_dict()))
BAD = {
    "no JSON": ("{", "not JSON"),
    "nested without end": ("[" * 100_000, "not JSON"),
    "a list": ("[]", "must be an object"),
    "a later format": (_changed(format=2), "format is 2"),
    "no format": (_without("format"), "format is None"),
    "true for a format": (_changed(format=True), "format is True"),
    "unknown entry": (_changed(notes="x"), "unknown entry 'notes'"),
    **{f"no {name}": (_without(name), f"lacks '{name}'") for name in ("network", "arguments", "preprocessing", "classes")},
    "network is a number": (_changed(network=3), "network is 3"),
    "arguments is a list": (_changed(arguments=[1]), "arguments is"),
    "no channels": (_changed(arguments={"num_classes": 2}), "in_channels is None"),
    "zero classes": (_changed(arguments={"in_channels": 3, "num_classes": 0}), "num_classes is 0"),
    "true for channels": (_changed(arguments={"in_channels": True, "num_classes": 2}), "in_channels is True"),
    "a class too few": (_changed(classes=["lesion"]), "1 classes, but num_classes is 2"),
    "classes is text": (_changed(classes="ab"), "classes is 'ab'"),
    "nameless class": (_changed(classes=["lesion", ""]), "classes is"),
    "channels disagree": (_changed(arguments={"in_channels": 1, "num_classes": 2}), "in_channels 1, but preprocessing feeds 3"),
    "preprocessing is text": (_changed(preprocessing="x"), "preprocessing is 'x'"),
    "unknown preprocessing": (_changed(preprocessing={**PREPROCESSING, "gamma": 1}), "unknown entry 'gamma'"),
    "height is text": (_changed(preprocessing={**PREPROCESSING, "height": "256"}), "preprocessing"),
    "height is broken": (_changed(preprocessing={**PREPROCESSING, "height": 256.5}), "size is 256.5 x 256"),
    "height is gigantic": (_changed(preprocessing={**PREPROCESSING, "height": 10**9}), "size is 1000000000 x 256"),
    "mean is text": (_changed(preprocessing={**PREPROCESSING, "mean": ["a", 0, 0]}), "mean is .* finite numbers"),
    "mean is beyond all numbers": (
        _changed(preprocessing={**PREPROCESSING, "mean": [10**400, 0, 0]}),
        "preprocessing cannot be read",
    ),
    "mean is a number": (_changed(preprocessing={**PREPROCESSING, "mean": 1}), "preprocessing cannot be read"),
    "std is NaN": (_changed(preprocessing={**PREPROCESSING, "std": [float("nan")] * 3}), "finite"),
    "scale is infinite": (_changed(preprocessing={**PREPROCESSING, "final_scale": float("inf")}), "finite"),
    "licence is a list": (_changed(licence=[]), "licence is"),
    "training is text": (_changed(training="x"), "training is 'x'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_in_one_sentence(name: str) -> None:
    text, message = BAD[name]
    with pytest.raises(InputError, match=message) as caught:
        Metadata.from_json(text, "some.onnx")
    assert str(caught.value).startswith("some.onnx: ")
    assert len(str(caught.value)) < 300


def test_a_file_that_says_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"foreign\.onnx: it does not describe itself"):
        Metadata.from_properties({"author": "somebody"}, "foreign.onnx")


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_what_json_cannot_hold_is_not_written(value: object) -> None:
    broken = Metadata("cmunext", {"in_channels": 3, "num_classes": 1}, DEFAULT, ("lesion",), {"score": value})
    with pytest.raises(InputError, match="cannot be written as JSON"):
        broken.to_json()


def test_grey_networks() -> None:
    grey = Preprocessing(channels="grey", mean=(0.5,), std=(0.25,))
    metadata = Metadata("cmunext", {"in_channels": 1, "num_classes": 1}, grey, ("lesion",))
    assert Metadata.from_json(metadata.to_json()) == metadata
    assert (metadata.in_channels, metadata.num_classes) == (1, 1)
