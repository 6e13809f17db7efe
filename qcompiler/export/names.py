"""Names of inputs, outputs and open sizes -> identifiers of C and C++."""

from __future__ import annotations

import re
from collections.abc import Iterable

_KEYWORDS = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t
    char32_t class co_await co_return co_yield compl concept const const_cast consteval constexpr
    constinit continue decltype default delete do double dynamic_cast else enum explicit export
    extern false float for friend goto if inline int long mutable namespace new noexcept not not_eq
    nullptr operator or or_eq private protected public register reinterpret_cast requires restrict
    return short signed sizeof static static_assert static_cast struct switch template this
    thread_local throw true try typedef typeid typename typeof typeof_unqual union unsigned using
    virtual void volatile wchar_t while xor xor_eq
"""
_TYPES = "int8_t int16_t int32_t int64_t uint8_t uint16_t uint32_t uint64_t size_t"
_OTHERS = "weights errno linux unix std main stdin stdout stderr"
_WORDS = frozenset(f"{_KEYWORDS} {_TYPES} {_OTHERS}".split())
"""Names that cannot be used in C or C++: keywords up to C23 and C++20, types that headers use,
macros and others in small letters, and a member that may exist.
"""
_LIKE_MACROS = re.compile(r"[A-Z][A-Z0-9_]+|I")
"""Names like those of macros, of C's headers (EOF, INT8_MAX, I) or of an export (NET_OK)."""


def identifier(word: str) -> str:
    """A name -> a valid identifier of C and C++; in small letters if it is all in capitals, since a
    macro may have that name.
    """
    made = re.sub(r"\W", "_", word, flags=re.ASCII).strip("_")
    made = made if made[:1].isalpha() else f"x{made}"
    made = made.lower() if _LIKE_MACROS.fullmatch(made) else made
    return f"{made}_" if made in _WORDS else made


def distinct(words: Iterable[str]) -> list[str]:
    """Names -> an identifier for each; they differ in capitals, too."""
    found: dict[str, str] = {}
    for word in map(identifier, words):
        name, count = word, 2
        while name.upper() in found:
            name, count = f"{word}_{count}", count + 1
        found[name.upper()] = name
    return list(found.values())
