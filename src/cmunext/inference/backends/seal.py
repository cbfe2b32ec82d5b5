"""A checksum of an .onnx file inside that file, so that a byte changed after it was written is noticed before it makes a wrong mask.

It is an entry "sha256" of the model's metadata: the SHA-256 of the file's bytes with 64 zeros in the digest's place. It guards against
damage and careless editing; whoever means to deceive can compute it too. Files without it, from other hands, are read as they are.
"""

import hashlib
import re
from pathlib import Path

from cmunext.errors import InputError

NAME = "sha256"
SEAL = {NAME: "0" * 64}  # what a model's metadata must hold when it is saved, for `seal` to find its place

# The entry as protobuf writes it: field 1 (the name) of 6 bytes, field 2 (the value) of 64.
_ENTRY = re.compile(rb"\x0a\x06sha256\x12\x40([0-9a-f]{64})")


def seal(path: Path) -> None:
    """Put the digest into a file whose model holds `SEAL`. Raises InputError when it does not."""
    content = path.read_bytes()
    found = _ENTRY.search(content)
    if found is None:
        raise InputError(f"{path}: there is no place for a checksum in its metadata; save it with the entry {NAME!r}")
    with path.open("r+b") as file:
        file.seek(found.start(1))
        file.write(_digest(content, found).encode())


def check_seal(path: Path) -> None:
    """Raise InputError when a file that carries a checksum is not as it was written."""
    content = path.read_bytes()
    found = _ENTRY.search(content)
    if found is not None and found.group(1).decode() != _digest(content, found):
        raise InputError(
            f"{path}: it was changed after it was written (its checksum does not fit); copy it again, or export the weights again"
        )


def _digest(content: bytes, entry: re.Match[bytes]) -> str:
    sha = hashlib.sha256()
    for part in (memoryview(content)[: entry.start(1)], SEAL[NAME].encode(), memoryview(content)[entry.end(1) :]):
        sha.update(part)
    return sha.hexdigest()
