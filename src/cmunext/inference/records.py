"""`segmentation.json` of a folder of results: what runs wrote there, how new files are named, and what must stay.

Several runs may write into a folder at a time. Before a run writes anything, it notes in a file beside which outputs each of its sources
gets, and at its end it strikes out what is done. So no two sources get one name; and what a killed run wrote is known by its notes, so
that it can be run again. A file that somebody else gives such a name before that counts as the run's.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmunext.errors import UsageError
from cmunext.storage import alone_in, json_bytes, read_json, settle, write_bytes, write_json

RECORDS = "segmentation.json"
NOTES = ".segmentation-begun.json"  # of each source that is begun and not yet recorded {"source", "mask", "overlay", ...}
LONGEST_NAME = 200  # bytes, before the endings
Record = dict[str, Any]


@contextmanager
def recording(
    out: str | os.PathLike[str], sources: Sequence[Path], outputs: Callable[[str], Record], overwrite: bool
) -> Iterator["Records"]:
    """Begin a run: give each source its outputs in the folder `out`, which is made. At the end, whatever ends it, records are saved.

    Parameters
    ----------
    outputs : of a name, {"mask": file's name or names, "overlay": ..., and others' under further keys}.
    overwrite : replace files that no run of this program wrote.

    Raises
    ------
    UsageError : before anything is written, when `out` is a file or its segmentation.json is not of this program, or when an output
        would overwrite an input, or a file that no run wrote.
    OSError : when the folder cannot be written.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: this is a file; name a folder for the results")
    made = not folder.exists()
    try:
        records = _begun(folder, sources, outputs, overwrite)
        try:
            yield records
        finally:
            records.save(ended=True)
    finally:
        if made:
            with suppress(OSError):  # there is something in it
                folder.rmdir()


@dataclass
class Records:
    """What a run adds to the records of a folder. Begin one with `recording`.

    A record is made into text once, by whoever adds it: saving a folder of thousands again and again then only joins texts.
    """

    folder: Path
    overwrite: bool
    files: Mapping[Path, Record]  # source -> its note: {"source": identity, and what `outputs` gave}
    earlier: frozenset[str]  # the sources, by identity, that were recorded when the run began
    outdated: Mapping[str, frozenset[str]]  # of those, files that their records had and this run does not write anew
    _added: dict[Path, str] = field(default_factory=dict, repr=False)
    _on_disk: dict[str, str] = field(default_factory=dict, repr=False)  # identity -> JSON, as segmentation.json was at `_seen`
    _seen: tuple[int, ...] | None = field(default=None, repr=False)

    def add(self, source: Path, record: Record) -> None:
        """Take in what was found in a source. Any thread may call it.

        On disk, all paths are absolute, so that they hold from wherever they are read.
        """
        note = self.files[source]
        self._added[source] = _to_json({**record, "source": note["source"], **_placed(self.folder, note)})

    def save(self, ended: bool = False) -> None:
        """Write segmentation.json: what is recorded there now, and what was added, in the sources' order, in its place or behind.

        Of a run that has ended, what remains noted is what it wrote and did not record.
        """
        mine = {note["source"]: self._added[source] for source, note in self.files.items() if source in self._added}
        if mine:
            settle(self.folder)  # what is recorded is there, and stays
        with alone_in(self.folder):
            others = {source: text for source, text in self._texts().items() if source in self.earlier or source not in mine}
            if mine:
                self._on_disk = {**others, **mine}
                write_bytes(self.folder / RECORDS, json_bytes("[\n" + ",\n".join(self._on_disk.values()) + "\n]\n"))
                self._seen = _stamp(self.folder / RECORDS)
            for name in (name for source in mine for name in self.outdated.get(source, ())):
                (self.folder / name).unlink(missing_ok=True)
            if ended:
                notes = _read_notes(self.folder)
                for note in self.files.values():
                    if note["source"] in self._on_disk or not any((self.folder / name).exists() for name in _names_of(note)):
                        notes.pop(note["source"], None)
                _write_notes(self.folder, notes)

    def _texts(self) -> dict[str, str]:
        """What is on disk. Another run may have written it since; it is read only then."""
        if (stamp := _stamp(self.folder / RECORDS)) != self._seen:
            self._on_disk = {source: _to_json(record) for source, record in _read(self.folder, self.overwrite).items()}
            self._seen = stamp
        return self._on_disk


def _begun(folder: Path, sources: Iterable[Path], outputs: Callable[[str], Record], overwrite: bool) -> Records:
    with alone_in(folder):
        notes, earlier = _read_notes(folder), _read(folder, overwrite)
        known = {**notes, **earlier}
        identities = {source: _identity(source) for source in sources}
        names = _names(identities, known)
        files = {source: {"source": identity, **outputs(names[source])} for source, identity in identities.items()}
        _check(folder, files.values(), known, overwrite)
        _write_notes(folder, notes | {note["source"]: note for note in files.values()})
    now = {note["source"]: frozenset(_names_of(note)) for note in files.values()}
    outdated = {source: frozenset(_names_of(earlier[source])) - names for source, names in now.items() if source in earlier}
    return Records(folder.resolve(), overwrite, files, frozenset(earlier), outdated)


def _read(folder: Path, overwrite: bool) -> dict[str, Record]:
    """Identity of a source -> its record, with the outputs where the folder lies now.

    Raises UsageError when segmentation.json is not of this program and `overwrite` is not set.
    """
    path = folder / RECORDS
    if not path.exists():
        return {}
    try:
        records, whole, found = read_json(path), folder.resolve(), {}
        for record in records:
            source = Path(record["source"])
            identity = record["source"] if source.is_absolute() else _identity(source)
            found[identity] = {**record, "source": identity, **_placed(whole, record)}
        return found
    except (ValueError, TypeError, KeyError) as error:
        if not overwrite:
            raise UsageError(f"{path}: this file is not of this program; choose another --out, or add --overwrite") from error
        return {}


def _read_notes(folder: Path) -> dict[str, Record]:
    try:
        return {note["source"]: note for note in read_json(folder / NOTES) if _names_of(note)}
    except (OSError, ValueError, TypeError, KeyError):  # most often it is not there
        return {}


def _write_notes(folder: Path, notes: Mapping[str, Record]) -> None:
    if notes:
        write_json(folder / NOTES, list(notes.values()))
    else:
        (folder / NOTES).unlink(missing_ok=True)


def _names(sources: Mapping[Path, str], known: Mapping[str, Record]) -> dict[Path, str]:
    """A name for each source: the one it had before, else its stem, numbered where another source has that already."""
    given = {source: Path(record["overlay"]).stem.removesuffix("_overlay") for source, record in known.items()}
    taken = {name.casefold() for name in given.values()}  # of names that differ in case only, some disks hold but one
    names = {}
    for source, identity in sources.items():
        name, number = given.get(identity), 1
        while name is None:
            candidate = _shortened(source.stem) + (f"-{number}" if number > 1 else "")
            name, number = (None if candidate.casefold() in taken else candidate), number + 1
        taken.add(name.casefold())
        names[source] = given[identity] = name
    return names


def _shortened(stem: str) -> str:
    """The stem, or as much of it as leaves room for an ending: disks take names of up to 255 bytes."""
    encoded = os.fsencode(stem)
    return stem if len(encoded) <= LONGEST_NAME else encoded[:LONGEST_NAME].decode(errors="ignore")


def _check(folder: Path, files: Iterable[Record], known: Mapping[str, Record], overwrite: bool) -> None:
    """Raise UsageError when one of the outputs is an input, or a file that no run wrote."""
    files = list(files)
    inputs = {str(Path(note["source"]).resolve()) for note in files}  # what links lead to, too
    own = {name for record in known.values() for name in _names_of(record)}
    for path in (folder / name for note in files for name in _names_of(note)):
        if str(path.resolve()) in inputs:
            raise UsageError(f"{path}: this output would overwrite an input; choose another --out")
        if path.exists() and path.name not in own and not overwrite:
            raise UsageError(
                f"{path}: this file exists and is not recorded in {RECORDS}; choose another --out, or add --overwrite"
            )


def _placed(folder: Path, outputs: Record) -> Record:
    """The outputs of a record or note, by key, as paths in the folder, wherever they lay before. Raises KeyError without any."""
    files = {"mask": outputs["mask"], "overlay": outputs["overlay"], "areas": outputs.get("areas")}
    return {
        key: str(folder / Path(found).name) if isinstance(found, str) else [str(folder / Path(one).name) for one in found]
        for key, found in files.items()
        if found is not None
    }


def _names_of(record: Record) -> list[str]:
    """The names of the outputs of a record or note."""
    files = (record["mask"], record["overlay"], record.get("areas", []))
    return [Path(path).name for each in files for path in ([each] if isinstance(each, str) else each)]


def _identity(source: Path) -> str:
    """The absolute path of a file, itself where it is a link; of what is none, as a camera, its name."""
    try:
        return str(source.parent.resolve() / source.name if source.exists() else source)
    except OSError:  # it lies where this user may not look
        return str(source)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Changes when the file is replaced; None where it is not there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _to_json(record: Record) -> str:
    """The record as `write_json` would write it inside of a list."""
    return "  " + json.dumps(record, indent=2, ensure_ascii=False).replace("\n", "\n  ")
