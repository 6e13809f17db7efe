"""The thread team's protocol (emit/team.py), step by step in Python, under random schedules: every
`yield` is a place where another thread may run, for as long as it likes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

LOW = (1 << 32) - 1


@dataclass
class Memory:
    """A team's memory, and what the checks need to know of the run."""

    masks: list[int]
    fresh: bool = True  # are job and number read after the claim?
    word: int = 0
    remaining: int = 0
    sleepers: int = 0
    job: tuple[int, int, list[int]] = (0, 0, [])  # the run, the first number, the masks
    asleep: Counter[int] = field(default_factory=Counter)
    posts: Counter[int] = field(default_factory=Counter)
    run: int = 0
    over: bool = True
    open: int = -1  # the section that is being run
    begun: set[tuple[int, int]] = field(default_factory=set)
    done: set[tuple[int, int]] = field(default_factory=set)
    holding: set[int] = field(default_factory=set)  # threads that have claimed, until they look

    def start(self, job: int, index: int, unit: int) -> None:
        """A unit begins: of this run, once, when all before it are done."""
        assert not self.over, "the run's memory may be gone"
        assert job == self.run, "a job that is over"
        assert (index, unit) not in self.begun, "a unit is run twice"
        assert self.masks[index] >> unit & 1
        before = {(i, u) for i in range(index) for u in range(32) if self.masks[i] >> u & 1}
        assert before <= self.done, "a section before is not finished"
        self.begun.add((index, unit))

    def finish(self, index: int, unit: int) -> None:
        assert not self.over
        self.done.add((index, unit))


def pick(mask: int, thread: int) -> int:
    return thread if mask >> thread & 1 else mask.bit_length() - 1


def launch(m: Memory, masks: list[int], run: int) -> Iterator[None]:
    m.masks, m.run, m.over = masks, run, False
    m.begun, m.done = set(), set()
    base = (m.word >> 32) + 1
    yield
    m.job = (run, base, masks)  # nobody holds a claim, so nobody reads it meanwhile
    yield
    yield from loop(m, 0)
    assert len(m.done) == sum(mask.bit_count() for mask in masks)
    m.over = True


def loop(m: Memory, thread: int) -> Iterator[None]:
    index, unit, unshared, advance = -1, 0, False, thread == 0
    run, base, masks = m.job
    while True:
        if not advance:
            m.holding.discard(thread)
            word = m.word
            yield
            mask = word & LOW
            if not mask:
                if thread == 0 and word == (base + len(masks)) << 32:
                    return
                yield from sleep(m, thread, word)
                continue
            unit = pick(mask, thread)
            stale = (*m.job, word)
            yield
            had = m.word >> unit & 1
            m.word &= ~(1 << unit)
            if not had:
                continue
            m.holding.add(thread)
            yield
            run, base, masks, word = (*m.job, m.word) if m.fresh else stale
            index, unshared = (word >> 32) - base, False
            yield
        while True:
            if not advance:
                m.start(run, index, unit)
                yield
                m.finish(index, unit)
                yield
                if not unshared:
                    m.remaining -= 1
                    last = m.remaining == 0
                    if not last:
                        m.holding.discard(thread)
                    yield
                    if not last:
                        break
            advance, index = False, index + 1
            if index == len(masks):
                m.word = (base + index) << 32
                yield
                if thread == 0:
                    return
                if m.sleepers:
                    yield from wake(m, 1)
                break
            unit = pick(masks[index], thread)
            others = masks[index] & ~(1 << unit)
            unshared = not others
            if unshared:
                continue
            m.remaining = masks[index].bit_count()
            yield
            m.word = (base + index) << 32 | others
            yield
            if m.sleepers:
                yield from wake(m, 32)


def wake(m: Memory, threads: int) -> Iterator[None]:
    for thread in range(threads):
        asleep, m.asleep[thread] = m.asleep[thread], 0
        if asleep:
            yield
            m.posts[thread] += 1


def sleep(m: Memory, thread: int, word: int) -> Iterator[None]:
    """As after many looks, at every look."""
    m.sleepers += 1
    yield
    m.asleep[thread] = 1
    yield
    waits = m.word == word
    yield
    if not waits:
        mine, m.asleep[thread] = m.asleep[thread], 0
        waits = not mine
        yield
    if waits:
        while not m.posts[thread]:
            yield
        m.posts[thread] -= 1
    m.sleepers -= 1
    yield


def play(seed: int, *, fresh: bool = True) -> None:
    """Some runs one after the other by a caller and workers, the next thread to run by lot, some
    of them seldom.
    """
    lot = random.Random(seed)
    workers = lot.randint(1, 4)
    m = Memory([], fresh)
    threads = {t: loop(m, t) for t in range(1, workers + 1)}
    weights = {t: lot.choice([1, 1, 5, 20, 0.2]) for t in range(workers + 1)}
    for run in range(1, 5):
        sizes = [lot.randint(1, workers + 1) for _ in range(lot.randint(1, 6))]
        masks = [sum(1 << u for u in lot.sample(range(workers + 1), size)) for size in sizes]
        caller = launch(m, masks, run)
        for _ in range(300_000):
            turn = lot.choices(list(weights), list(weights.values()))[0]
            if turn:
                next(threads[turn])
            elif next(caller, m) is m:
                break
        else:
            raise AssertionError("the run does not end")


def play_all(seeds: int, *, fresh: bool = True) -> None:
    for seed in range(seeds):
        play(seed, fresh=fresh)


def test_every_unit_is_run_once_in_order_whatever_the_schedule() -> None:
    play_all(1500)


def test_the_check_finds_a_job_that_is_read_before_the_claim() -> None:
    with pytest.raises((AssertionError, IndexError)):
        play_all(1500, fresh=False)


def test_a_caller_whose_workers_never_come_does_all() -> None:
    m = Memory([])
    for _ in launch(m, [0b1, 0b1111, 0b10, 0b111], 1):
        pass
    assert m.over


@pytest.mark.parametrize("stuck", range(1, 40))
def test_a_worker_that_stops_anywhere_holds_up_what_it_has_claimed_only(stuck: int) -> None:
    """It stops forever after some steps."""
    m = Memory([])
    worker, caller = loop(m, 1), launch(m, [0b11] * 6, 1)
    ended = False
    for turn in range(5_000):
        if turn % 2 and turn < 2 * stuck:
            next(worker)
        elif next(caller, m) is m:
            ended = True
            break
    assert ended is not bool(m.holding - {0})
