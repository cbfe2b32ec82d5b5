"""A checksum of a weights file inside that file, so that a byte changed after it was written is noticed before it makes a wrong mask.

It is an entry "sha256" of the metadata, in .onnx and in .safetensors: the SHA-256 of the file's bytes with 64 zeros in the digest's place.
It guards against damage and careless editing; whoever means to deceive can compute it too. Files without it, from other hands, are read as
they are.
"""

import hashlib
import re
from pathlib import Path

from cmunext.errors import InputError

NAME = "sha256"
SEAL = {NAME: "0" * 64}  # what the metadata must hold when they are saved, for `sealed` to find its place

_PROTOBUF = re.compile(rb"\x0a\x06sha256\x12\x40([0-9a-f]{64})")  # field 1 (the name) of 6 bytes, field 2 (the value) of 64
_JSON = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_SAFETENSORS = b'{"__metadata__":{'  # how its header begins, behind the header's length in eight bytes


def with_place(content: bytes) -> bytes:
    """A .safetensors file that has metadata, with `SEAL` among them: of several entries safetensors changes the order from call to call."""
    end = _header_end(content)
    header = content[8:end].rstrip().replace(_SAFETENSORS, _SAFETENSORS + f'"{NAME}":"{SEAL[NAME]}",'.encode(), 1)
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def sealed(content: bytes, source: Path) -> bytes:
    """The content of a file, whose metadata hold `SEAL`, with the digest in its place. Raises InputError when they do not; `source` is named."""
    found = _entry(content)
    if found is None:
        raise InputError(f"{source}: there is no place for a checksum in its metadata; save it with the entry {NAME!r}")
    return content[: found.start(1)] + _digest(content, found).encode() + content[found.end(1) :]


def check_seal(path: Path) -> bool:
    """Whether a file carries a checksum. Raises InputError when it does and is not as it was written."""
    content = path.read_bytes()
    found = _entry(content)
    if found is not None and found.group(1).decode() != _digest(content, found):
        raise InputError(
            f"{path}: it was changed after it was written (its checksum does not fit); copy it again, or have this program write it again"
        )
    return found is not None


def _entry(content: bytes) -> re.Match[bytes] | None:
    if content.startswith(_SAFETENSORS, 8):
        return _JSON.search(content, 0, _header_end(content))
    return _PROTOBUF.search(content)


def _header_end(content: bytes) -> int:
    return min(8 + int.from_bytes(content[:8], "little"), len(content))


def _digest(content: bytes, entry: re.Match[bytes]) -> str:
    sha = hashlib.sha256()
    for part in (memoryview(content)[: entry.start(1)], SEAL[NAME].encode(), memoryview(content)[entry.end(1) :]):
        sha.update(part)
    return sha.hexdigest()
