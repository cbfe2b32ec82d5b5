"""An .onnx file that was changed after it was written is refused in one sentence, whichever byte it was; so is .safetensors (test_weights)."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from cmunext.errors import InputError, UsageError
from cmunext.inference.segmenter import Segmenter
from cmunext.metadata import KEY
from cmunext.seal import NAME, SEAL, check_seal, sealed
from tests.tiny_network import dark_discs, describe, write_network


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = write_network(tmp_path / "sealed.onnx", properties={KEY: describe().to_json(), **SEAL})
    path.write_bytes(sealed(path.read_bytes(), path))
    return path


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Segmenter.load(path, backend="onnxruntime")
    assert not isinstance(caught.value, UsageError)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_whole_file_is_opened_and_sealing_again_changes_nothing(file: Path) -> None:
    content = file.read_bytes()
    assert SEAL[NAME].encode() not in content
    assert Segmenter.load(file, backend="onnxruntime")(dark_discs()).lesions
    assert sealed(content, file) == content


def test_any_changed_byte_is_noticed(file: Path) -> None:
    content = bytearray(file.read_bytes())
    for place in np.linspace(0, len(content) - 1, 60).astype(int):
        changed = content.copy()
        changed[place] ^= 1
        file.write_bytes(changed)
        refused(file, "changed after it was written|cannot be opened as an ONNX model|not describe itself|has the unknown entry")


def test_edited_metadata_is_noticed_even_where_it_makes_sense(file: Path) -> None:
    content = file.read_bytes()
    for old, new in (
        (b'"threshold": 0.5', b'"threshold": 0.9'),
        (b'["lesion"]', b'["benign"]'),
        (b"0.5, 0.5, 0.5", b"0.5, 0.4, 0.5"),
    ):
        assert content.count(old)
        file.write_bytes(content.replace(old, new))
        refused(file, "changed after it was written")
    model = onnx.load_model_from_string(content)
    model.metadata_props[0].value = model.metadata_props[0].value.replace("0.5", "0.25")
    onnx.save(model, file)
    refused(file, "changed after it was written")


def test_longer_and_shorter_files_are_noticed(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content + b"\x00")
    refused(file, "changed after it was written")
    for share in (0.1, 0.5, 0.9, 0.99):
        file.write_bytes(content[: int(share * len(content))])
        refused(file, "cannot be opened as an ONNX model|does not describe itself|not JSON|changed after")


def test_a_header_longer_than_any_file(tmp_path: Path) -> None:
    path = tmp_path / "long.onnx"
    path.write_bytes(b"\xff" * 8 + b'{"__metadata__":{')
    assert not check_seal(path)


def test_files_from_other_hands_have_no_checksum(tmp_path: Path) -> None:
    path = write_network(tmp_path / "bare.onnx")
    check_seal(path)
    with pytest.raises(InputError, match="no place for a checksum"):
        sealed(path.read_bytes(), path)
