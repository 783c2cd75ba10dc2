"""Base of all settings: frozen dataclasses, validated on creation, with one canonical text and a digest of it.

A spec holds only plain values, so it can be written into an artifact, printed, compared and hashed. Its digest names
the artifact: two runs share an artifact if and only if everything that can change its content is the same. Settings
that cannot change the result (time limits, views in a forward pass, workers) are marked *neutral* and left out of the
digest.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import numbers
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pipeline.system.digests import digest_of
from pipeline.system.errors import UserError

A_FILE = "a file"  # stands in an identity for the path of one, whose content is part of the digest


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """('stack.length', 10) and so on: every value of a nested mapping, by its path."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def setting(
    default: Any, description: str, *, choices=None, low=None, high=None, neutral=False, only_for=(), path=False
):
    """A dataclass field that knows its meaning and limits.

    Args:
        default: value if none is given.
        description: one line, with unit; shown by `luigi --help-all`.
        choices: the allowed values, or None for any.
        low, high: inclusive limits of a number.
        neutral: True if the setting cannot change the artifact's content, so it stays out of the digest. (Device and
            number of processes are neutral too, although they change the rounding of sums.)
        only_for: flow methods that read this setting (`FlowSpec.unread`).
        path: whether a text may be a path, in which a leading ~/ is the home folder (no shell expands it there).
    """
    about = {"description": description, "choices": choices, "low": low, "high": high}
    return dataclasses.field(
        default=default, metadata={**about, "neutral": neutral, "only_for": only_for, "path": path}
    )


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Base of all settings. A subclass is a list of `setting` fields and, where needed, a `check`."""

    SECTION: ClassVar[str] = ""
    VERSION: ClassVar[int] = 1  # of the algorithm: raise it when the same settings start to give other bytes

    def __post_init__(self):
        hints = _hints(type(self))
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if isinstance(given, list):
                object.__setattr__(self, field.name, given := tuple(given))
            if (plain := _as_plain(hints[field.name], given)) is not given:  # 20 and 20.0 are the same setting
                object.__setattr__(self, field.name, plain)
            if field.metadata:
                _check_value(self.section, field, hints[field.name], getattr(self, field.name))
        self.check()

    @property
    def section(self) -> str:
        """The section of luigi.cfg that these settings come from; messages name it."""
        return self.SECTION

    def check(self) -> None:
        """Check rules that involve several settings; subclasses raise a UserError that names the setting."""

    @classmethod
    def settings(cls) -> dict[str, dataclasses.Field]:
        """Name -> field of every setting that a user can give as text."""
        return {field.name: field for field in dataclasses.fields(cls) if field.metadata}

    @classmethod
    def parse(cls, texts: dict[str, str], *, section: str = "", **values: Any) -> Self:
        """Make a spec from texts, as found in luigi.cfg or on a command line.

        Args:
            texts: setting name -> text. An unknown name is rejected, with the most similar name as a suggestion.
            section: where the texts come from, for messages.
            values: fields given as values, not as text.

        Raises:
            UserError: an unknown name, or a text not of the setting's type; the message names the setting.
        """
        hints, section = _hints(cls), section or cls.SECTION
        parsed = {}
        for name, text in texts.items():
            if name not in cls.settings():
                raise UserError(unknown_name(f"setting [{section}] {name}", name, cls.settings()))
            parsed[name] = _parse_value(f"[{section}] {name}", hints[name], text)
        return cls(**parsed, **values)

    def as_dict(self) -> dict[str, Any]:
        """Every field as plain JSON values, nested specs included."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def unread(self) -> set[str]:
        """Names of settings that are not read because of the values of others; defined by subclasses."""
        return set()

    def identity(self) -> dict[str, Any]:
        """The part of `as_dict` that can change the result: what the digest covers."""
        kept: dict[str, Any] = {"version": self.VERSION}
        unread = self.unread()
        for field in dataclasses.fields(self):
            if field.metadata.get("neutral") or field.name in unread:
                continue
            value = getattr(self, field.name)
            kept[field.name] = value.identity() if isinstance(value, Spec) else value
        return json.loads(json.dumps(kept))

    def identity_with_paths(self) -> dict[str, Any]:
        """`identity` for people: of a file of weights the path, although not that but its content counts."""
        kept = self.identity()
        return kept | {name: getattr(self, name) for name, value in kept.items() if value == A_FILE}

    def digest(self, *upstream: str) -> str:
        """12 hex digits over the identity of these settings and the digests of what the stage reads."""
        return digest_of(self.SECTION, self.identity(), list(upstream))


def check_device(where: str, device: Any) -> None:
    """Reject any device name but auto, cpu, cuda or cuda:N.

    Raises:
        UserError: anything else; the message begins with `where`.
    """
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", device):
        raise UserError(f"{where} is {device!r}; allowed: auto, cpu, cuda, cuda:0, cuda:1, ...")


def unknown_name(what: str, name: str, allowed) -> str:
    """Error message for a name that is not among `allowed`; it suggests the most similar allowed name."""
    near = difflib.get_close_matches(name, list(allowed), 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    more = f" and {len(allowed) - 100} more" if len(allowed) > 100 else ""
    return f"{what} does not exist; {hint}allowed: {', '.join(sorted(allowed)[:100])}{more}"


@functools.cache
def _hints(cls) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _as_plain(hint: Any, value: Any) -> Any:
    """The value, with numpy's numbers as Python's, and whole numbers as floats where the type is float."""
    if type(value) is tuple and typing.get_origin(hint) is tuple:
        return tuple(_as_plain(typing.get_args(hint)[0], each) for each in value)
    number = {int: numbers.Integral, float: numbers.Real}.get(hint)
    return hint(value) if number and isinstance(value, number) and type(value) is not bool else value


def _check_value(section: str, field: dataclasses.Field, hint: Any, value: Any) -> None:
    where, about = f"[{section}] {field.name}", field.metadata
    if typing.get_origin(hint) is tuple:
        right = isinstance(value, tuple) and all(type(v) is typing.get_args(hint)[0] for v in value)
    else:
        right = type(value) is hint  # of a number, `_as_plain` has seen to it
    if not right:
        raise UserError(f"{where} is {value!r}, which is not {_type_name(hint)}")
    if about["choices"] and value not in about["choices"]:
        allowed = [str(choice) for choice in about["choices"]]
        near = difflib.get_close_matches(str(value).lower(), allowed, 1)
        suggestion = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{where} is {value!r}; allowed: {', '.join(allowed)}{suggestion}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} is {value}; it must be finite")
    if about["low"] is not None and value < about["low"]:
        raise UserError(f"{where} is {value}; it must be at least {about['low']}")
    if about["high"] is not None and value > about["high"]:
        raise UserError(f"{where} is {value}; it must be at most {about['high']}")


def _parse_value(where: str, hint: Any, text: str) -> Any:
    text = text.strip()
    try:
        if hint is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        if typing.get_origin(hint) is tuple:
            inner = typing.get_args(hint)[0]
            separator = r"\s*,\s*" if inner is str else r"[,\s]+"  # names may hold spaces
            return tuple(inner(part) for part in re.split(separator, text) if part)
        return hint(text)
    except (ValueError, KeyError):
        raise UserError(f"{where} is {text!r}, which is not {_type_name(hint)}") from None


def _type_name(hint: Any) -> str:
    if isinstance(hint, types.GenericAlias):
        return f"a list of {typing.get_args(hint)[0].__name__}, separated by commas"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[hint]
