"""The dataset folder: `images/NAME.png`, `masks/0/NAME.png` (more classes: `masks/1`, ...), the text lists of its names, and the names
of its classes in `classes.txt`, a line each, where somebody gave them."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cmunext.errors import InputError, UsageError
from cmunext.image.files import IMAGE_SUFFIXES
from cmunext.metadata import BACKGROUND, unnamed_classes

CLASSES = "classes.txt"
SHOWN = 3  # names quoted in an error; the rest are counted


@dataclass(frozen=True)
class Layout:
    """A dataset folder and what lies in it, by name; nothing is decoded.

    Attributes
    ----------
    root : the folder.
    cases : names of all images (the file name without its suffix), sorted; whether each has its masks is asked case by case.
    classes : number K of mask folders `masks/0` ... `masks/K-1`.
    class_names : K names, see `class_names`. A class called "background" beside others is no lesion, and is not measured.
    image_files : case -> its image files. More than one (`a.png`, `a.jpg`) is ambiguous and raised by `image`.
    mask_files : for each class, name -> its mask files, including masks without an image.
    """

    root: Path
    cases: tuple[str, ...]
    classes: int
    class_names: tuple[str, ...]
    image_files: Mapping[str, tuple[Path, ...]] = field(repr=False)
    mask_files: tuple[Mapping[str, tuple[Path, ...]], ...] = field(repr=False)

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> "Layout":
        """List a dataset folder.

        Raises
        ------
        UsageError : `root` is not a folder, or has no `images` or no `masks/0`.
        InputError : there is no image in it, the mask folders are not numbered 0, 1, ... without a gap, or `classes.txt` does not
            name each of them.
        """
        root = Path(root)
        if not root.is_dir():
            raise UsageError(f"{root} is not a folder; give the dataset's folder, the one that holds images/ and masks/0/")
        for part in ("images", "masks/0"):
            if not (root / part).is_dir():
                raise UsageError(f"{root} has no folder {part}; `cmunext prepare` brings a download into images/ and masks/0/")
        numbers = sorted(int(entry.name) for entry in (root / "masks").iterdir() if entry.name.isdecimal() and entry.is_dir())
        folders = [root / "masks" / str(number) for number in numbers]
        if numbers != list(range(len(numbers))) or not all(folder.is_dir() for folder in folders):
            raise InputError(f"{root / 'masks'} has the folders {numbers}; they must be 0, 1, ... without a gap, one a class")
        images = files_by_name(root / "images")
        if not images:
            raise InputError(f"{root / 'images'} holds no image; the suffixes read are {', '.join(sorted(IMAGE_SUFFIXES))}")
        masks = tuple(files_by_name(folder) for folder in folders)
        return cls(root, tuple(sorted(images)), len(folders), class_names(root / CLASSES, len(folders)), images, masks)

    def image(self, name: str) -> Path:
        """The image of a case. Raises InputError when there is none, or more than one of that name."""
        return self._only(self.image_files, name, "image", self.root / "images")

    def masks(self, name: str) -> tuple[Path, ...]:
        """The K masks of a case, class 0 first. Raises InputError when one is missing, or there is more than one of that name."""
        return tuple(
            self._only(files, name, "mask", self.root / "masks" / str(number)) for number, files in enumerate(self.mask_files)
        )

    def find_list(self, path: str | os.PathLike[str]) -> Path:
        """A list's file: `path` as it stands, else in the dataset folder. Raises UsageError when it is at neither place."""
        for candidate in (Path(path), self.root / path):
            if candidate.is_file():
                return candidate
        raise UsageError(
            f"the list {path} is neither a file by that path nor in {self.root}; give a text file with one name a line"
        )

    def read_list(self, path: str | os.PathLike[str]) -> list[str]:
        """`read_list` of a list found by `find_list`, against this dataset's cases; the same errors."""
        return read_list(self.find_list(path), self.cases)

    def _only(self, files: Mapping[str, tuple[Path, ...]], name: str, what: str, folder: Path) -> Path:
        found = files.get(name, ())
        if len(found) == 1:
            return found[0]
        if not found:
            raise InputError(f"{name!r} has no {what} in {folder}; add it, or take the case out of the list")
        names = " and ".join(path.name for path in found)
        raise InputError(f"{name!r} has {len(found)} {what}s in {folder} ({names}); keep one of them")


def files_by_name(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Image files directly in a folder by their name without suffix, sorted; hidden files and other suffixes are passed over."""
    found: dict[str, tuple[Path, ...]] = {}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())
    for file_name in names:
        name, suffix = os.path.splitext(file_name)  # noqa: PTH122 (twice as fast as Path over thousands of files)
        if suffix.lower() in IMAGE_SUFFIXES:
            found[name] = (*found.get(name, ()), folder / file_name)
    return found


def read_list(path: str | os.PathLike[str], known_names: Collection[str]) -> list[str]:
    """Read a list of case names, one a line, in the file's order.

    Blank lines, either line ending, a byte order mark, surrounding blanks and an image suffix (`NAME.png`) are accepted.

    Raises
    ------
    UsageError : there is no such file, or it names cases that are not in `known_names`.
    InputError : the file is not text, names no case, or names one twice.
    """
    names = resolve(list_entries(path), known_names)
    if not names:
        raise InputError(f"the list {path} names no case; write one name a line")
    if unknown := sorted(set(names) - set(known_names)):
        raise UsageError(
            f"the list {path} names {_count(unknown, 'case')} not in the dataset: {quote(unknown)}; correct the list"
        )
    if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
        raise InputError(
            f"the list {path} names {_count(repeated, 'case')} more than once: {quote(repeated)}; keep one line of each"
        )
    return names


def list_entries(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a list, without blank ones. Raises UsageError (no such file) or InputError (not text)."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"the list {path} is not a file; give a text file with one case name a line")
    content = path.read_bytes()
    encoding = (
        "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    )  # Windows shells write UTF-16 when redirecting
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"the list {path} is not UTF-8 text; write one name a line, in UTF-8") from error
    if "\0" in text:
        raise InputError(f"the list {path} is not text; write one case name a line")
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


def resolve(entries: Iterable[str], known_names: Collection[str]) -> list[str]:
    """Entries of a list as case names: where an entry is no known name as it stands, blanks around it and an image suffix are taken off."""
    known = frozenset(known_names)

    def name_of(entry: str) -> str:
        if entry in known or (entry := entry.strip()) in known:
            return entry
        name, suffix = os.path.splitext(entry)  # noqa: PTH122 (an entry is a name, not a path)
        return name if suffix.lower() in IMAGE_SUFFIXES else entry

    return [name_of(entry) for entry in entries]


def class_names(path: Path, number: int) -> tuple[str, ...]:
    """The names of so many classes in a `classes.txt`, a background in lower case; without the file those of `unnamed_classes`.

    A single class needs no name, so a file that names several (as other programs leave there, of kinds of images) says nothing of it.

    Raises InputError when several classes have not a name each, or one stands there twice.
    """
    if not path.is_file():
        return unnamed_classes(number)
    names = tuple(BACKGROUND if name.casefold() == BACKGROUND else name for name in map(str.strip, list_entries(path)))
    if len(names) == len(set(names)) == number:
        return names
    if number == 1:
        return unnamed_classes(1)
    raise InputError(
        f"{path} names {_count(names, 'class', 'classes')} ({quote(names)}) for {number} folders of masks; give each a name of its own, a line "
        "each, that of masks/0 first; or, if the file is about something else, give it another name"
    )


def list_content(names: Iterable[str]) -> bytes:
    """A list in the official text form: one name a line, every line ended by CR LF, UTF-8."""
    return "".join(f"{name}\r\n" for name in names).encode()


def quote(names: Collection[str]) -> str:
    """The first few names, in quotes, and how many more there are."""
    first = ", ".join(repr(name) for name in list(names)[:SHOWN])
    return first if len(names) <= SHOWN else f"{first} and {len(names) - SHOWN} more"


def _count(names: Collection[str], noun: str, plural: str = "") -> str:
    return f"{len(names)} {noun if len(names) == 1 else plural or noun + 's'}"
