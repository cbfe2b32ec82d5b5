"""Videos: every frame segmented as an image would be, a table of areas, and files that are whole or not there."""

import csv
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.tiny_network import dark_discs, write_network

from cmunext.cli.main import main
from cmunext.errors import InputError, UsageError
from cmunext.inference import video
from cmunext.inference.segmenter import Segmenter
from cmunext.inference.video import segment_video

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read once a process, and the tests open videos themselves
FRAMES, RATE = 9, 12.5


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("weights") / "tiny.onnx")


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A disc that grows from frame to frame, and is gone in the last."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (160, 120))
    for number in range(FRAMES):
        discs = ((70, 60, 12 + 3 * number),) if number < FRAMES - 1 else ()
        writer.write(cv2.cvtColor(dark_discs((120, 160), discs), cv2.COLOR_GRAY2BGR))
    writer.release()
    return path


def frames_of(path: str | Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    return frames


def rows_of(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_every_frame_is_segmented_as_an_image_is(clip: Path, network: Path, tmp_path: Path) -> None:
    segmenter = Segmenter.load(network)
    record = segment_video(segmenter, clip, tmp_path / "out", spacing=(0.2, 0.1), jobs=3)
    rows, frames = rows_of(record["areas"]), frames_of(clip)
    assert len(rows) == len(frames) == record["frames"] == FRAMES
    areas = []
    for number, (row, frame) in enumerate(zip(rows, frames, strict=True)):
        found = segmenter(frame, (0.2, 0.1))
        areas.append(int(found.mask.sum()))
        assert (int(row["frame"]), int(row["area"]), int(row["lesions"])) == (number, areas[-1], len(found.lesions))
        assert float(row["time_s"]) == pytest.approx(number / RATE, abs=1e-3)
        if found.lesions:
            assert float(row["area_mm2"]) == pytest.approx(areas[-1] * 0.02, abs=1e-3)
            assert int(row["largest_area"]) == found.lesions[0].area
            assert 0.5 < float(row["mean_probability"]) <= 1
    assert areas[:-1] == sorted(areas[:-1])
    assert areas[0] > 300
    assert (rows[-1]["lesions"], rows[-1]["area"], rows[-1]["area_mm2"], rows[-1]["mean_probability"]) == ("0", "0", "", "")
    assert record["frame"] == FRAMES - 2
    assert record["lesions"][0]["area"] == int(rows[FRAMES - 2]["largest_area"])
    assert record["frame_rate"] == RATE
    drawn = frames_of(record["overlay"])
    assert len(drawn) == FRAMES
    assert drawn[0].shape == (120, 160, 3)
    tinted = np.ptp(drawn[4].astype(int), axis=2) > 8
    assert tinted[60, 70]
    assert not tinted[:10].any()
    assert np.ptp(drawn[-1].astype(int), axis=2).max() < 8  # nothing is drawn where nothing is found


def test_the_command_takes_videos_and_images(clip: Path, network: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite("still.png", dark_discs())
    call = ["segment", "clip.avi", "still.png", "--weights", str(network), "--backend", "onnxruntime"]
    assert main([*call, "--json"]) == 0
    printed = capsys.readouterr()
    still, film = json.loads(printed.out)
    assert printed.err == ""
    assert (still["source"], film["source"]) == ("still.png", "clip.avi")
    assert film["overlay"] == "segmentation/clip_overlay.avi"
    assert film["lesions"]
    assert film["mask"] == []
    kept = json.loads(Path("segmentation/segmentation.json").read_text())
    paths = {"source", "mask", "overlay", "areas"}
    absolute = [{k: str(Path(v).resolve()) if k in paths and v else v for k, v in each.items()} for each in (still, film)]
    assert kept == absolute
    assert main([*call, "--frames", "3"]) == 0  # its own results are replaced
    assert len(rows_of("segmentation/clip_areas.csv")) == 3
    out = capsys.readouterr().out
    assert "clip.avi: 3 frames" in out
    assert "2 of 2 done by onnxruntime in float32" in out


def test_a_video_that_is_cut_off_is_told_of(clip: Path, network: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    call = ["segment", "clip.avi", "--weights", str(network), "--backend", "onnxruntime"]
    assert main(call) == 1
    read = len(rows_of("segmentation/clip_areas.csv"))
    assert 0 < read < FRAMES - 1
    assert f"error: clip.avi: {FRAMES - read} of its {FRAMES} frames cannot be read" in capsys.readouterr().err
    assert json.loads(Path("segmentation/segmentation.json").read_text())[0]["frames_missing"] == FRAMES - read
    assert main([*call, "--frames", "2"]) == 0  # all that was asked for


@pytest.mark.parametrize("rate", [1000 / 15, 1000 / 12, 700.7])
def test_rates_that_mpeg4_holds_rounded(network: Path, clip: Path, rate: float, tmp_path: Path) -> None:
    writer = cv2.VideoWriter("fast.mkv", cv2.VideoWriter.fourcc(*"MJPG"), rate, (160, 120))
    if not writer.isOpened():
        pytest.skip("this OpenCV has no writer for .mkv")
    for frame in frames_of(clip):
        writer.write(frame)
    writer.release()
    record = segment_video(Segmenter.load(network), Path("fast.mkv"), tmp_path / "out")
    assert record["frames"] == FRAMES
    assert record["frame_rate"] == pytest.approx(rate, rel=0.01)


def test_mp4(network: Path, clip: Path, tmp_path: Path) -> None:
    writer = cv2.VideoWriter("clip.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 10, (160, 120))
    if not writer.isOpened():
        pytest.skip("this OpenCV has no encoder for .mp4")
    for frame in frames_of(clip):
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    first = segment_video(Segmenter.load(network), clip, tmp_path / "out")
    second = segment_video(Segmenter.load(network), Path("clip.mp4"), tmp_path / "out")
    assert [Path(each["overlay"]).name for each in (first, second)] == ["clip_overlay.avi", "clip-2_overlay.mp4"]
    assert len(frames_of(second["overlay"])) == FRAMES


class Camera:
    """Frames without an end, as `cv2.VideoCapture` gives them; interrupts at the tenth."""

    def __init__(self, source: int):
        self.source, self.taken = source, 0

    def isOpened(self) -> bool:
        return self.source == 0

    def get(self, _: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, np.ndarray]:
        self.taken += 1
        if self.taken > 10:
            raise KeyboardInterrupt
        return True, cv2.cvtColor(dark_discs(), cv2.COLOR_GRAY2BGR)

    def release(self) -> None:
        pass


def test_a_camera_goes_on_until_it_is_interrupted(
    clip: Path, network: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of_file = cv2.VideoCapture
    monkeypatch.setattr(
        video.cv2, "VideoCapture", lambda source, *more: Camera(source) if isinstance(source, int) else of_file(source, *more)
    )
    call = ["segment", "--weights", str(network), "--backend", "onnxruntime", "--camera"]
    assert main([*call, "0", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["source"] == json.loads(Path("segmentation/segmentation.json").read_text())[0]["source"] == "camera-0"
    assert 1 <= record["frames"] <= 10
    assert len(rows_of(record["areas"])) == record["frames"]
    assert main([*call, "0", "--frames", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["frames"] == 4
    assert main([*call, "1"]) == 1
    assert "camera 1 cannot be opened" in capsys.readouterr().err


def test_an_interrupted_file_leaves_nothing(clip: Path, network: Path, tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_video(Segmenter.load(network), clip, tmp_path / "out", progress=interrupt)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_a_video_that_a_full_disk_cut_off_is_not_kept(clip: Path, network: Path, tmp_path: Path, full_disk, suffix: str) -> None:
    source = clip.rename(clip.with_suffix(suffix))
    with full_disk(4000), pytest.raises(OSError, match="frames could be written"):
        segment_video(Segmenter.load(network), source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_a_video_that_is_too_small(tmp_path: Path, network: Path, suffix: str) -> None:
    path = tmp_path / f"small{suffix}"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), RATE, (4, 4))
    for _ in range(3):
        writer.write(np.zeros((4, 4, 3), np.uint8))
    writer.release()
    with pytest.raises(InputError, match="4 x 4 pixels are too few"):
        segment_video(Segmenter.load(network), path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_video(clip: Path, network: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    segmenter = Segmenter.load(network)
    for name, content in (("text.mp4", b"no video\n" * 99), ("empty.avi", b""), ("cut.avi", clip.read_bytes()[:300])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name) as caught:
            segment_video(segmenter, tmp_path / name, tmp_path / "out")
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no such file"):
        segment_video(segmenter, tmp_path / "none.mp4", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert capfd.readouterr().err == ""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "clip_areas.csv").write_text("drawn by hand")
    with pytest.raises(UsageError, match="is not recorded"):
        segment_video(segmenter, clip, tmp_path / "out")
    assert (tmp_path / "out" / "clip_areas.csv").read_text() == "drawn by hand"


def test_one_bad_video_does_not_stop_the_others(clip: Path, network: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.avi").write_text("no video")
    assert main(["segment", "bad.avi", "clip.avi", "--weights", str(network), "--backend", "onnxruntime"]) == 1
    printed = capsys.readouterr()
    assert "error: bad.avi: " in printed.err
    assert "1 of 2 done" in printed.out
    assert main(["segment", "--weights", str(network)]) == 2
    assert "nothing to segment" in capsys.readouterr().err
