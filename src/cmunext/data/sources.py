"""Recognising a download: which file is the image of which case, and which are its masks. Nothing is decoded."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cmunext.data.layout import files_by_name
from cmunext.data.table import BUSBRA_PREFIX, BUSBRA_TABLE, Table, class_of, dataset_table
from cmunext.errors import InputError, UsageError

KINDS = ("auto", "busbra", "busi", "pairs")  # auto tries the others in this order
DEPTH = 3  # archives put their content a folder or two down
NORMAL = "normal"

_BUSI_FOLDERS = ("benign", "malignant", NORMAL)
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "originals", "original", "inputs", "input")
_MASK_FOLDERS = (
    *("masks", "mask", "labels", "label", "gt", "gts", "groundtruth", "ground_truth", "ground truth"),
    *("annotations", "annotation", "segmentations", "segmentation", "seg", "segs", "targets", "target"),
)
_BUSI_MASK = re.compile(r"(?P<case>.+)_mask(?:_\d+)?", re.IGNORECASE)
_MASK_WORDS = r"(?:masks?|seg|segmentation|gt|groundtruth|ground_truth|labels?|annotation)"
_IMAGE_WORDS = r"(?:images?|img|bus)"
_MASK_TAG = re.compile(
    rf"(?:{_MASK_WORDS}[_ -]+(?P<rest>.+)|(?P<case>.+?)[_ -]+{_MASK_WORDS}(?P<number>[_ -]?\d+)?)", re.IGNORECASE
)
_IMAGE_TAG = re.compile(
    rf"(?:{_IMAGE_WORDS}[_ -]+(?P<rest>.+)|(?P<case>.+?)[_ -]+{_IMAGE_WORDS}(?P<number>[_ -]?\d+)?)", re.IGNORECASE
)


@dataclass(frozen=True)
class Source:
    """One case of a download.

    Attributes
    ----------
    name : the case's name in the dataset folder.
    image : its image.
    masks : for each class, the mask files that together are its mask.
    kind : its class, such as "benign"; "" where nothing tells.
    """

    name: str
    image: Path
    masks: tuple[tuple[Path, ...], ...]
    kind: str


@dataclass(frozen=True)
class Download:
    """What a download holds.

    Attributes
    ----------
    kind : what it was read as: "busi", "busbra" or "pairs".
    root : the folder in which it was found.
    sources : its cases, sorted by name.
    unpaired : (case or file, why) of what cannot be a case.
    table : what its tables tell of the cases; empty where it has none.
    """

    kind: str
    root: Path
    sources: tuple[Source, ...]
    unpaired: tuple[tuple[str, str], ...]
    table: Table = field(repr=False)


def find(src: Path, kind: str = "auto") -> Download:
    """Recognise what lies in `src`, or up to three folders below it.

    `kind` is "busi" (`benign/ malignant/ normal/`, holding `NAME.png` with `NAME_mask.png`, `NAME_mask_1.png`, ...), "busbra"
    (`Images/ Masks/ bus_data.csv`), "pairs" (a folder of images beside a folder of masks whose names pair), or "auto".

    Raises
    ------
    UsageError : `src` is not a folder or `kind` not a kind, nothing of the kind is there, or more than one place would do.
    InputError : a table in it cannot be read, or it holds no image.
    """
    if kind not in KINDS:
        raise UsageError(f"the kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    if not src.is_dir():
        raise UsageError(f"{src} is not a folder; give the folder of the download")
    tried = KINDS[1:] if kind == "auto" else (kind,)
    for level in _levels(src):
        matches = [(folder, match) for folder in level if (match := next((one for one in tried if _TESTS[one](folder)), None))]
        if len(matches) > 1:
            places = " and ".join(f"{folder.relative_to(src)} ({match})" for folder, match in matches[:3])
            raise UsageError(f"{src} holds {len(matches)} data sets: {places}; give one of them")
        for folder, match in matches:
            return _READERS[match](folder)
    wanted = {
        "busi": "the folders benign/ and malignant/ of a BUSI download",
        "busbra": f"{BUSBRA_TABLE} of a BUS-BRA download beside its folders Images/ and Masks/",
        "pairs": "a folder of images (such as images/) beside a folder of masks (such as masks/)",
    }
    raise UsageError(f"{src} does not hold {', or '.join(wanted[name] for name in tried)}; give the folder that does")


def _levels(src: Path) -> Iterator[list[Path]]:
    """The folder itself, then the folders in it, then those in them, down to DEPTH."""
    level = [src]
    for _ in range(DEPTH + 1):
        yield level
        level = [folder for above in level for folder in _subfolders(above)]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__MACOSX")))


def _named(folder: Path, names: Sequence[str]) -> list[Path]:
    return [sub for sub in _subfolders(folder) if sub.name.lower() in names]


def _is_busi(folder: Path) -> bool:
    return any(files_by_name(sub) for sub in _named(folder, _BUSI_FOLDERS[:2]))


def _is_busbra(folder: Path) -> bool:
    return (folder / BUSBRA_TABLE).is_file() and _is_pairs(folder)


def _is_pairs(folder: Path) -> bool:
    return bool(_named(folder, _IMAGE_FOLDERS) and _named(folder, _MASK_FOLDERS))


def _read_busi(root: Path) -> Download:
    sources: dict[str, Source] = {}
    unpaired: list[tuple[str, str]] = []
    for folder in _named(root, _BUSI_FOLDERS):
        images: dict[str, tuple[Path, ...]] = {}
        masks: dict[str, tuple[Path, ...]] = {}
        for name, files in files_by_name(folder).items():
            mask = _BUSI_MASK.fullmatch(name)
            if mask:
                masks[mask["case"]] = (*masks.get(mask["case"], ()), *files)
            else:
                images[name] = files
        found, problems = _paired(images, [masks])
        unpaired += problems
        for name, (image, own_masks) in found.items():
            if name in sources:
                unpaired.append((str(image.relative_to(root)), f"{sources[name].image.relative_to(root)} has the same name"))
            else:
                sources[name] = Source(name, image, own_masks, folder.name.lower())
    return _download("busi", root, sources, unpaired, dataset_table(root))


def _read_busbra(root: Path) -> Download:
    pairs = _read_pairs(root)
    sources: dict[str, Source] = {}
    unpaired, table = list(pairs.unpaired), pairs.table
    for source in pairs.sources:
        name = source.name.removeprefix(BUSBRA_PREFIX)
        if name not in table:
            unpaired.append((source.name, f"it has no row in {BUSBRA_TABLE}"))
        elif name in sources:
            unpaired.append((source.name, f"{sources[name].image.name} is the same case"))
        else:
            sources[name] = replace(source, name=name, kind=class_of(name, table[name]))
    return _download("busbra", root, sources, unpaired, table)


def _read_pairs(root: Path) -> Download:
    image_folder = _one(root, "images", _IMAGE_FOLDERS)
    mask_folder = _one(root, "masks", _MASK_FOLDERS)
    numbered = {sub.name: sub for sub in _subfolders(mask_folder)}
    class_folders: list[Path] = []
    while str(len(class_folders)) in numbered:
        class_folders.append(numbered[str(len(class_folders))])
    images = files_by_name(image_folder)
    owners = _owners(images)
    masks = []
    for folder in class_folders or [mask_folder]:
        of_class: dict[str, tuple[Path, ...]] = {}
        for name, files in files_by_name(folder).items():
            case = next((owners[key] for key in _mask_keys(name) if key in owners), name)
            of_class[case] = (*of_class.get(case, ()), *files)
        masks.append(of_class)
    table = dataset_table(root)
    found, unpaired = _paired(images, masks)
    sources = {
        name: Source(name, image, own_masks, class_of(name, table.get(name, {}))) for name, (image, own_masks) in found.items()
    }
    return _download("pairs", root, sources, unpaired, table)


def _one(root: Path, what: str, names: Sequence[str]) -> Path:
    folders = _named(root, names)
    if len(folders) > 1:
        raise UsageError(
            f"{root} has {len(folders)} folders of {what}: {', '.join(sub.name for sub in folders)}; leave only one there"
        )
    return folders[0]


def _owners(images: Mapping[str, object]) -> dict[str, str]:
    """What a mask may be called -> its image: the image's name, or that without a word like "image" where it is unique."""
    bare = {name: _without(name, _IMAGE_TAG)[0] for name in images}
    shared = Counter(bare.values())
    return {key: name for name, key in bare.items() if shared[key] == 1} | {name: name for name in images}


def _mask_keys(name: str) -> tuple[str, ...]:
    """The names under which to look for a mask's image: "a_mask_1" is of "a_mask_1", else of "a_1", else of "a"."""
    return (name, *_without(name, _MASK_TAG))


def _without(name: str, tag: re.Pattern[str]) -> tuple[str, str]:
    """A name without its tag, and without the number behind it too."""
    found = tag.fullmatch(name)
    if not found:
        return name, name
    bare = found["rest"] or found["case"]
    return bare + (found["number"] or ""), bare


def _paired(
    images: Mapping[str, tuple[Path, ...]], masks: Sequence[Mapping[str, tuple[Path, ...]]]
) -> tuple[dict[str, tuple[Path, tuple[tuple[Path, ...], ...]]], list[tuple[str, str]]]:
    """Case -> (image, mask files of each class), and (case or file, why) for what does not pair."""
    found, unpaired = {}, []
    for name, files in sorted(images.items()):
        missing = [number for number, of_class in enumerate(masks) if name not in of_class]
        if len(files) > 1:
            unpaired.append((name, f"there are {len(files)} images of this name: {', '.join(file.name for file in files)}"))
        elif missing:
            unpaired.append(
                (name, "the image has no mask" if len(masks) == 1 else f"the image has no mask of class {missing[0]}")
            )
        else:
            found[name] = (files[0], tuple(of_class[name] for of_class in masks))
    for of_class in masks:
        unpaired += [
            (file.name, "the mask has no image") for name in sorted(set(of_class) - set(images)) for file in of_class[name]
        ]
    return found, unpaired


def _download(kind: str, root: Path, sources: Mapping[str, Source], unpaired: list[tuple[str, str]], table: Table) -> Download:
    if not sources and not unpaired:
        raise InputError(
            f"{root} looks like a {kind} download, but no image lies directly in its folders; take them out of deeper ones"
        )
    return Download(kind, root, tuple(sources[name] for name in sorted(sources)), tuple(unpaired), table)


_TESTS = {"busbra": _is_busbra, "busi": _is_busi, "pairs": _is_pairs}
_READERS = {"busbra": _read_busbra, "busi": _read_busi, "pairs": _read_pairs}
