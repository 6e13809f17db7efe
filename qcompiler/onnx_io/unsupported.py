"""The one Error for all of a model that is not supported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qcompiler.errors import Error

LISTED = 20
"""Most unsupported operators, and most nodes of each, listed in an Error."""


def demand_supported(unsupported: Mapping[tuple[str, str], Sequence[str]]) -> None:
    """Raise one Error for everything unsupported: (what, hint) -> the nodes that use it."""
    if not unsupported:
        return
    lines = [f"{what}; in {_listed(names)}" for (what, _), names in unsupported.items()]
    if len(lines) > LISTED:
        lines[LISTED:] = [f"and {len(lines) - LISTED} more"]
    hints = [hint for _, hint in unsupported if hint]
    raise Error(
        "the model uses unsupported features:\n" + "\n".join(f"  {line}" for line in lines),
        hint=hints[0] if hints else "",
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
