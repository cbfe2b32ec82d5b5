"""Near duplicates: known transformations of simulated images are found and laid on each other, other images are not."""

import tracemalloc
from functools import cache

import cv2
import numpy as np
import pytest
from tests.data.copies import compress, crop, flip, gain, mark, resize
from tests.data.folders import dataset, write, write_list

from cmunext.data.align import align
from cmunext.data.audit import audit, write_findings
from cmunext.data.duplicates import Pair, clusters, digest, duplicates, find, with_agreement
from cmunext.data.fingerprint import HORIZONTAL, MIRRORS, PLAIN, VERTICAL, Fingerprint, fingerprint, propose
from cmunext.data.layout import Layout, read_list
from cmunext.data.leaks import find_leaks
from cmunext.data.pictures import write_pictures
from cmunext.data.split import split
from cmunext.errors import UsageError
from cmunext.image.files import plain
from cmunext.phantom import simulate

SEEDS = range(8)


@cache
def phantom(seed):
    image, truth = simulate(seed, 300, 360)
    return image, truth


@cache
def print_of(seed):
    return fingerprint(phantom(seed)[0])


def matrix(across=1.0, down=1.0, left=0, top=0):
    """Of an image cropped by left and top, then scaled: pixels count from their middles."""
    return np.array([[across, 0, across * (0.5 - left) - 0.5], [0, down, down * (0.5 - top) - 0.5]])


# name -> transformation, mirroring to be found, and where (x, y, 1) of the (mirrored) original goes
TRANSFORMATIONS = {
    "crop": (lambda image: crop(image, 30, 280, 70, 350), PLAIN, matrix(left=70, top=30)),
    "small crop": (lambda image: crop(image, 60, 240, 40, 256), PLAIN, matrix(left=40, top=60)),
    "half the size": (lambda image: resize(image, 180, 150), PLAIN, matrix(0.5, 0.5)),
    "twice the size": (lambda image: resize(image, 720, 600), PLAIN, matrix(2, 2)),
    "made square": (lambda image: resize(image, 256, 256), PLAIN, matrix(256 / 360, 256 / 300)),
    "mirrored": (flip, HORIZONTAL, matrix()),
    "upside down": (lambda image: np.ascontiguousarray(image[::-1]), VERTICAL, matrix()),
    "brighter": (lambda image: gain(image, 0.6, 1.2, 10), PLAIN, matrix()),
    "darker": (lambda image: gain(image, 1.6, 0.8, -5), PLAIN, matrix()),
    "compressed": (lambda image: compress(image, 15), PLAIN, matrix()),
    "marked": (mark, PLAIN, matrix()),
    "colour file": (lambda image: np.dstack([mark(image)] * 3), PLAIN, matrix()),
    "all of it": (
        lambda image: compress(mark(gain(resize(crop(image[:, ::-1], 20, 290, 40, 340), 240, 216), 0.8, 1.1, 5)), 40),
        HORIZONTAL,
        matrix(0.8, 0.8, left=40, top=20),
    ),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_transformed_image_is_found_and_laid_on_its_original(name):
    transform, mirror, truth = TRANSFORMATIONS[name]
    seed = 3
    prints = {str(number): print_of(number) for number in SEEDS} | {"copy": fingerprint(transform(phantom(seed)[0]))}
    (pair,) = find({case: case.encode() for case in prints}, prints)
    assert (pair.first, pair.second, pair.equal, pair.mirror) == (str(seed), "copy", False, mirror)
    assert pair.correlation > 0.93
    assert pair.overlap > 0.95
    assert pair.scale == pytest.approx(np.sqrt(truth[0, 0] * truth[1, 1]), rel=0.01)
    corners = np.array([[60, 60, 1], [300, 60, 1], [60, 240, 1], [300, 240, 1]]).T
    misses = np.hypot(*((pair.matrix - truth) @ corners))
    assert misses.max() < 1.5 * max(1, truth[0, 0])


def test_two_crops_of_one_frame_that_share_six_tenths():
    image = phantom(5)[0]
    prints = {"left": fingerprint(crop(image, 0, 300, 0, 270)), "right": fingerprint(crop(image, 20, 300, 90, 360))}
    (pair,) = find({case: case.encode() for case in prints}, prints)
    assert pair.overlap == pytest.approx(180 / 270, abs=0.03)
    assert pair.matrix == pytest.approx(np.array([[1, 0, -90], [0, 1, -20]]), abs=0.6)


def screen(image, busy):
    """The image as a part of a scanner's screen; a busy one has a menu too."""
    canvas = np.zeros((420, 520), np.uint8)
    canvas[60:360, 100:460] = image
    random = np.random.default_rng(1)
    for row in range(20, 420, 25):
        cv2.putText(canvas, f"{random.integers(10**4)} FR {row}", (4, row), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 220, 1)
        cv2.line(canvas, (470, row), (480 + row % 10, row), 255, 1)
    canvas[60:360, 495:510] = np.linspace(255, 0, 300)[:, None]
    cv2.rectangle(canvas, (98, 58), (461, 361), 160, 1)
    cv2.putText(canvas, "SCANNER  L12-5  BREAST", (120, 40), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, 2)
    cv2.putText(canvas, "RT UOQ", (130, 340), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, 2)
    if busy:  # a menu over a third of the tissue
        canvas[60:360, 100:220] = 0
        for row in range(70, 360, 14):
            cv2.putText(canvas, "GAIN 62 DR 60", (104, row), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 230, 1)
    return canvas


def test_different_images_are_not_found():
    prints = {str(seed): print_of(seed) for seed in SEEDS}
    assert find({case: case.encode() for case in prints}, prints) == ()


@pytest.mark.parametrize("busy", [False, True])
def test_what_the_scanner_writes_around_the_tissue_does_not_make_images_alike(busy):
    shown = [fingerprint(screen(phantom(seed)[0], busy)) for seed in (0, 1)]
    assert propose(shown)  # it does propose them
    assert align(*shown) is None
    assert align(shown[0], fingerprint(compress(gain(screen(phantom(0)[0], busy), 0.8, 1.1, 0), 50))) is not None


@pytest.mark.parametrize("mirror", MIRRORS)
def test_the_fingerprint_of_a_mirrored_image_needs_no_second_look(mirror):
    image = phantom(0)[0]
    image = resize(image, 256, 213)  # the thumbnail's own size: mirroring and resizing then commute
    direct = fingerprint(np.ascontiguousarray(np.flip(image, {PLAIN: (), HORIZONTAL: 1, VERTICAL: 0}[mirror])))
    permuted = fingerprint(image).mirrored(mirror)
    assert (permuted.thumbnail == direct.thumbnail).all()
    assert permuted.whole == pytest.approx(direct.whole, abs=1e-5)
    # The detector works on tiles that mirroring moves, so not every feature is the same; those at one place must be.
    same = 0
    for point, descriptor in zip(permuted.points, permuted.descriptors, strict=True):
        away = np.abs(direct.points - point).max(1)
        if away.min() < 1:
            other = direct.descriptors[away.argmin()].astype(float)
            same += np.corrcoef(descriptor, other)[0, 1] > 0.95
    assert same > 0.5 * len(permuted.points)


def random_print(seed):
    """A fingerprint in which a fifth of the features, and the whole, are those of every other."""
    random, common = np.random.default_rng(seed), np.random.default_rng(10**6)
    descriptors = np.concatenate([common.integers(0, 100, (20, 128)), random.integers(0, 100, (80, 128))])
    points = np.column_stack([random.uniform(0, 250, (100, 2)), random.uniform(3, 12, 100)])
    whole = np.zeros((9, 9), np.float32)
    whole[1, 1] = 1
    blank = np.zeros((1, 1), np.uint8)
    return Fingerprint((1, 1), blank, points.astype(np.float32), descriptors.astype(np.uint8), whole)


def test_candidates_and_memory_grow_with_the_number_of_images_not_with_its_square():
    prints = [random_print(seed) for seed in range(140)]
    sizes, peaks = [], []
    for number in (70, 140):
        tracemalloc.start()
        sizes.append(len(propose(prints[:number])))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert number <= sizes[-1] <= 54 * number
    assert sizes[1] < 2.5 * sizes[0]
    assert peaks[1] < 2.5 * peaks[0]


def test_more_copies_of_a_frame_than_a_bucket_holds_are_one_cluster(monkeypatch):
    monkeypatch.setattr("cmunext.data.fingerprint.CROWD", 5)
    image = phantom(2)[0]
    prints = {f"{number:02}": fingerprint(crop(image, number % 4, 300, number // 2, 360 - number % 3)) for number in range(9)}
    assert clusters(find({case: case.encode() for case in prints}, prints)) == (tuple(prints),)


def test_equal_images_are_paired_with_the_first_and_need_no_fingerprint():
    digests = {"d": b"1", "a": b"1", "c": b"1", "b": b"2"}
    pairs = find(digests, {})
    assert [(pair.first, pair.second, pair.equal) for pair in pairs] == [("a", "c", True), ("a", "d", True)]
    assert clusters(pairs) == (("a", "c", "d"),)


def test_images_without_any_structure_are_alike_only_when_equal():
    blank = [np.full((60, 80), level, np.uint8) for level in (0, 0, 7)]
    digests = {str(number): digest(image) for number, image in enumerate(blank)}
    prints = {str(number): fingerprint(image) for number, image in enumerate(blank)}
    assert [(pair.first, pair.second) for pair in find(digests, prints)] == [("0", "1")]
    assert find({"a": b"1"}, {"a": prints["0"]}) == find({}, {}) == ()


def test_clusters_are_what_pairs_link():
    pairs = [Pair(*names, equal=False) for names in (("a", "b"), ("d", "e"), ("c", "e"), ("f", "g"), ("b", "g"))]
    assert clusters(pairs) == (("a", "b", "f", "g"), ("c", "d", "e"))


def test_grey_in_a_colour_file_is_plain():
    grey = phantom(0)[0]
    assert plain(np.dstack([grey] * 3)).shape == grey.shape
    coloured = np.dstack([grey] * 3)
    coloured[0, 0, 0] ^= 1
    assert plain(coloured).ndim == 3


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five phantoms and near duplicates of two of them: of the first with another annotation, of the second under another class."""
    root = dataset(tmp_path_factory.mktemp("set"), [])
    for name, seed in zip("12345", SEEDS, strict=False):
        image, truth = phantom(seed)
        write(root / "images" / f"benign ({name}).png", image)
        write(root / "masks" / "0" / f"benign ({name}).png", truth.astype(np.uint8) * 255)
    image, truth = phantom(0)
    write(root / "images" / "benign (6).png", gain(crop(image[:, ::-1], 10, 300, 20, 360), 0.8, 1, 0))
    drawn = np.zeros(truth.shape, np.uint8)
    rows, columns = np.nonzero(truth)
    drawn[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 255  # the lesion's box
    write(root / "masks" / "0" / "benign (6).png", crop(drawn[:, ::-1], 10, 300, 20, 360))
    image, truth = phantom(1)
    write(root / "images" / "malignant (1).png", resize(image, 300, 250))
    smaller = cv2.resize(truth.astype(np.uint8), (300, 250), interpolation=cv2.INTER_NEAREST)
    write(root / "masks" / "0" / "malignant (1).png", smaller * 255)
    write_list(root / "train.txt", ["benign (1)", "benign (2)", "benign (3)"])
    write_list(root / "val.txt", ["malignant (1)", "benign (4)", "benign (6)", "benign (5)"])
    return root


PAIRS = (("benign (1)", "benign (6)"), ("benign (2)", "malignant (1)"))


def test_audit_finds_clusters_leaks_classes_and_agreement(root):
    calls = []

    def watch(cases):
        calls.append(len(cases))
        return cases

    found = audit(root, ["train.txt", "val.txt"], progress=watch)
    assert found.search == "near"
    assert found.clusters == PAIRS
    assert found.cross_class == PAIRS[1:]
    assert found.leaks == {"train.txt": (), "val.txt": ("benign (6)", "malignant (1)")}
    assert found.clean == {"val.txt": ("benign (4)", "benign (5)")}
    assert [problem.kind for problem in found.problems] == ["leak", "leak"]
    assert found.problems[0].message == (
        "'benign (6)' of val.txt shows the same frame as 'benign (1)' of train.txt; keep both in one list"
    )
    truth = phantom(0)[1]
    rows, columns = np.nonzero(truth)
    box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    agreements = [pair.agreement for pair in found.pairs]
    assert agreements[0] == pytest.approx(truth.sum() / box, abs=0.02)
    assert agreements[1] > 0.96
    assert found.annotated_twice == {
        "pairs": 2,
        "mean": pytest.approx(np.mean(agreements)),
        "median": pytest.approx(np.median(agreements)),
    }
    assert calls[0] == calls[1] == 7
    assert len(calls) == 4


def test_exact_and_no_search_find_no_near_duplicates(root):
    for search in ("exact", "none"):
        found = audit(root, ["train.txt", "val.txt"], search=search)
        assert (found.search, found.clusters, found.leaks["val.txt"], found.problems) == (search, (), (), ())
        assert len(found.clean["val.txt"]) == 4
        assert duplicates(Layout.open(root), ["benign (1)", "benign (6)"], search) == ()
    with pytest.raises(UsageError, match="must be one of near, exact, none"):
        audit(root, search="all")
    with pytest.raises(UsageError, match="must lie between"):
        audit(root, similarity=1.5)
    with pytest.raises(UsageError, match="must lie between"):
        duplicates(Layout.open(root), [], similarity=float("nan"))


def test_findings_are_written_and_split_keeps_groups_together(root, tmp_path):
    found = audit(root, ["train.txt", "val.txt"])
    written = write_findings(root, found, tmp_path / "findings")
    assert [path.name for path in written] == ["groups.csv", "val_clean.txt"]
    layout = Layout.open(root)
    assert tuple(read_list(written[1], layout.cases)) == found.clean["val.txt"]
    for group in ("duplicates", str(written[0])):
        for seed in range(4):
            out = tmp_path / f"{seed}"
            report = split(root, val=0.4, seed=seed, group=group, out=out, name="x", overwrite=True)
            assert report.groups == 5
            held_out = set(read_list(out / "x_val.txt", layout.cases))
            assert all(len(held_out & set(pair)) in (0, 2) for pair in PAIRS)


def test_two_lists_that_would_be_written_to_one_file(root, tmp_path):
    write_list(tmp_path / "val.txt", ["benign (3)"])
    found = audit(root, [root / "train.txt", root / "val.txt", tmp_path / "val.txt"], search="none")
    with pytest.raises(UsageError, match=r"val_clean\.txt"):
        write_findings(root, found, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_of_the_pairs(root, tmp_path):
    layout = Layout.open(root)
    found = audit(root)
    (layout.root / "masks" / "0" / "stray.txt").touch()  # of no concern
    page = write_pictures(tmp_path / "page", layout, found.pairs, {"benign (1)": "<b>"})
    text = page.read_text("utf-8")
    assert sorted(path.name for path in page.parent.iterdir()) == ["0001.jpg", "0002.jpg", "index.html"]
    assert text.count("<figure>") == 2
    assert "&lt;b&gt;" in text
    pair = min(found.pairs, key=lambda pair: pair.correlation)
    shown = cv2.imread(str(page.parent / "0001.jpg"))
    second = cv2.imread(str(layout.image(pair.second)))
    assert shown.shape[0] == 320
    assert shown.shape[1] == pytest.approx(3 * 320 * second.shape[1] / second.shape[0], abs=3)
    blend = shown[:, 2 * shown.shape[1] // 3 :].astype(float)
    red, green = blend[20:-20, 20:-20, 2], blend[20:-20, 20:-20, 1]
    assert np.corrcoef(red.ravel(), green.ravel())[0, 1] > 0.9  # the two lie on each other


def test_agreement_needs_two_masks(root, tmp_path):
    layout = Layout.open(root)
    (pair, *_) = audit(root).pairs
    empty = Pair("benign (4)", "nobody", equal=True)
    assert with_agreement(layout, pair).agreement is not None
    assert with_agreement(layout, empty).agreement is None


@pytest.mark.slow
def test_busi_leaks_as_is_known(shared):
    """PROTOCOL.md: some 28 % of each list, benign (433) equal to malignant (145), two annotations agree at about 0.78.

    By eye, 156 pairs are copies of a frame; another 13 are successive frames of two slow sweeps, and may be found or not.
    """
    root = shared / "data" / "busi"
    found = audit(root, ["busi_train1.txt", "busi_val1.txt"])
    leaks = {1: len(found.leaks["busi_val1.txt"])}
    layout = Layout.open(root)
    for number in (2, 3):
        entries = {part: layout.read_list(f"busi_{part}{number}.txt") for part in ("train", "val")}
        leaks[number] = len(find_leaks(entries, found.clusters)["val"])
    assert all(0.24 <= count / 195 <= 0.31 for count in leaks.values()), leaks
    assert 156 <= sum(len(cluster) * (len(cluster) - 1) // 2 for cluster in found.clusters) <= 156 + 13
    assert ("benign (433)", "malignant (145)") in [(pair.first, pair.second) for pair in found.pairs if pair.equal]
    assert found.annotated_twice["mean"] == pytest.approx(0.78, abs=0.02)
    assert max(len(cluster) for cluster in found.clusters) == 4


@pytest.mark.slow
def test_busbra_has_three_examinations_entered_twice_and_no_false_alarm(shared):
    """The same frames under two patients, once with and once without callipers: seen by eye."""
    layout = Layout.open(shared / "data" / "busbra")
    twice = (("0044-l", "0065-l"), ("0044-r", "0065-r"), ("0056-l", "0091-l"), ("0341-l", "0356-l"), ("0341-r", "0356-r"))
    assert duplicates(layout, layout.cases) == twice
