"""What lists share: cases that a list has in common with one before it, by name or because they show the same frame."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cmunext.data.duplicates import Clusters


@dataclass(frozen=True)
class Leak:
    """A case of a list, and a case of a list before it that is the same or shows the same frame."""

    case: str
    list: str
    twin: str
    twin_list: str


def find_leaks(entries: Mapping[str, Sequence[str]], clusters: Clusters) -> dict[str, tuple[Leak, ...]]:
    """List -> its leaks, one a case, sorted by case; the first list has none. `entries` are the lists, training first."""
    cluster_of = {case: cluster for cluster in clusters for case in cluster}
    leaks: dict[str, tuple[Leak, ...]] = {}
    seen: dict[str, str] = {}  # case -> the first list that has it
    for label, names in entries.items():
        found = []
        for name in sorted(set(names)):
            twins = [case for case in (name, *cluster_of.get(name, ())) if case in seen]
            found += [Leak(name, label, twin, seen[twin]) for twin in twins[:1]]
        leaks[label] = tuple(found)
        seen |= {name: label for name in names if name not in seen}
    return leaks


def clean(entries: Mapping[str, Sequence[str]], leaks: Mapping[str, Sequence[Leak]]) -> dict[str, tuple[str, ...]]:
    """List -> its cases without a leak, in the list's order, for each list but the first."""
    leaking = {label: {leak.case for leak in found} for label, found in leaks.items()}
    return {label: tuple(name for name in entries[label] if name not in leaking[label]) for label in list(entries)[1:]}


def naming_errors(entries: Mapping[str, Sequence[str]], known: frozenset[str]) -> list[tuple[str, str, str]]:
    """(case, kind, sentence) of names that the dataset lacks, that a list has twice, or that two lists have."""
    errors = []
    lists_of: dict[str, list[str]] = defaultdict(list)
    for label, names in entries.items():
        for name, count in Counter(names).items():
            lists_of[name].append(label)
            if name not in known:
                errors.append((name, "unknown", f"{label} names {name!r}, which the dataset lacks; correct the list"))
            if count > 1:
                errors.append((name, "repeated", f"{label} names {name!r} {count} times; keep one line"))
    for name, labels in lists_of.items():
        if len(labels) > 1:
            errors.append((name, "overlap", f"{name!r} is in {' and '.join(labels)}; keep it in one of them"))
    return errors
