"""Pruning requests, as users write them -> the passes of the prune stage, with their options.

    channels:0.5               half of the channels: a smaller network
    magnitude:0.7              70 % of the weights, the smallest of each layer (also activation:,
                               second_order:, see sparsity.py)
    2:4                        two of every four neighbouring inputs are kept
    block:0.5, 16x4:0.5        blocks of weights: those that the device multiplies at once, or of a
                               given size

Several may be combined: channels are removed first, then weights of the remaining ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from qcompiler.errors import Error
from qcompiler.pruning.sparsity import IMPORTANCES

Asked = Mapping[str, Mapping[str, object]]
"""Pass -> its options."""

HINT = "channels:0.5, magnitude:0.7, second_order:0.7, 2:4, block:0.5 or 16x4:0.5"


def pruning(wishes: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> Asked:
    """["channels:0.25", "2:4"] -> {"prune_channels": {...}, "prune_weights": {...}}."""
    made: dict[str, Mapping[str, object]] = {}
    for wish in wishes:
        name, options = _read(wish.strip())
        if name in made:
            raise Error(f"{wish!r} asks for {name} once more", where="--prune")
        made[name] = {**options, "include": tuple(include), "exclude": tuple(exclude)}
    return made


def _read(wish: str) -> tuple[str, dict[str, object]]:
    if re.fullmatch(r"\d+:\d+", wish):
        return "prune_weights", {"pattern": wish}
    kind, _, amount = wish.partition(":")
    known = kind in ("channels", "block", *IMPORTANCES) or re.fullmatch(r"\d+x\d+", kind)
    if not known or not re.fullmatch(r"0?\.\d+|0", amount):
        raise Error(f"cannot read {wish!r}", where="--prune", hint=HINT)
    sparsity = float(amount)
    if kind == "channels":
        return "prune_channels", {"sparsity": sparsity}
    if kind in IMPORTANCES:
        return "prune_weights", {"sparsity": sparsity, "importance": kind}
    return "prune_weights", {"sparsity": sparsity, "pattern": kind}
