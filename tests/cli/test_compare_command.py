"""`cmunext compare` as one calls it."""

import json

import pytest

from cmunext.cli.main import main


@pytest.fixture
def scores(tmp_path):
    files = []
    for name, gain in (("first", 0.0), ("second", 0.05)):
        rows = "".join(f"case {n},{0.5 + n / 100 + gain * (n % 5):.3f},{n}\n" for n in range(30))
        (tmp_path / f"{name}.csv").write_text("case,iou,hd95\n" + rows)
        files.append(str(tmp_path / f"{name}.csv"))
    return files


def test_sentence_and_table(scores, capsys):
    assert main(["compare", *scores]) == 0
    printed = capsys.readouterr()
    assert "second is better than first" in printed.out
    assert "0/6/24" in printed.out
    assert printed.err == ""


def test_json_is_one_document(scores, capsys):
    assert main(["compare", *scores, "--metric", "hd95", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["metric"], document["cases"], document["lower_is_better"]) == ("hd95", 30, True)
    assert document["pairs"][0]["ties"] == 30
    assert "no difference" in document["pairs"][0]["sentence"]


def test_groups(scores, tmp_path, capsys):
    (tmp_path / "groups.csv").write_text("case,group\n" + "".join(f"case {n},g{n // 3}\n" for n in range(30)))
    assert main(["compare", *scores, "--group", str(tmp_path / "groups.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["drawn"] == 10


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (["nowhere.csv"], 2, "nowhere.csv"),
        (["--metric", "beauty"], 1, "'beauty'"),
        (["--group", "nowhere.csv"], 2, "nowhere.csv"),
    ],
)
def test_wrong_calls_are_one_sentence(scores, capsys, change, code, words):
    assert main(["compare", *scores, *change]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and len(printed.err.splitlines()) == 1
    assert words in printed.err
