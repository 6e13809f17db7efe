"""Where a search measures, when it ends, and what it makes of faults; nothing is timed here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from tuning_harness import Guessed, digits, product, task

from qcompiler.autotune.learn import Model
from qcompiler.autotune.measure import Fault, Result, Wrong
from qcompiler.autotune.places import Gone
from qcompiler.autotune.search import Search
from qcompiler.autotune.tasks import Choice, Task, tasks_of
from qcompiler.autotune.transfer import hints
from qcompiler.errors import Error
from qcompiler.tune.records import CHOSEN, Line


@contextmanager
def search(*benches: Guessed, tasks: list[Task] | None = None) -> Iterator[Search]:
    seen: list[tuple[Task, Result]] = []
    made = Search(tasks or [task()], benches, lambda t, r: seen.append((t, r)))
    vars(made)["seen"] = seen
    try:
        yield made
    finally:
        for bench in benches:
            bench.close()


def as_predicted(task: Task, choice: Choice) -> float:
    return choice.seconds


def other_vectors(task: Task, choice: Choice) -> float:
    """Every choice is as predicted, but those of another width than the default's take half."""
    usual = dict(task.default.knobs)["vectors"]
    return choice.seconds * (0.5 if dict(choice.knobs).get("vectors", usual) != usual else 1.0)


def test_where_predictions_hold_a_search_ends_soon() -> None:
    with search(bench := Guessed(as_predicted)) as s:
        s.run(60.0)
        s.settle(60.0)
    assert s.ratio == 1.0
    assert all(x.final is None for x in s.states)
    assert 0 < len(bench.asked) < 60
    assert len(bench.asked) < len(task().choices) / 4


def test_what_is_faster_is_found_and_what_it_shows_is_used() -> None:
    t = task()
    with search(bench := Guessed(other_vectors), tasks=[t]) as s:
        s.run(60.0)
        s.settle(60.0)
    (state,) = s.states
    best = min(t.choices, key=lambda c: other_vectors(t, c))
    assert state.final is not None
    assert state.final.seconds < 1.02 * other_vectors(t, best)
    assert s.points[-1].ratio == state.final.ratio
    assert len(bench.asked) < len(t.choices) / 2


def test_time_goes_where_most_may_be_won() -> None:
    tasks = tasks_of([(digits("float32", "x86_avx512").plan, "x86_avx512")])
    with search(bench := Guessed(as_predicted), tasks=tasks) as s:
        s.run(60.0)
    longest = max(s.states, key=lambda x: x.share)
    assert longest.results
    assert all(x.results for x in s.states if x.task.choices and x.share > 0.3 * longest.share)
    assert bench.asked[0] in longest.task.choices


def test_no_time_means_no_turn_and_ctrl_c_means_no_more() -> None:
    with search(bench := Guessed(as_predicted)) as s:
        s.run(0.0)
        assert not bench.asked
        s.interrupted = True
        s.run(60.0)
        assert not bench.asked


def test_ctrl_c_ends_the_turns_and_a_second_one_everything() -> None:
    def interrupt(_: Search) -> None:
        raise KeyboardInterrupt

    with search(bench := Guessed(other_vectors)) as s:
        s._notify = interrupt
        s.run(60.0)
        assert s.interrupted
        tried = len(bench.asked)
        assert 0 < tried == s.tried
        s._notify = lambda _: None
        s.settle(60.0)
        assert s.states[0].settled

    def pressed(task: Task, choice: Choice) -> Exception | None:
        raise KeyboardInterrupt

    tasks = tasks_of([(digits("float32").plan, "host")])
    both = Guessed(as_predicted, pressed), Guessed(as_predicted, pressed)
    with search(*both, tasks=tasks) as s, pytest.raises(KeyboardInterrupt):
        s.run(60.0)


def test_a_gain_within_noise_is_none() -> None:
    def little(task: Task, choice: Choice) -> float:
        return task.default.seconds * (1.0 if choice == task.default else 0.995)

    with search(Guessed(little)) as s:
        s.run(5.0)
        s.settle(5.0)
        assert s.ratio == 1.0


def test_the_work_of_a_lost_place_goes_elsewhere() -> None:
    def gone(task: Task, choice: Choice) -> Exception:
        return Gone("unplugged")

    with search(Guessed(as_predicted, gone), bench := Guessed(as_predicted)) as s:
        s.run(60.0)
        assert s.benches == [bench]
        assert all(set(x.results) <= set(bench.asked) for x in s.states)
        assert s.tried == len(bench.asked) > 0
    with search(Guessed(as_predicted, gone)) as s, pytest.raises(Error, match="nothing is left"):
        s.run(60.0)


def test_a_place_where_nothing_runs_is_dropped() -> None:
    def fault(task: Task, choice: Choice) -> Exception:
        return Fault("it crashed")

    tasks = tasks_of([(digits("float32").plan, "host")])
    with search(Guessed(as_predicted, fault), tasks=tasks) as s:
        with pytest.raises(Error, match="nothing is left to measure on: it crashed"):
            s.run(60.0)
        assert not any(x.broken for x in s.states)
    with search(Guessed(as_predicted, fault), bench := Guessed(as_predicted), tasks=tasks) as s:
        s.run(60.0)
        assert all(set(x.results) <= set(bench.asked) for x in s.states)
        assert s.tried > 0


def test_a_default_that_is_wrong_is_told_and_not_tuned() -> None:
    def wrong(task: Task, choice: Choice) -> Exception:
        return Wrong("off by one")

    with search(Guessed(as_predicted, wrong)) as s:
        s.run(60.0)
        ((seen_of, result),) = vars(s)["seen"]
        assert result.wrong
        assert result.choice == seen_of.default
        assert s.states[0].broken == "off by one"


def test_what_was_measured_before_is_not_measured_again() -> None:
    t = task()
    with search(bench := Guessed(as_predicted), tasks=[t]) as s:
        s.run(60.0)
        known = dict(s.states[0].results)
    with search(again := Guessed(as_predicted), tasks=[t]) as s:
        for result in known.values():
            s.remember(t.key, result)
        s.run(60.0)
    assert bench.asked
    assert not set(again.asked) & set(known)


def test_what_was_chosen_for_near_shapes_is_tried_first() -> None:
    t = task()

    def chosen(rows: int, columns: int, way: Choice) -> Line:
        (other,) = tasks_of([(product(rows=rows, columns=columns), "host")])
        return Line(CHOSEN, other.key, way.record(1e-6), 0.9)

    far, near, mine = t.choices[40], t.choices[50], t.choices[60]
    lines = [chosen(128, 160, far), chosen(64, 96, near), Line(CHOSEN, t.key, mine.record(1e-6))]
    assert hints(t, lines) == [near, far]
    elsewhere = [replace(x, key=replace(x.key, device="another")) for x in lines]
    assert not hints(t, elsewhere)
    with search(bench := Guessed(as_predicted), tasks=[t]) as s:
        s.states[0].hints = hints(t, lines)
        s.run(60.0)
    assert bench.asked[:2] == [near, far]


def test_a_model_learns_what_a_cost_model_has_wrong() -> None:
    t = task()

    def real(choice: Choice) -> float:
        knobs = dict(choice.knobs)
        if choice.generator != "tiled":
            return 3 * choice.seconds
        return choice.seconds * math.sqrt(float(knobs["vectors"]) / float(knobs["rows"]))

    model, usual = Model(), real(t.default)
    tiled = [c for c in t.choices if c.generator == "tiled" and c.seconds < 3 * t.default.seconds]
    for c in tiled[::7]:
        model.observe(t, c, real(c) / usual)
    model.fit()
    best = min(tiled, key=real)
    before = sorted(tiled, key=lambda c: c.seconds).index(best)
    after = [c for _, c in model.ranked(t, tiled)].index(best)
    assert after < 5 < before


def test_a_model_that_saw_nothing_predicts_as_the_cost_model() -> None:
    t = task()
    ranked = Model().ranked(t, t.choices)
    near = [c for c in t.choices if c.seconds < 4 * t.default.seconds]
    assert [c for _, c in ranked][: len(near)] == near
