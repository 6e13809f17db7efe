"""Runs that an exception interrupts, as of Ctrl-C, and runs within handlers of signals: at each
place where Python looks for signals, the calls of functions and their ends.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import product, sample

from qcompiler import load
from qcompiler.ir import Array
from qcompiler.runtime import Model, library

X = sample(0)
PLACES = 400
"""More than a run has."""


class Interrupt(BaseException):
    """As KeyboardInterrupt, which would end the tests."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = tmp_path_factory.mktemp("interrupted") / "product.qc"
    made = load(product(threads=2).save(path), threads=2)
    made(X)
    return made


def at_place(number: int, act: Callable[[], object], run: Callable[[], object]) -> bool:
    """Run, and act once, at that place of those where a signal is handled -> whether it has one."""
    seen = 0

    def look(frame: object, event: str, argument: object) -> None:
        nonlocal seen
        if event in ("call", "c_return"):
            seen += 1
            if seen == number + 1:
                sys.setprofile(None)
                act()

    sys.setprofile(look)
    try:
        run()
    finally:
        sys.setprofile(None)
    return seen > number


def same(results: Any, wanted: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(results, wanted, strict=True))


def test_an_interrupted_run_holds_no_team_and_the_next_is_right(model: Model) -> None:
    wanted = model(X)

    def interrupt() -> None:
        raise Interrupt

    for place in range(PLACES):
        try:
            if not at_place(place, interrupt, lambda: model(X)):
                break
        except Interrupt:
            pass
        assert not any(team.busy for team in library._teams)
        assert same(model(X), wanted)
    assert 20 < place < PLACES - 1


def test_a_handler_may_run_the_model_that_it_interrupts(model: Model) -> None:
    wanted, wrong, places = model(X), [], [0]

    def call(results: list[Any], x: Array) -> None:
        results.extend(model(x))

    def check() -> None:
        for place in range(PLACES):
            own: list[Any] = []
            within: list[Any] = []
            if not at_place(place, partial(call, within, -X), partial(call, own, X)):
                break
            wrong.extend([place] * (not same(own, wanted) or not same(within[1:], [X])))
            places[0] = place

    thread = threading.Thread(target=check, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits for itself"
    assert not wrong
    assert places[0] > 20


def test_a_team_may_be_freed_while_another_run_asks_whether_it_is_busy() -> None:
    team, asks = library.Team.__new__(library.Team), library.Team.busy.fget
    assert asks is not None

    def at_instruction(number: int) -> bool:
        """Free it at that instruction of the question -> whether it has so many."""
        hold, seen = library.Hold(), 0
        team.take(hold)

        def look(frame: Any, event: str, argument: object) -> Any:
            nonlocal seen
            if frame.f_code is not asks.__code__:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                seen += 1
                if seen == number + 1:
                    team.free()
            return look

        before = sys.gettrace()
        sys.settrace(look)
        try:
            asks(team)
        finally:
            sys.settrace(before)
        assert team.busy == (seen <= number)
        team.free()
        return seen > number

    assert sum(map(at_instruction, range(PLACES))) > 4
