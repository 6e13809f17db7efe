"""A request and its future."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Optional

from qcompiler.errors import Error
from qcompiler.runtime.arrays import Array


class Future(concurrent.futures.Future):  # type: ignore[type-arg]
    """A `concurrent.futures.Future` that may also be awaited. Its result is what the model returns:
    an array or a tuple of them, or {output name: array} for inputs given by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()

    def result(self, timeout: Optional[float] = None) -> Any:  # noqa: UP045
        """The result, when it is there; raises what went wrong instead."""
        self._demand_own()
        return super().result(timeout)

    def exception(self, timeout: Optional[float] = None) -> Optional[BaseException]:  # noqa: UP045
        """The error, once there is one."""
        self._demand_own()
        return super().exception(timeout)

    def __await__(self) -> Generator[Any, None, Any]:
        self._demand_own()
        return asyncio.wrap_future(self).__await__()

    def _demand_own(self) -> None:
        if self._process != os.getpid() and not self.done():
            raise Error("this request is answered in the process that was forked, not in this one")


@dataclass(eq=False)
class Request:
    """What is to be run."""

    arrays: Sequence[Array]
    """As the model takes them; of `rows` samples where samples are gathered."""
    rows: int
    named: bool
    """Is the result to be {name: array}?"""
    future: Future = field(default_factory=Future)
    priority: int = 0
    due: float = inf
    """When it is of no more use (time.monotonic)."""
    submitted: float = 0.0
    waiting: bool = False
    """Is it counted among those that wait?"""
    accepted: bool = False
