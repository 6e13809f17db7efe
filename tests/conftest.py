"""What several test files share."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import poison
import pytest
from hypothesis import HealthCheck, settings

# The same cases every time, however slow the machine; `--hypothesis-profile=default` tries others.
SLOW = [HealthCheck.too_slow]
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=SLOW)
settings.load_profile("repeatable")


LONGEST = "test_everything_that_is_shown_runs"
SLOW_SHARE = 2
SHARED = ("tests/kernels/", "tests/emit/", "tests/export/", "tests/differential/")
"""Of the cases of tests in these folders one of so many is a slow one: whatever is tested is tested
on some instruction sets, dtypes and machines in every run, and on all of them by CI.
"""


@pytest.fixture(scope="session")
def material() -> Path:
    """Real models with labelled data; they are not part of the repository."""
    folder = Path(__file__).parents[2] / "shared" / "material"
    if not folder.is_dir():
        pytest.skip("the folder of real models is not here")
    return folder


@pytest.fixture(scope="module")
def weights_of_8_bits() -> Iterator[None]:
    """Quantizes for any CPU as for those whose products of bytes are exact, so that a model's
    integers are the same for this machine, whatever it has, and for another.
    """
    from qcompiler.quantization.scales import weight_bits  # other runs do without it

    with pytest.MonkeyPatch.context() as patch:
        for name in ("static", "dynamic"):
            used = f"qcompiler.passes.quantize.{name}.weight_bits"
            patch.setattr(used, lambda asked, device: weight_bits(asked, None))
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite tests/golden/ with what is found"
    )
    parser.addoption(
        "--cases", type=int, default=0, help="number of random models of each kind (differential)"
    )
    parser.addoption(
        "--board",
        default="",
        help="run kernels for this instruction set, as arm_neon:cortex-a72, on an emulated CPU",
    )
    parser.addoption(
        "--share",
        default="",
        help="of the tests that take an instruction set only a share: 2/7 is the third of seven",
    )
    parser.addoption(
        "--part",
        default="",
        help="one of so many parts of the tests, by their names: 2/7 the third",
    )
    parser.addoption(
        "--seed", type=int, default=0, help="other random models than the usual ones (differential)"
    )


def pytest_configure(config: pytest.Config) -> None:
    if asked := config.getoption("--board"):
        import board  # the compiler with it, which other runs import when they need it

        isa, _, cpu = asked.partition(":")
        board.chosen[:] = [isa, cpu or board.CPUS[isa][0]]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the longest, so that no worker is left with it while the others have ended; and
    keep a share of the tests, by their names: every test is in one, whatever is tested besides, and
    whichever the instruction set is.
    """
    items.sort(key=lambda item: LONGEST not in item.nodeid)
    if asked := config.getoption("--share"):
        keep(config, items, asked, without_instruction_set)
    elif not config.getoption("--board") and not config.getoption("--cases"):
        mark_a_share_slow(items)
    if asked := config.getoption("--part"):
        keep(config, items, asked, lambda item: f"part: {item.nodeid}")


def keep(
    config: pytest.Config,
    items: list[pytest.Item],
    asked: str,
    name: Callable[[pytest.Item], str],
) -> None:
    """Of the tests those of a part, as 2/7, by names; none with an empty name."""
    number, of = map(int, asked.split("/"))
    kept, dropped = [], []
    for item in items:
        mine = name(item) and crc32(name(item).encode()) % of == number
        (kept if mine else dropped).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


@pytest.fixture(scope="session", autouse=True)
def _poisoned() -> Iterator[None]:
    """Every model that a test loads is called as poison.py says."""
    with pytest.MonkeyPatch.context() as patch:
        poison.install(patch)
        yield


_generators: list[tuple[np.random.Generator, Any]] = []
"""Every generator of random numbers that a test file holds, and its state before the first test."""


def pytest_collection_finish() -> None:
    """Find them: in the files collected, and in those that they import."""
    here = str(Path(__file__).parent)
    for module in list(sys.modules.values()):
        if (getattr(module, "__file__", None) or "").startswith(here):
            held = [v for v in vars(module).values() if isinstance(v, np.random.Generator)]
            _generators.extend((g, g.bit_generator.state) for g in held)


def pytest_runtest_setup() -> None:
    """Every test draws the same numbers, whichever ran before it."""
    for generator, state in _generators:
        generator.bit_generator.state = state


def without_instruction_set(item: pytest.Item) -> str:
    """A test's name less the instruction set that it takes; empty if it takes none."""
    isa = instruction_set(item)
    return item.nodeid.replace(isa, "") if isa else ""


def instruction_set(item: pytest.Item) -> str:
    """That a test takes; or empty."""
    names = item.callspec.params if hasattr(item, "callspec") else {}
    found = next((v for k, v in names.items() if k == "isa"), "")
    return found if isinstance(found, str) else found.name


def mark_a_share_slow(items: list[pytest.Item]) -> None:
    """By their names, which differ by the case."""
    for item in items:
        mine = item.nodeid.startswith(SHARED) and hasattr(item, "callspec")
        if mine and crc32(item.nodeid.encode()) % SLOW_SHARE == 0:
            item.add_marker(pytest.mark.slow)
