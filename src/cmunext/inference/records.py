"""`segmentation.json` of a folder of results: what earlier runs wrote there, how new files are named, and what must stay."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cmunext.errors import UsageError
from cmunext.storage import write_text

RECORDS = "segmentation.json"
Record = dict[str, Any]


@dataclass(frozen=True)
class Records:
    """The records of a folder, by their source's path. Open one with `Records.open`.

    A record is made into text once, by whoever adds it: saving a folder of thousands again and again then only joins texts.
    """

    folder: Path
    earlier: Mapping[Path, Record]
    overwrite: bool
    _added: dict[Path, tuple[Path, str]] = field(default_factory=dict, repr=False)  # source -> identity, JSON

    @classmethod
    def open(cls, folder: Path, overwrite: bool) -> "Records":
        """What segmentation.json says, if it is there.

        Raises UsageError when the folder is a file, or its segmentation.json is not of this program and `overwrite` is not set.
        """
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: this is a file; name a folder for the results")
        path = folder / RECORDS
        if not path.exists():
            return cls(folder, {}, overwrite)
        try:
            records = json.loads(path.read_text(encoding="utf-8"))
            earlier = {_identity(Path(record["source"])): record for record in records if _written(record)}
        except (ValueError, TypeError, KeyError) as error:
            if not overwrite:
                raise UsageError(f"{path}: this file is not of this program; choose another --out, or add --overwrite") from error
            earlier = {}
        return cls(folder, earlier, overwrite)

    def names(self, sources: Iterable[Path]) -> dict[Path, str]:
        """A name for each source: the one it had before, else its stem, numbered where another source has that already."""
        before = {source: Path(record["overlay"]).stem.removesuffix("_overlay") for source, record in self.earlier.items()}
        taken = {name.casefold() for name in before.values()}  # of names that differ in case only, some disks hold but one
        names = {}
        for source in sources:
            name, number = before.get(_identity(source)), 1
            while name is None:
                candidate = source.stem if number == 1 else f"{source.stem}-{number}"
                name, number = (None if candidate.casefold() in taken else candidate), number + 1
            taken.add(name.casefold())
            names[source] = name
        return names

    def check(self, outputs: Mapping[Path, Sequence[Path]]) -> None:
        """Raise UsageError when one of a source's outputs is an input, or a file that no earlier run wrote."""
        inputs = {_identity(source) for source in outputs}
        own = {path.name for record in self.earlier.values() for path in _written(record)}
        for path in (path for paths in outputs.values() for path in paths):
            if path.resolve() in inputs:
                raise UsageError(f"{path}: this output would overwrite an input; choose another --out")
            if path.exists() and path.name not in own and not self.overwrite:
                raise UsageError(
                    f"{path}: this file exists and is not recorded in {RECORDS}; choose another --out, or add --overwrite"
                )

    @cached_property
    def _earlier_texts(self) -> dict[Path, str]:
        return {source: _to_json(record) for source, record in self.earlier.items()}

    def add(self, source: Path, record: Record) -> None:
        """Take in what was found in a source. Any thread may call it.

        On disk, `source` is an absolute path, and the outputs are names in the folder: this holds from wherever it is read, and the
        outputs also when the folder is moved.
        """
        identity = _identity(source)
        self._added[source] = identity, _to_json({**record, "source": str(identity), **_inside(record)})

    def save(self, sources: Iterable[Path]) -> None:
        """Write segmentation.json: the earlier records, and those added of `sources` in their place or behind. May be nothing."""
        texts = dict(self._earlier_texts)
        texts.update(self._added[source] for source in sources if source in self._added)
        if texts:
            write_text(self.folder / RECORDS, "[\n" + ",\n".join(texts.values()) + "\n]\n")


def _to_json(record: Record) -> str:
    """The record as `write_json` would write it inside of a list."""
    return "  " + json.dumps(record, indent=2, ensure_ascii=False).replace("\n", "\n  ")


def _written(record: Record) -> list[Path]:
    masks = [record["mask"]] if isinstance(record["mask"], str) else record["mask"]
    return [Path(path) for path in (*masks, record["overlay"], *([record["areas"]] if "areas" in record else []))]


def _inside(record: Record) -> Record:
    """The entries of a record that are files in its folder, as their names there."""
    given = {key: record[key] for key in ("mask", "overlay", "areas") if key in record}
    return {key: Path(each).name if isinstance(each, str) else [Path(path).name for path in each] for key, each in given.items()}


def _identity(source: Path) -> Path:
    """The absolute path of a file; of what is none, as a camera, its name. Earlier versions recorded paths as they were typed."""
    return source.resolve() if source.exists() else source
