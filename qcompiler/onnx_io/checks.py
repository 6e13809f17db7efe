"""What must hold of a run, or it fails: booleans that must all be true, and what is wrong else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Node, constant
from qcompiler.ops import known_value, make


@dataclass
class Checks:
    """The checks of a model."""

    made: dict[str, Node] = field(default_factory=dict)
    """What is wrong -> what must be all true."""
    guards: list[Node] = field(default_factory=list)
    """Conditions under which what is read now is wanted, vectors of one."""

    def require(self, holds: Node, what: str) -> None:
        """Make a run fail, with what is wrong, unless all of a value is true. Raises Error if it is
        known to be false in a run that wants it.
        """
        for guard in self.guards:
            wanted = known_value(guard)
            if wanted is not None and not wanted.all():
                return
            holds = make("Or", holds, make("Not", guard, name="unguarded"), name="check")
        known = known_value(holds)
        if known is None:
            while what in self.made:
                what += "."
            self.made[what] = holds
        elif not known.all():
            raise Error(what)

    @contextmanager
    def only_if(self, condition: Node, wanted: bool) -> Iterator[None]:
        """What is checked inside matters only to runs in which a condition is so."""
        one = constant(np.ones(1, np.int64))
        flag = make("Reshape", condition, one, name="taken")
        self.guards.append(flag if wanted else make("Not", flag, name="not taken"))
        try:
            yield
        finally:
            self.guards.pop()
