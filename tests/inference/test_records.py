"""`segmentation.json`: the text of a plain JSON list, in the order of the sources, whoever finishes first."""

import json
from pathlib import Path

from cmunext.inference.records import Records
from cmunext.storage import write_json


def record(name: str, **more: object) -> dict:
    return {
        "source": f"{name}.png",
        "mask": f"{name}_mask.png",
        "overlay": f"{name}_overlay.png",
        **more,
    }


def test_the_text_is_that_of_the_list_in_the_order_of_the_sources(tmp_path: Path) -> None:
    odd = {"a": 'line\nbreak, "quotes" and \u2028', "b": 0.1, "c": []}  # what could upset an indentation made by hand
    found = [record(name, lesions=[odd, {"box": (1, 2)}] * number) for number, name in enumerate(("а", "b", "c"))]
    sources = [Path(each["source"]) for each in found]
    records = Records.open(tmp_path, overwrite=False)
    for source, each in reversed(list(zip(sources, found, strict=True))):
        records.add(source, each)
    records.save([*sources, Path("not-done.png")])
    write_json(tmp_path / "expected.json", found)
    assert (tmp_path / "segmentation.json").read_bytes() == (tmp_path / "expected.json").read_bytes()


def test_earlier_records_stay_and_new_ones_of_their_sources_take_their_place(tmp_path: Path) -> None:
    first, second = (record(name, lesions=[]) for name in ("first", "second"))
    write_json(tmp_path / "segmentation.json", [first, second])
    records = Records.open(tmp_path, overwrite=False)
    again, third = {**first, "lesions": [{"area": 3}]}, record("third")
    records.add(Path("third.png"), third)
    records.save([Path("third.png"), Path("first.png")])
    assert json.loads((tmp_path / "segmentation.json").read_text()) == [first, second, third]
    records.add(Path("first.png"), again)
    records.save([Path("third.png"), Path("first.png")])
    assert json.loads((tmp_path / "segmentation.json").read_text()) == [again, second, third]


def test_nothing_done_writes_nothing(tmp_path: Path) -> None:
    Records.open(tmp_path / "out", overwrite=False).save([Path("image.png")])
    assert not (tmp_path / "out").exists()
