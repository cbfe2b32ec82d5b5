"""`segmentation.json`: the text of a plain JSON list, in the order of the sources, whoever finishes first and whoever else writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cmunext import storage
from cmunext.errors import UsageError
from cmunext.inference.records import NOTES, RECORDS, recording
from cmunext.storage import alone_in, write_json


def files(name: str) -> dict:
    return {"mask": f"{name}_mask.png", "overlay": f"{name}_overlay.png"}


def record(name: str, **more: object) -> dict:
    return {"source": f"{name}.png", **files(name), **more}


def on_disk(folder: Path, *records: dict) -> list[dict]:
    """What is kept of records: outputs with the folder's absolute path."""
    return [{**each, **{key: str(folder.resolve() / Path(each[key]).name) for key in ("mask", "overlay")}} for each in records]


def run(folder: Path, *sources: str, overwrite: bool = False):
    return recording(folder, [Path(f"{source}.png") for source in sources], files, overwrite)


def kept(folder: Path) -> list[dict]:
    return json.loads((folder / RECORDS).read_text())


def test_the_text_is_that_of_the_list_in_the_order_of_the_sources(tmp_path: Path) -> None:
    odd = {"a": 'line\nbreak, "quotes" and \u2028', "b": 0.1, "c": []}  # what could upset an indentation made by hand
    found = [record(name, lesions=[odd, {"box": (1, 2)}] * number) for number, name in enumerate(("а", "b", "c"))]
    with run(tmp_path, "а", "b", "c", "not done") as records:
        for each in reversed(found):
            records.add(Path(each["source"]), each)
    write_json(tmp_path / "expected.json", on_disk(tmp_path, *found))
    assert (tmp_path / RECORDS).read_bytes() == (tmp_path / "expected.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected.json", RECORDS]


def test_earlier_records_stay_and_new_ones_of_their_sources_take_their_place(tmp_path: Path) -> None:
    first, second, third = (record(name, lesions=[]) for name in ("first", "second", "third"))
    write_json(tmp_path / RECORDS, [first, second])
    again = {**first, "lesions": [{"area": 3}]}
    with run(tmp_path, "third", "first") as records:
        records.add(Path("third.png"), third)
        records.save()
        assert kept(tmp_path) == on_disk(tmp_path, first, second, third)
        records.add(Path("first.png"), again)
    assert kept(tmp_path) == on_disk(tmp_path, again, second, third)


def test_files_of_a_record_that_is_replaced_go_with_it(tmp_path: Path) -> None:
    before = {**record("first", lesions=[]), "mask": ["first_mask_a.png", "first_mask_b.png"]}
    write_json(tmp_path / RECORDS, [before, record("second", lesions=[])])
    written = ("first_mask_a.png", "first_mask_b.png", "first_mask.png", "second_mask.png", "first_overlay.png")
    for name in written:
        (tmp_path / name).touch()
    with run(tmp_path, "first", overwrite=True) as records:
        records.add(Path("first.png"), record("first", lesions=[]))
    assert {path.name for path in tmp_path.iterdir()} == {RECORDS, *written[2:]}


def test_two_links_to_a_file_are_two_sources(tmp_path: Path) -> None:
    (tmp_path / "scan.png").touch()
    (tmp_path / "link.png").symlink_to(tmp_path / "scan.png")
    with recording(tmp_path / "out", [tmp_path / "scan.png", tmp_path / "link.png"], files, False) as records:
        assert [each["mask"] for each in records.files.values()] == ["scan_mask.png", "link_mask.png"]


def test_an_output_never_overwrites_what_an_input_leads_to(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scan_mask.png").touch()
    (tmp_path / "scan.png").symlink_to(tmp_path / "out" / "scan_mask.png")
    with (
        pytest.raises(UsageError, match="would overwrite an input"),
        recording(tmp_path / "out", [tmp_path / "scan.png"], files, True),
    ):
        pass


def test_runs_side_by_side_keep_each_others_records_and_names(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_json(tmp_path / folder / "scan.png", {})
    a, b, out = tmp_path / "a" / "scan.png", tmp_path / "b" / "scan.png", tmp_path / "out"
    with recording(out, [a], files, False) as one, recording(out, [b], files, False) as two:
        for records, source in ((one, a), (two, b), (one, a)):
            records.add(source, record("scan", lesions=[]))
            records.save()
    assert [each["source"] for each in kept(out)] == [str(b.resolve()), str(a.resolve())]  # a's was not there when its run began
    assert [Path(each["mask"]).name for each in kept(out)] == ["scan-2_mask.png", "scan_mask.png"]
    assert [path.name for path in out.iterdir()] == [RECORDS]


def test_processes_that_save_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows locks no folders")
    program = (
        "import sys; from pathlib import Path; from cmunext.inference.records import recording\n"
        "for number in range(20):\n"
        "    name = Path(f'{sys.argv[1]}-{number}.png')\n"
        "    with recording('out', [name], lambda name: {'mask': name, 'overlay': name}, False) as records:\n"
        "        records.add(name, {})\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, each], cwd=tmp_path) for each in "xyz"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert sorted(each["source"] for each in kept(tmp_path / "out")) == sorted(f"{x}-{n}.png" for x in "xyz" for n in range(20))


def test_what_a_killed_run_wrote_may_be_replaced_and_its_names_are_taken(tmp_path: Path) -> None:
    killed = (
        "import os, sys; from pathlib import Path; from cmunext.inference.records import recording\n"
        "files = lambda name: {'mask': f'{name}_mask.png', 'overlay': f'{name}_overlay.png'}\n"
        "with recording('out', [Path('scan.png'), Path('b/scan.png')], files, False):\n"
        "    Path('out/scan_mask.png').write_text('of the killed run')\n"
        "    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", killed], cwd=tmp_path, check=False).returncode == 9
    out = tmp_path / "out"
    with run(out, "scan") as records:
        assert records.files[Path("scan.png")]["mask"] == "scan_mask.png"
        records.add(Path("scan.png"), record("scan"))
    with run(out, "c/scan") as records:
        assert records.files[Path("c/scan.png")]["mask"] == "scan-3_mask.png"
    with run(out, "b/scan") as records:
        assert records.files[Path("b/scan.png")]["mask"] == "scan-2_mask.png"
    assert sorted(path.name for path in out.iterdir()) == ["scan_mask.png", RECORDS]
    (out / "other_mask.png").write_text("drawn by hand")
    with pytest.raises(UsageError, match=r"other_mask\.png: this file exists and is not recorded"), run(out, "other"):
        pass


def test_damaged_notes_are_as_good_as_none(tmp_path: Path) -> None:
    for content in ("", "{", "[1]", '{"a": 1}', '[{"source": "x"}]'):
        (tmp_path / NOTES).write_text(content)
        with run(tmp_path, "scan") as records:
            assert records.files[Path("scan.png")] == record("scan")
        assert list(tmp_path.iterdir()) == []


def test_a_source_named_twice_has_one_name(tmp_path: Path) -> None:
    write_json(tmp_path / "scan.png", {})
    with recording(
        tmp_path / "out", [tmp_path / "scan.png", tmp_path / ".." / tmp_path.name / "scan.png"], files, False
    ) as records:
        assert [each["mask"] for each in records.files.values()] == ["scan_mask.png"] * 2


def test_the_disk_holds_the_outputs_before_they_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled = []

    def settle(folder: Path) -> None:
        settled.append((folder, (tmp_path / RECORDS).exists()))
        storage.settle(folder)

    monkeypatch.setattr("cmunext.inference.records.settle", settle)
    with run(tmp_path, "first") as records:
        records.add(Path("first.png"), record("first"))
    assert settled == [(tmp_path.resolve(), False)]
    assert (tmp_path / RECORDS).exists()


def test_nothing_done_writes_nothing(tmp_path: Path) -> None:
    with run(tmp_path / "out", "image"):
        pass
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    with run(tmp_path / "mine", "image"):
        pass
    assert list((tmp_path / "mine").iterdir()) == []  # a folder that was there stays


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows locks no folders")
    program = "import os; from cmunext.storage import alone_in\nwith alone_in('.'):\n    os._exit(9)"
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False).returncode == 9
    with alone_in(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_sources_of_earlier_versions_become_absolute_and_those_of_others_stay(tmp_path: Path, monkeypatch) -> None:
    """An earlier version wrote paths as they were typed; and a source may lie where this user may not look."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "scan.png").touch()
    monkeypatch.chdir(tmp_path / "a")
    private = "/home/somebody/private.png"
    write_json(tmp_path / "out" / RECORDS, [record("scan"), {**record("private"), "source": private}])
    exists = Path.exists

    def denied(path: Path, **options: bool) -> bool:
        if str(path) == private or path.name == "denied.png":
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path, **options)

    monkeypatch.setattr(Path, "exists", denied)
    with run(tmp_path / "out", "denied") as records:
        records.add(Path("denied.png"), record("denied"))
    assert [each["source"] for each in kept(tmp_path / "out")] == [
        str((tmp_path / "a/scan.png").resolve()),
        private,
        "denied.png",
    ]
