"""The rewrite engine: what patterns match, what rules may do, and that large graphs stay fast."""

import ast
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import qcompiler.passes

from qcompiler import plugins
from qcompiler.errors import Error
from qcompiler.ir import Graph, Node, Type, constant, placeholder
from qcompiler.ops import evaluate, make
from qcompiler.rewrite import ANY, CONST, OPTIONAL, PASSES, Rule, Skip, op, rewrite, taken
from qcompiler.stages import build, choose, parse, run_stage

X = Type("float32", (4,))


def graph(*outputs: Node, inputs: tuple[Node, ...]) -> Graph:
    return Graph(inputs, outputs, tuple(f"y{i}" for i in range(len(outputs))))


def a_rule(pattern: object, build: object) -> Rule:
    return Rule("fold_test", pattern, build, "")  # type: ignore[arg-type]


def ops_of(g: Graph) -> list[str]:
    return [n.op for n in g.nodes if n.op not in ("input", "constant")]


def test_a_rule_replaces_the_root_and_hands_on_its_name() -> None:
    x = placeholder("x", X)
    g = graph(make("Neg", make("Neg", x), name="outer"), inputs=(x,))
    double = a_rule(op("Neg", op("Neg")), lambda outer, inner: make("Abs", inner.operands[0]))
    made = rewrite(g, [double])
    assert ops_of(made) == ["Abs"]
    assert made.outputs[0].name == "outer"
    assert rewrite(made, [double]) is made


def test_what_is_read_outside_the_match_keeps_a_rule_away_unless_it_is_shared() -> None:
    x = placeholder("x", X)
    inner = make("Neg", x)
    g = graph(make("Neg", inner), inner, inputs=(x,))

    def build(outer: Node, inner: Node) -> Node:
        return make("Abs", inner.operands[0])

    assert rewrite(g, [a_rule(op("Neg", op("Neg")), build)]) is g
    shared = rewrite(g, [a_rule(op("Neg", op("Neg", shared=True)), build)])
    assert ops_of(shared) == ["Abs", "Neg"]


def test_a_node_that_the_root_reads_twice_is_read_inside_only() -> None:
    x = placeholder("x", X)
    inner = make("Neg", x)
    g = graph(make("Mul", inner, inner), inputs=(x,))
    square = a_rule(op("Mul", op("Neg"), op("Neg")), lambda m, a, b: make("Abs", a.operands[0]))
    assert ops_of(rewrite(g, [square])) == ["Abs"]


def test_operands_match_in_either_order_when_the_operator_commutes() -> None:
    x = placeholder("x", X)
    c = constant(np.float32(1))
    pattern = op("Add", ANY, CONST, commutes=True)
    seen = a_rule(pattern, lambda add: make("Abs", x))
    for operands in ((x, c), (c, x)):
        assert ops_of(rewrite(graph(make("Add", *operands), inputs=(x,)), [seen])) == ["Abs"]


def test_optional_inputs_may_be_there_or_not() -> None:
    x = placeholder("x", X)
    low = constant(np.float32(0))
    pattern = op("Clip", ANY, OPTIONAL, OPTIONAL)
    seen = a_rule(pattern, lambda clip: make("Abs", x))
    for clip in (make("Clip", x), make("Clip", x, low), make("Clip", x, None, low)):
        assert ops_of(rewrite(graph(clip, inputs=(x,)), [seen])) == ["Abs"]


def test_a_skip_is_explained_and_changes_nothing() -> None:
    x = placeholder("x", X)
    g = graph(make("Neg", x, name="here"), inputs=(x,))
    told: list[tuple[str, str, str]] = []
    skipped = a_rule(op("Neg"), lambda neg: Skip("never"))
    assert rewrite(g, [skipped], lambda r, n, why: told.append((r, n.name, why))) is g
    assert told == [("fold_test", "here", "never")]


def test_a_rule_that_changes_the_type_is_a_bug_that_is_named() -> None:
    x = placeholder("x", X)
    g = graph(make("Neg", x), inputs=(x,))
    wrong = a_rule(op("Neg"), lambda neg: make("Cast", x, to="float16"))
    with pytest.raises(TypeError, match="fold_test"):
        rewrite(g, [wrong])


def test_rules_that_never_settle_are_named() -> None:
    x = placeholder("x", X)
    g = graph(make("Neg", x), inputs=(x,))
    again = a_rule(op("Neg"), lambda neg: make("Neg", neg.operands[0]))
    with pytest.raises(Error, match="never settle: fold_test"):
        rewrite(g, [again])


def test_rewriting_is_deep_as_the_graph_is() -> None:
    x = placeholder("x", X)
    node = x
    for _ in range(3000):
        node = make("Neg", node)
    plugins.load_passes()
    double = PASSES["fold_double"]
    assert isinstance(double, Rule)
    assert rewrite(graph(node, inputs=(x,)), [double]).outputs[0] is x


def a_large_network(blocks: int) -> Graph:
    """Convolutions, batch norms, decomposed activations, residual sums, channel shuffles."""
    rng = np.random.default_rng(0)
    x = placeholder("x", Type("float32", (1, 4, 4, 4)))
    half, root, one = (constant(np.float32(v)) for v in (0.5, 2**0.5, 1))
    y: Node = x
    for _ in range(blocks):
        w = constant((rng.standard_normal((4, 4, 1, 1)) / 4).astype(np.float32))
        positive = [constant(rng.uniform(0.5, 1.5, 4).astype(np.float32)) for _ in range(4)]
        made = make("BatchNormalization", make("Conv", y, w), *positive)
        gate = make("Add", make("Erf", make("Div", made, root)), one)
        made = make("Mul", make("Mul", made, gate), half)
        split = make("Reshape", made, constant(np.array([1, 2, 2, 4, 4])))
        mixed = make("Transpose", split, perm=(0, 2, 1, 3, 4))
        y = make("Add", y, make("Reshape", mixed, constant(np.array([1, 4, 4, 4]))))
    return graph(y, inputs=(x,))


def calls(work: Callable[[], Graph]) -> tuple[int, Graph]:
    """The number of Python function calls made to compute a graph."""
    count = 0

    def seen(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(seen)
    try:
        made = work()
    finally:
        sys.setprofile(None)
    return count, made


def test_work_grows_with_the_nodes_and_no_faster() -> None:
    """A pass that is quadratic in the nodes would call 16 times as much over 4 times the nodes."""
    small, large = a_large_network(50), a_large_network(200)
    for stage in ("fold", "fuse", "layout"):
        run_stage(a_large_network(1), stage)  # imports and caches count for neither
        few, small = calls(partial(run_stage, small, stage))
        many, large = calls(partial(run_stage, large, stage))
        assert many < 5 * few, f"{stage} calls {many / few:.1f} times as much"


def test_a_network_keeps_its_meaning_through_all_stages() -> None:
    whole = a_large_network(3)
    made = whole
    for stage in ("fold", "fuse", "layout"):
        made = run_stage(made, stage)
    assert set(ops_of(made)) == {"conv", "Add", "Gelu", "Reshape", "Transpose"}
    values = {"x": np.random.default_rng(1).standard_normal((1, 4, 4, 4)).astype(np.float32)}
    np.testing.assert_allclose(
        evaluate(made, values)["y0"], evaluate(whole, values)["y0"], rtol=1e-4, atol=1e-4
    )


def test_options_are_read_with_the_types_of_the_fields() -> None:
    name, options = parse("fold_constants{max_numbers=1024, growth=2}")
    assert name == "fold_constants"
    assert options == {"max_numbers": 1024, "growth": 2.0}
    assert build(name, options).max_numbers == 1024  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("fold_nothing", "unknown pass"),
        ("fold_constants{bytes=3}", "no option 'bytes'"),
        ("fold_constants{device=3}", "no option 'device'"),
        ("fold_constants{max_numbers=much}", "is not of type int"),
        ("fold_bias{max=3}", "no option 'max'"),
        ("{}", "cannot read"),
    ],
)
def test_an_option_that_makes_no_sense_is_a_clear_error(spec: str, what: str) -> None:
    with pytest.raises(Error, match=what):
        parse(spec)


def test_passes_run_when_asked_for_and_not_when_disabled() -> None:
    x = placeholder("x", Type("float32", (2, 2)))
    n = graph(make("Identity", x), inputs=(x,))
    assert run_stage(n, "fold").outputs == (x,)
    assert run_stage(n, "fold", options=choose(disabled=["fold_identity"])) is n
    assert choose().wants("fold_identity")
    assert not choose().wants("quantize_static")
    assert choose(["quantize_static"]).wants("quantize_static")


def test_a_taken_operand_is_handed_over_also_where_both_are_one_node() -> None:
    x = placeholder("x", X)
    neg = make("Neg", x)
    got: list[tuple[Node, ...]] = []

    def build(add: Node, first: Node, other: Node) -> None:
        got.append((add, first, other))

    rule = a_rule(op("Add", op("Neg"), taken(ANY), commutes=True), build)
    add = make("Add", neg, neg)
    rewrite(graph(add, inputs=(x,)), [rule])
    assert got[0] == (add, neg, neg)


def test_no_pass_searches_operands_for_the_one_that_another_is_not() -> None:
    """x + x has no operand that is not x: patterns hand over what they matched (`taken`)."""
    found = []
    for path in sorted(Path(qcompiler.passes.__path__[0]).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.GeneratorExp | ast.ListComp):
                continue
            over = ast.unparse(node.generators[0].iter)
            tests = [ast.unparse(t) for g in node.generators for t in g.ifs]
            other = any(re.search(r" is not (?!None)", t) for t in tests)
            if other and re.search(r"\.(operands|inputs)\b", over):
                found.append(f"{path.name}: {ast.unparse(node)}")
        source = path.read_text()
        found += [f"{path.name}: {m}" for m in re.findall(r"next\(\(?i for i in [^\n]*", source)]
    assert not found
