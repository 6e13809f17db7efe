"""A dataclass of options -> its flags; the words given -> the dataclass."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace, _ArgumentGroup
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from qcompiler.errors import Error
from qcompiler.options import GROUPS, Option, options_of

T = TypeVar("T")


def add(
    parser: ArgumentParser | _ArgumentGroup,
    made: type,
    omit: Sequence[str] = (),
    **defaults: object,
) -> None:
    """Give a parser the flags of `made`, in groups, except the fields that `omit` names;
    `defaults` replace those of the fields.
    """
    groups: dict[str, Any] = {"": parser}
    for o in options_of(made):
        if not o.flags or o.name in omit:
            continue
        if o.group not in groups:
            groups[o.group] = parser.add_argument_group(o.group, GROUPS[o.group])
        default = defaults.get(o.name, o.default)
        about = o.help.replace("%", "%%") + (f" (default: {default})" if default else "")
        groups[o.group].add_argument(*o.flags, dest=o.name, help=about, **_kind(o, default))


def read(made: Callable[..., T], a: Namespace, **more: object) -> T:
    """Parsed words -> the dataclass of options; `more` sets other fields, or overrides words."""
    given = {o.name: _value(o, getattr(a, o.name)) for o in options_of(made) if hasattr(a, o.name)}
    return made(**{**given, **more})


def _kind(o: Option, default: object) -> Mapping[str, object]:
    """Arguments of argparse for an option."""
    if o.type == "bool":
        return {"action": "store_true"}
    read = o.read or {"int": count(o.least), "float": float}.get(o.type)
    kind: dict[str, object] = {"default": [] if o.many else default}
    kind |= {"action": "append"} if o.many else {}
    kind |= {"type": read} if read else {}
    kind |= {"choices": o.choices} if o.choices else {}
    return kind | ({"metavar": o.metavar} if o.metavar else {})


def _value(o: Option, given: Any) -> object:
    if not (o.many and isinstance(given, list)):
        return given
    if not o.type.startswith("Mapping"):
        return tuple(given)
    entries = dict(given)
    if len(entries) < len(given):
        twice = next(name for name in entries if [n for n, _ in given].count(name) > 1)
        raise Error(f"{twice!r} is given twice", where=o.flags[0])
    return entries


def count(least: int = 0) -> Callable[[str], int]:
    """A parser of counts that are at least `least`."""

    def read(text: str) -> int:
        if not text.isdecimal() or len(text) > 9:
            raise ArgumentTypeError(f"{text!r} is not a count")
        if int(text) < least:
            raise ArgumentTypeError(f"at least {least} is needed")
        return int(text)

    return read
