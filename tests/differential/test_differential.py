"""Random models against what they mean; `--cases` and `--seed` try more of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from qcompiler.ir import Graph, Type, constant, placeholder
from qcompiler.onnx_io.reader import read
from qcompiler.ops import make

from . import damage, mutants
from .boards import check_on_board
from .changed import check_changed
from .checks import Outcome, check, described, differs
from .exported import check_exported
from .fat import check_fat
from .generate import KINDS, Case, generate
from .opened import check_opened
from .opened_sizes import check_sizes, check_two_sizes
from .pruned import check_pruned
from .reference import references
from .retyped import check_retyped
from .shards import Result, alone, results
from .shrink import save, shrink

CASES, PASSES, OPENED, MUTANTS, DAMAGED, SIZES, PAIRS, PRUNED = 60, 90, 20, 20, 20, 30, 20, 20
"""How many are tried unless `--cases` says otherwise, as a step of .ci/run does."""
A_TEST = 10
"""Cases in one test: a test for each would take longer to report than to run."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = metafunc.config.getoption("cases")
    first = metafunc.config.getoption("seed") * 1_000_000
    counts = {"graphs": cases or CASES, "passes": cases or PASSES, "opened": cases or OPENED}
    counts |= {"sizes": cases or SIZES, "pairs": cases or PAIRS, "pruned": cases or PRUNED}
    counts |= {"models": cases or MUTANTS, "artifacts": cases or DAMAGED}
    for name, count in counts.items():
        if name in metafunc.fixturenames:
            starts = range(first, first + count, A_TEST)
            blocks = [range(s, min(s + A_TEST, first + count)) for s in starts]
            metafunc.parametrize(name, blocks, ids=[str(b.start) for b in blocks])


@pytest.mark.filterwarnings("ignore")
def test_artifacts_of_random_models_do_what_the_models_mean(graphs: range) -> None:
    told = [told_of(generate(seed), passes_only=False) for seed in graphs]
    assert not any(told), "\n".join(filter(None, told))


@pytest.mark.filterwarnings("ignore")
def test_passes_keep_the_meaning_of_random_models(passes: range) -> None:
    told = [told_of(generate(seed + 500_000), passes_only=True) for seed in passes]
    assert not any(told), "\n".join(filter(None, told))


@pytest.mark.filterwarnings("ignore")
def test_samples_of_open_batches_of_random_models_do_not_meet(opened: range) -> None:
    ended = [(seed, check_opened(generate(seed), passes_only=True)) for seed in opened]
    assert not [(seed, o.faults) for seed, o in ended if o.faults]


@pytest.mark.filterwarnings("ignore")
def test_artifacts_with_an_open_batch_do_what_random_models_mean() -> None:
    ended = [(seed, check_opened(generate(seed))) for seed in range(4)]
    assert not [(seed, o.faults) for seed, o in ended if o.faults]
    assert any(not o.refused for _, o in ended)


@pytest.mark.filterwarnings("ignore")
def test_open_sizes_of_random_models_are_padded_exactly(sizes: range) -> None:
    ended = [(seed, check_sizes(generate(seed), passes_only=True)) for seed in sizes]
    assert not [(seed, o.faults) for seed, o in ended if o.faults]


@pytest.mark.filterwarnings("ignore")
def test_two_open_sizes_of_random_models_are_padded_exactly(pairs: range) -> None:
    ended = [(seed, check_two_sizes(generate(seed), passes_only=True)) for seed in pairs]
    assert not [(seed, o.faults) for seed, o in ended if o.faults]


@pytest.mark.filterwarnings("ignore")
def test_artifacts_with_two_open_sizes_do_what_random_models_mean() -> None:
    ended = [(seed, check_two_sizes(generate(seed))) for seed in range(2)]
    assert not [(seed, o.faults) for seed, o in ended if o.faults]


@pytest.mark.filterwarnings("ignore")
def test_artifacts_with_open_sizes_do_what_random_models_mean() -> None:
    ended = [(seed, check_sizes(generate(seed))) for seed in range(7, 10)]
    assert not [(seed, o.faults) for seed, o in ended if o.faults]


@pytest.mark.filterwarnings("ignore")
def test_random_models_without_channels_mean_what_zeros_would(pruned: range) -> None:
    ended = [(i, check_pruned(generate(i, "pruned"), passes_only=True)) for i in pruned]
    assert not [(seed, o.faults) for seed, o in ended if o.faults]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["extreme", "extreme-odd"])
def test_parameters_at_the_ends_of_their_ranges_mean_what_they_say(kind: str) -> None:
    ended = [(seed, check(generate(seed, kind), passes_only=True)) for seed in range(8)]
    assert not [(seed, o.faults) for seed, o in ended if o.faults]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_artifacts_of_pruned_models_do_what_is_left_of_them() -> None:
    ended = [(i, check_pruned(generate(i, "pruned"))) for i in range(9)]
    assert not [(seed, o.faults) for seed, o in ended if o.faults]


@pytest.mark.filterwarnings("ignore")
def test_a_model_written_in_another_way_means_the_same() -> None:
    outcome = check_changed(generate(12, "small"))
    assert not outcome.faults
    assert not outcome.refused


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check_case", [check_changed, check_retyped])
def test_models_written_in_other_ways_and_dtypes_do_what_they_mean(
    check_case: Callable[[Case], Outcome],
) -> None:
    ended = [(seed, check_case(generate(seed))) for seed in range(6)]
    assert not [(seed, o.faults) for seed, o in ended if o.faults]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check_case", [check_on_board, check_exported, check_fat])
def test_random_models_do_what_they_mean_on_other_processors_and_in_c(
    check_case: Callable[[Case], Outcome],
) -> None:
    ended = [(seed, check_case(generate(seed))) for seed in range(8)]
    assert not [(seed, o.faults) for seed, o in ended if o.faults]


@pytest.mark.filterwarnings("ignore")
def test_a_random_model_does_what_it_means_on_another_processor_and_in_c() -> None:
    for check_case in (check_on_board, check_exported):
        outcome = check_case(generate(3))
        if "no qemu" in outcome.refused or "no C compiler" in outcome.refused:
            pytest.skip(outcome.refused)
        assert not outcome.faults
        assert outcome.elements


def told_of(case: Case, *, passes_only: bool) -> str:
    """What is wrong with a case, and what shows it again."""
    outcome = check(case, passes_only=passes_only)
    lines = [*described(outcome)]
    again = f"python -m tests.differential --only {case.seed}" + " --kind passes" * passes_only
    return "\n    ".join([case.title, *lines, again]) if lines else ""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the artifacts that are damaged: they are compiled once."""
    return tmp_path_factory.mktemp("artifacts")


def test_damaged_models_are_refused_or_right(models: range, tmp_path: Path) -> None:
    ended = list(results(mutants.job(tmp_path), models))
    assert not [r for r in ended if r.get("died") or r.get("faults")]


def test_damaged_artifacts_are_refused_or_right(artifacts: range, folder: Path) -> None:
    ended = list(results(damage.job(folder), artifacts))
    assert not [r for r in ended if r.get("died") or r.get("faults")]


def test_a_seed_is_a_case() -> None:
    one, other = generate(11), generate(11)
    assert one.model.SerializeToString() == other.model.SerializeToString()
    assert all(np.array_equal(one.feeds[1][k], other.feeds[1][k]) for k in one.feeds[1])


def test_all_kinds_are_made_and_most_is_known_of_them() -> None:
    elements = unknown = 0
    for kind in KINDS:
        outcome = check(generate(5, kind), passes_only=True)
        elements, unknown = elements + outcome.elements, unknown + outcome.unknown
    assert elements > 1000
    assert unknown < 0.1 * elements


MODEL = """
    <ir_version: 8, opset_import: ["": 21]>
    net (float[4, 64] x) => (float[4, 8] y, int64[4] i) <float[64, 8] w> {
        z = MatMul(x, w)
        y = Tanh(z)
        i = ArgMax <axis = 1, keepdims = 0> (z)
    }
"""


def small_case() -> Case:
    rng = np.random.default_rng(0)
    model = parser.parse_model(MODEL)
    feeds = [{"x": rng.standard_normal((4, 64)).astype(np.float32)} for _ in range(3)]
    w = (rng.standard_normal((64, 8)) / 8).astype(np.float32)
    del model.graph.initializer[:]
    model.graph.initializer.append(mutants.helper.make_tensor("w", 1, w.shape, w.ravel()))
    return replace(generate(0, "float32"), model=model, feeds=tuple(feeds))


def test_bounds_follow_the_computation() -> None:
    case = small_case()
    for feed in case.feeds:
        y, i = references(read(case.model), feed, kernels=True).values()
        assert 0 < y.bound.max() < 2e-5, "a sum of 64 products"
        assert i.bound.max() == 0, "no two are so close that rounding decides"
        assert differs(y.value, y) == ""
        assert differs(y.value + np.float32(1e-4), y)
        assert differs(i.value + 1, i)


def test_sums_made_in_order_may_be_off_as_far_as_they_are() -> None:
    x = np.full((2, 1040), 0.05, np.float32)
    node = placeholder("x", Type("float32", x.shape))
    for op in ("ReduceSum", "ReduceL1"):
        graph = Graph((node,), (make(op, node, constant(np.array([1])), keepdims=0),), ("y",))
        (plain,) = references(graph, {"x": x}, kernels=False).values()
        (y,) = references(graph, {"x": x}, kernels=False, in_order=True).values()
        got = np.cumsum(x, axis=1)[:, -1]
        assert plain.bound.max() < y.bound.max()
        assert differs(got, y) == ""
        assert y.bound.max() < 3 * 1039 * 2.0**-24 * 52
        assert differs(got + np.float32(0.02), y)


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean"])
def test_of_a_sum_of_mixed_signs_nearly_nothing_may_be_left(op: str) -> None:
    count, rng = 11264, np.random.default_rng(0)
    x = rng.standard_normal((40, count)).astype(np.float32)
    x[:, -1] -= x.sum(1, dtype=np.float64)
    node = placeholder("x", Type("float32", x.shape))
    graph = Graph((node,), (make(op, node, constant(np.array([-1])), keepdims=0),), ("y",))
    (y,) = references(graph, {"x": x}, kernels=True).values()
    unit = 1.0 if op == "ReduceSum" else 1.0 / count
    got = np.cumsum(x, axis=1)[:, -1] * np.float32(unit)
    assert differs(got, y) == ""
    assert y.bound.max() < 0.02 * unit, "of terms near 1, none of which may be missing"


def test_sums_may_begin_with_a_bias_that_is_large_beside_them() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((40, 90)) * 1e-3).astype(np.float32)
    w = rng.standard_normal((90, 30)).astype(np.float32)
    node, bias = placeholder("x", Type("float32", x.shape)), np.full(30, 2.2, np.float32)
    product = make("MatMul", node, constant(w))
    graph = Graph((node,), (make("Add", product, constant(bias)),), ("y",))
    (y,) = references(graph, {"x": x}, kernels=True).values()
    got = np.broadcast_to(bias, y.value.shape)
    for k in range(90):
        got = got + x[:, k : k + 1] * w[k]
    assert np.abs(got - y.value).max() > 1.5e-6, "every step is rounded where the bias is"
    assert differs(got, y) == ""
    assert y.bound.max() < 91 * 2.0**-23 * 2.5
    assert differs(got + np.float32(1e-4), y)


@pytest.mark.parametrize("op", ["Celu", "Elu", "Selu"])
def test_what_is_taken_from_an_exponential_is_rounded_as_that_is(op: str) -> None:
    x = np.linspace(-0.2, 0, 4001, dtype=np.float32)
    node = placeholder("x", Type("float32", x.shape))
    (y,) = references(Graph((node,), (make(op, node),), ("y",)), {"x": x}, kernels=True).values()
    off = np.nextafter(np.exp(x), np.float32(2)) - np.exp(x)  # one unit of the exponential
    alpha = 1.7581 if op == "Selu" else 1.0
    assert differs((y.value + np.float32(alpha) * off).astype(np.float32), y) == ""
    assert differs(y.value + np.float32(2e-6), y)


@pytest.mark.parametrize("to", ["byte", "bfloat16"])
def test_what_only_a_rounding_reads_may_round_either_way(to: str) -> None:
    x = np.linspace(-4, 4, 4001, dtype=np.float32)
    node = placeholder("x", Type("float32", x.shape))
    gelu = make("Gelu", node)
    scale, zero = constant(np.float32(0.02)), constant(np.int32(10))
    byte = make("quantize", gelu, scale, zero, divide=1)
    rounded = byte if to == "byte" else make("Cast", gelu, to="bfloat16")
    graph = Graph((node,), (rounded,), ("y",))
    (y,) = references(graph, {"x": x}, kernels=True).values()
    (strict,) = references(graph, {"x": x}, kernels=False).values()
    undecided = y.bound > 0
    assert undecided.sum() > 2 * (strict.bound > 0).sum()
    assert undecided.sum() < 0.4 * x.size


def test_wrong_answers_and_crashes_are_seen_and_made_small(tmp_path: Path) -> None:
    case = generate(6, "float32")

    def fails(smaller: Case) -> bool:
        return any(n.op_type == "ConvTranspose" for n in smaller.model.graph.node)

    small = shrink(case, fails)
    assert len(small.model.graph.node) == 1
    assert save(small, tmp_path, "why").exists()
    assert "died" in alone(lambda _: {"never": [].pop()}, 0)
    assert alone(lambda i: {"it": i}, 7)["it"] == 7


@pytest.mark.parametrize("kind", ["sizes", "pairs", "open", "pruned", "passes"])
def test_one_case_is_checked_as_its_kind(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not as one of another kind, which finds nothing."""
    command = import_module("tests.differential.__main__")
    seen = []

    def checked(case: Case, kind: str) -> Result:
        seen.append((case.seed, kind))
        return {"faults": [["here", "wrong"]]}

    monkeypatch.setattr(command, "checked", checked)
    given = ["differential", "--only", "7", "--kind", kind, "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", given)
    assert command.main() == 1
    assert seen == [(7, kind)]
    assert "here: wrong" in capsys.readouterr().out
