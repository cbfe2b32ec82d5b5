"""tools/bundle.py: no card for weights whose score would be of images that they learnt from."""

import pytest
import torch
from tools import bundle

from cmunext import networks, weights
from cmunext.data.dataset import load_cases
from cmunext.data.layout import Layout
from cmunext.errors import UsageError
from cmunext.image.preprocess import Preprocessing
from cmunext.metadata import LEARNT_FROM, Metadata
from tests.datasets import write_dataset


def test_only_what_was_not_learnt_from_is_scored(tmp_path, monkeypatch):
    monkeypatch.setenv("CMUNEXT_CACHE", str(tmp_path / "cache"))
    write_dataset(tmp_path / "data")
    layout = Layout.open(tmp_path / "data")
    train, validation = layout.read_list("train.txt"), layout.read_list("val.txt")
    learnt = list(load_cases(layout, train, Preprocessing()).image_digests)
    torch.manual_seed(0)
    network, path = networks.create("cmunext-s"), tmp_path / "w.safetensors"
    for training, cases, says in (
        ({LEARNT_FROM: learnt}, validation, None),
        ({LEARNT_FROM: learnt}, layout.cases, "learnt from 8 of the 12 images"),
        ({}, validation, "does not say what it learnt from"),
    ):
        about = Metadata("cmunext-s", {"in_channels": 3, "num_classes": 1}, Preprocessing(), ("lesion",), training)
        weights.save(path, network, about)
        if says is None:
            bundle._require_unseen(path, layout, cases)
        else:
            with pytest.raises(UsageError, match=says):
                bundle._require_unseen(path, layout, cases)
