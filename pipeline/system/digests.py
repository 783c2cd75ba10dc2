"""Digests: of values, of files, and of this code. Two things with the same digest count as the same."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

CODE = Path(__file__).parents[1]  # pipeline/


def digest_of(*parts: Any) -> str:
    """First 12 hex digits of the SHA-256 of the canonical JSON of `parts` (plain values only)."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:12]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so equal values give the same text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def file_hash(path: Path) -> str:
    """16 hex digits of BLAKE2b over the bytes of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def file_hashes(*paths: Path | None) -> list[str]:
    """The `file_hash` of each of these files that is there: by its content a file counts in a stage's digest."""
    return [file_hash(path) for path in paths if path and path.is_file()]


@functools.cache
def code_key() -> str:
    """Key of the code in pipeline/, which is the same wherever the same version is installed."""
    return digest_of({str(path.relative_to(CODE)): file_hash(path) for path in sorted(CODE.rglob("*.py"))})
