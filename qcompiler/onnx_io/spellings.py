"""Sizes as a file spells them (`dim_param`) -> symbols, and expressions of these.

    "past-len", "new", "past-len + new"  ->  past_len, new, past_len + new

A spelling is an expression where everything named in it is the whole spelling of another size, and
a symbol of its own otherwise: names may hold spaces, signs and dots, as exporters write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from qcompiler.artifact.sizes import MOST_TEXT, Number, Size, settled
from qcompiler.errors import Error

_MOST_PIECES = 32
_SIGNS = re.compile(r"(//|[-+*()])")
_WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def sizes_spelled(spellings: Iterable[str]) -> dict[str, Size]:
    """Spellings -> the size of each. Symbols of different names differ."""
    each = dict.fromkeys(spellings)
    made: dict[str, Size] = {}
    taken: set[str] = set()
    for spelled in sorted(each, key=len):  # an expression is longer than what it is made of
        found = _expression(spelled, made)
        if found is None:
            found = Size.of(_identifier(spelled, taken))
            taken.add(found)
        made[spelled] = found
    return made


def _identifier(spelled: str, taken: set[str]) -> str:
    """A name -> an identifier for it that is not taken."""
    word = re.sub(r"\W", "_", spelled[:MOST_TEXT], flags=re.ASCII)
    word = word if not word[:1].isdigit() else f"_{word}"
    while word in taken:
        word += "_"
    return word


def _expression(spelled: str, known: Mapping[str, Size]) -> Size | None:
    """What a spelling computes of others; None where it is no expression of these."""
    pieces = _SIGNS.split(spelled)
    if not 1 < len(pieces) <= _MOST_PIECES:
        return None
    text, at, named = "", 0, False
    while at < len(pieces):
        word, end = _longest(pieces, at, known)
        if word:
            text, at, named = f"{text}({known[word]})", end, True
        elif at % 2 or pieces[at].strip().isdecimal() or not pieces[at].strip():
            text, at = text + pieces[at], at + 1
        else:
            return None
    try:
        return Size.of(text) if named else None
    except Error:
        return None


def _longest(pieces: list[str], at: int, known: Mapping[str, Size]) -> tuple[str, int]:
    """The longest known name that begins at a piece, and the piece behind it; "" if none does."""
    for end in range(len(pieces), at, -1):
        word = "".join(pieces[at:end]).strip()
        if word in known and not word.isdecimal():
            return word, end
    return "", at


def replaced(size: Number, values: Mapping[str, Number]) -> Number:
    """A size with symbols replaced by numbers or other sizes. Raises Error where it then divides by
    0.
    """
    if isinstance(size, int) or not Size.of(size).symbols & values.keys():
        return size
    return settled(Size.of(_WORD.sub(lambda m: f"({values.get(m[0], m[0])})", size)))
