"""Pruning: what goes is what should, what stays makes up for it, and graphs shrink rightly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qcompiler import compile, load, stages
from qcompiler.data.calibrate import Calibration
from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Node, Type, constant, placeholder, substitute
from qcompiler.onnx_io.writer import write
from qcompiler.ops import evaluate, make
from qcompiler.pruning.channels import FIXED, factors, label
from qcompiler.pruning.recover import RIDGE, Seen, Twin, copied, nearest, recover, solve
from qcompiler.pruning.request import pruning
from qcompiler.pruning.slimming import without
from qcompiler.pruning.sparsity import (
    Pattern,
    curve,
    global_levels,
    importance,
    mask,
    sensitive_levels,
)

RNG = np.random.default_rng(0)


def weights(*shape: int, seed: int = 0) -> Node:
    rng = np.random.default_rng((seed, *shape))
    return constant((rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32))


def conv(x: Node, outputs: int, kernel: int = 3, group: int = 1, **attrs: object) -> Node:
    w = weights(outputs, x.type.dims[1] // group, kernel, kernel)
    pads = (kernel // 2,) * 4
    return make("Conv", x, w, weights(outputs, seed=1), pads=pads, group=group, **attrs)


def ints(*values: int) -> Node:
    return constant(np.array(values, np.int64))


IMAGE = placeholder("x", Type("float32", (2, 3, 8, 8)))
WORDS = placeholder("x", Type("float32", (2, 5, 16)))


def graph(*outputs: Node, source: Node = IMAGE) -> Graph:
    return Graph((source,), outputs, tuple(f"y{i}" for i in range(len(outputs))))


def head(x: Node) -> Node:
    pooled = make("GlobalAveragePool", x)
    flat = make("Flatten", pooled)
    return make("MatMul", flat, weights(flat.type.dims[1], 10))


def plain() -> Graph:
    return graph(head(make("Relu", conv(make("Relu", conv(IMAGE, 16)), 24))))


def residual() -> Graph:
    first = make("Relu", conv(IMAGE, 16))
    inner = conv(make("Relu", conv(first, 8)), 16)
    return graph(head(make("Relu", make("Add", first, inner))))


def padded_shortcut() -> Graph:
    """As in CIFAR's ResNets: half of the pixels, channels of zeros around."""
    first = make("Relu", conv(IMAGE, 8))
    thin = make("Slice", first, ints(0, 0), ints(9, 9), ints(2, 3), ints(2, 2))
    wide = make("Pad", thin, ints(0, 4, 0, 0, 0, 4, 0, 0))
    return graph(head(make("Relu", make("Add", wide, conv(first, 16, strides=(2, 2))))))


def concat_and_split() -> Graph:
    both = make("Concat", conv(IMAGE, 8), conv(IMAGE, 16, 1), axis=1)
    parts = make("Split", both, ints(12, 12), axis=1)
    a, b = (make("item", parts, index=i) for i in range(2))
    cut = make("Slice", both, ints(4), ints(20), ints(1))
    sides = make("Concat", make("Mul", a, b), cut, axis=1)
    return graph(head(make("HardSwish", sides)))


def groups_and_depthwise() -> Graph:
    x = make("Relu", conv(IMAGE, 16))
    x = make("Clip", conv(x, 16, group=16), constant(np.float32(0)), constant(np.float32(6)))
    return graph(head(make("Relu", conv(conv(x, 24, 1), 24, group=4))))


def squeeze_and_excite() -> Graph:
    x = make("Relu", conv(IMAGE, 16))
    gate = make("Sigmoid", conv(make("Relu", conv(make("GlobalAveragePool", x), 8, 1)), 16, 1))
    scaled = make("PRelu", make("Mul", x, gate), weights(16, 1, 1))
    gone = [weights(16, seed=i) for i in range(3)]
    variance = constant(np.abs(weights(16, seed=4).array) + 1)
    return graph(head(make("BatchNormalization", scaled, *gone, variance)))


def flattened() -> Graph:
    x = make("MaxPool", make("Relu", conv(IMAGE, 12)), kernel_shape=(2, 2), strides=(2, 2))
    flat = make("Reshape", x, ints(2, 12 * 16))
    inner = make("Relu", make("Add", make("MatMul", flat, weights(192, 20)), weights(20)))
    return graph(make("MatMul", inner, weights(20, 4)))


def attention_heads() -> Graph:
    def heads(seed: int) -> Node:
        made = make("Add", make("MatMul", WORDS, weights(16, 16, seed=seed)), weights(16))
        cut = make("Reshape", made, ints(2, 5, 4, 4))
        return make("Transpose", cut, perm=(0, 2, 1, 3))

    seen = make("Attention", heads(1), heads(2), heads(3))
    merged = make("Reshape", make("Transpose", seen, perm=(0, 2, 1, 3)), ints(2, 5, 16))
    return graph(make("Add", WORDS, make("MatMul", merged, weights(16, 16))), source=WORDS)


def joint_heads() -> Graph:
    """One product for queries, keys and values."""
    made = make("MatMul", WORDS, weights(16, 48))
    cut = make("Transpose", make("Reshape", made, ints(2, 5, 3, 4, 4)), perm=(2, 0, 3, 1, 4))
    parts = make("Split", cut, ints(1, 1, 1), axis=0)
    q, k, v = (make("Squeeze", make("item", parts, index=i), ints(0)) for i in range(3))
    score = make("MatMul", q, make("Transpose", k, perm=(0, 1, 3, 2)))
    seen = make("MatMul", make("Softmax", score, axis=-1), v)
    merged = make("Reshape", make("Transpose", seen, perm=(0, 2, 1, 3)), ints(2, 5, 16))
    return graph(make("MatMul", merged, weights(16, 16)), source=WORDS)


def one_channel_gates_all() -> Graph:
    """The gate is a piece of one channel, which is repeated."""
    parts = make("Split", conv(IMAGE, 17), ints(16, 1), axis=1)
    a, gate = (make("item", parts, index=i) for i in range(2))
    return graph(head(make("Mul", a, make("Sigmoid", gate))))


def mask_of_a_product() -> Graph:
    """What is added to the scores has a column for each key: the product that makes it stays."""
    q, k, v = (
        make("Reshape", make("MatMul", WORDS, weights(16, 16, seed=i)), ints(2, 5, 4, 4))
        for i in range(3)
    )
    q, k, v = (make("Transpose", i, perm=(0, 2, 1, 3)) for i in (q, k, v))
    mask = make("Unsqueeze", make("MatMul", WORDS, weights(16, 5)), ints(1))
    seen = make("Attention", q, k, v, mask)
    merged = make("Reshape", make("Transpose", seen, perm=(0, 2, 1, 3)), ints(2, 5, 16))
    return graph(make("MatMul", merged, weights(16, 16)), source=WORDS)


def operands_of_products() -> Graph:
    """A convolution's weights and bias, and a norm's scale, that other products compute."""
    x = make("Relu", conv(make("Relu", conv(IMAGE, 8)), 16))
    row = make("ReduceMean", x, ints(0, 2, 3), keepdims=0)
    flat = make("Unsqueeze", row, ints(0))
    w = make("Reshape", make("MatMul", flat, weights(16, 64)), ints(4, 16, 1, 1))
    bias = make("Reshape", make("MatMul", flat, weights(16, 4)), ints(4))
    scale = make("Reshape", make("MatMul", flat, weights(16, 8)), ints(8))
    normal = make("LayerNormalization", make("Conv", x, w, bias), scale, axis=-1)
    return graph(make("MatMul", make("Transpose", normal, perm=(0, 2, 3, 1)), weights(4, 3)))


def channels_become_the_batch() -> Graph:
    x = make("Transpose", make("Relu", conv(IMAGE, 16)), perm=(1, 0, 2, 3))
    each = make("Conv", x, weights(4, 2, 3, 3), pads=(1,) * 4)
    back = make("Transpose", make("Relu", each), perm=(2, 3, 1, 0))
    return graph(make("MatMul", back, weights(16, 3)))


NETWORKS: list[Callable[[], Graph]] = [
    plain,
    residual,
    padded_shortcut,
    concat_and_split,
    groups_and_depthwise,
    squeeze_and_excite,
    flattened,
    attention_heads,
    joint_heads,
    one_channel_gates_all,
    mask_of_a_product,
    operands_of_products,
    channels_become_the_batch,
]


def named(g: Graph) -> Graph:
    """Products by number, so that they can be found again."""
    count = iter(range(1000))
    products = ("Conv", "MatMul")
    return substitute(g, lambda n: replace(n, name=f"p{next(count)}") if n.op in products else n)


def run(g: Graph, seed: int = 5) -> list[Array]:
    rng = np.random.default_rng(seed)
    feed = {i.name: rng.standard_normal(i.type.dims).astype(np.float32) for i in g.inputs}
    return list(evaluate(g, feed).values())


def size(g: Graph) -> int:
    return sum(n.type.size for n in g.nodes if n.is_constant and n.dtype == "float32")


@pytest.mark.parametrize("network", NETWORKS, ids=lambda f: f.__name__)
def test_a_smaller_graph_gives_what_the_whole_one_gives_without_those_channels(
    network: Callable[[], Graph],
) -> None:
    """Without: readers' weights on them are zero."""
    whole = named(network())
    labels = label(whole)
    groups = labels.groups()
    assert groups, "nothing can go"
    kept = np.ones(len(labels.parents), bool)
    for group in groups:
        kept[RNG.permutation(group)[: max(1, len(group) // 3)]] = False
    small, _ = without(whole, labels, kept)
    assert size(small) < size(whole)

    def silenced(node: Node) -> Node:
        ids = next((i for n, i in labels.reads.items() if n.name == node.name and n.name), None)
        if ids is None:
            return node
        w = node.operands[1].array.copy()
        gone = ~kept[labels.roots(ids)]
        if node.op == "Conv":
            w[:, gone] = 0
        else:
            w[gone] = 0
        return node.with_inputs([node.inputs[0], constant(w), *node.inputs[2:]])

    for a, b in zip(run(small), run(substitute(whole, silenced)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_channels_that_something_needs_whole_stay() -> None:
    normal = make("LayerNormalization", WORDS, weights(16), weights(16), axis=-1)
    inner = make("Gelu", make("MatMul", normal, weights(16, 32)))
    outer = make("Add", WORDS, make("MatMul", inner, weights(32, 16)))
    labels = label(graph(outer, source=WORDS))
    assert [len(g) for g in labels.groups()] == [32], "the sum meets the input, which stays"
    made = next(iter(labels.makes.values()))
    assert FIXED not in labels.roots(made).tolist()


def test_shapes_fall_into_runs_of_axes() -> None:
    assert factors((2, 48), (2, 3, 4, 4)) == [([0], [0]), ([1], [1, 2, 3])]
    assert factors((2, 12, 1, 1), (2, 12)) == [([0], [0]), ([1, 2, 3], [1])]
    assert factors((6, 4), (4, 6)) == [([0, 1], [0, 1])]


# Masks and what weights are worth.


def test_the_price_of_a_weight_is_what_no_other_choice_of_the_rest_saves() -> None:
    """Optimal Brain Surgeon against least squares, weight by weight."""
    x = RNG.standard_normal((200, 6)) @ RNG.standard_normal((6, 6))
    w = RNG.standard_normal((1, 3, 6))
    h = x.T @ x / 200
    found = importance(w, h[None], "second_order")
    h = h + 0.01 * np.diag(h).mean() * np.eye(6)
    for o in range(3):
        for k in range(6):
            rest = np.arange(6) != k
            best = np.linalg.solve(h[np.ix_(rest, rest)], h[rest] @ w[0, o])
            e = np.where(rest, np.insert(best, k, 0), 0) - w[0, o]
            np.testing.assert_allclose(found[0, o, k], e @ h @ e, rtol=1e-6)


def test_masks_keep_the_best_of_each_pattern() -> None:
    scores = RNG.random((32, 8, 9))
    assert mask(scores, Pattern(), 0.75).mean() == 0.25
    kept = mask(scores, Pattern(keep=2, of=4), 0)
    runs = kept.reshape(32, 2, 4, 9)
    assert (runs.sum(2) == 2).all()
    worst = np.where(runs, scores.reshape(runs.shape), 1).min(2)
    assert (worst > np.where(runs, 0, scores.reshape(runs.shape)).max(2)).all()
    blocks = mask(scores, Pattern(16, 4), 0.5).reshape(2, 16, 2, 4, 9)
    assert (blocks.all((1, 3)) | ~blocks.any((1, 3))).all()
    assert blocks.mean() == 0.5


def test_a_pattern_is_what_is_written_or_refused() -> None:
    for text in ("element", "2:4", "16x4"):
        assert str(Pattern.read(text)) == text
    for text in ("4:2", "0x4", "half"):
        with pytest.raises(Error, match="no pattern"):
            Pattern.read(text)


def test_one_threshold_takes_the_worst_of_all_layers() -> None:
    a, b = (make("MatMul", WORDS, weights(16, 8, seed=i)) for i in range(2))
    scores = {a: RNG.random((8, 16, 1)), b: 10 * RNG.random((8, 16, 1))}
    levels = global_levels(scores, Pattern(), 0.5, 1.0)
    every = np.sort(np.concatenate([s.reshape(-1) for s in scores.values()]))
    for node, s in scores.items():
        assert levels[node] == np.mean(s < every[128])
    held = global_levels(scores, Pattern(), 0.5, 0.75)
    assert held[a] == 0.75
    assert held[b] == pytest.approx(0.25, abs=0.01)


def test_sensitive_layers_lose_less() -> None:
    a, b = (make("MatMul", WORDS, weights(16, 8, seed=i)) for i in range(2))
    w = weights(8, 16).array.astype(np.float64)[:, :, None]
    curves = {
        a: curve(w, np.eye(16), w * w, Pattern()),
        b: curve(w, np.diag(np.r_[np.ones(4), np.zeros(12)]), w * w, Pattern()),
    }
    assert np.all(np.diff(curves[a]) >= 0)
    levels = sensitive_levels(curves, {a: 128, b: 128}, 0.5)
    assert np.mean(list(levels.values())) == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize("rows", [3, 40], ids=["directly", "by conjugate gradients"])
def test_what_stays_is_the_least_squares_solution(rows: int) -> None:
    x, noise = RNG.standard_normal((500, 12)), RNG.standard_normal((500, rows))
    w = RNG.standard_normal((rows, 12))
    y = x @ w.T + noise
    kept = RNG.random((rows, 12)) < 0.6
    made = solve(w, x.T @ x / 500, y.T @ x / 500, kept, ridge=1e-12)
    assert not made[~kept].any()
    for r in range(rows):
        best = np.linalg.lstsq(x[:, kept[r]], y[:, r], rcond=None)[0]
        np.testing.assert_allclose(made[r, kept[r]], best, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", [residual, joint_heads])
def test_of_the_whole_network_repair_leaves_every_weight(network: Callable[[], Graph]) -> None:
    """Of every sample some columns only: inputs and wanted outputs must be of the same places."""
    whole = named(network())
    other, new = copied(whole)
    products = [n for n in whole.nodes if n.op in ("Conv", "MatMul") and n.operands[1].is_constant]
    twins = {new[n]: Twin(n, np.arange(n.type.dims[1 if n.op == "Conv" else -1])) for n in products}
    made = recover(
        whole, other, twins, data(whole, 40).samples, lambda n, s, w: nearest(0.5 * w, s), columns=3
    )
    assert error(whole, made) < 1e-3


def test_few_columns_are_trusted_less() -> None:
    rng = np.random.default_rng(2)
    w, x = rng.standard_normal((1, 3, 12)), rng.standard_normal((1, 16, 12))
    y = rng.standard_normal((1, 16, 3))
    second = np.einsum("gnk,gnl->gkl", x, x) / 16
    cross = np.einsum("gno,gnk->gok", y, x) / 16
    nothing = np.zeros((1, 12)), np.zeros(3), np.ones(3)
    few, many = (nearest(w, Seen(second, cross, *nothing, n)) for n in (16, 16_000))
    assert np.square(few - w).sum() < np.square(many - w).sum()
    assert Seen(second, cross, *nothing, 16_000).ridge == RIDGE


# The passes.


def data(g: Graph, count: int = 12) -> Calibration:
    rng = np.random.default_rng(3)
    return Calibration(
        [
            {i.name: rng.standard_normal(i.type.dims).astype(np.float32) for i in g.inputs}
            for _ in range(count)
        ]
    )


def error(a: Graph, b: Graph) -> float:
    x, y = run(a)[0], run(b)[0]
    return float(np.square(x - y).sum() / np.square(x).sum())


@pytest.mark.parametrize("network", [plain, residual, groups_and_depthwise, flattened])
@pytest.mark.parametrize("name", ["prune_channels", "prune_weights"])
def test_repaired_is_nearer_to_the_whole_than_merely_cut(
    network: Callable[[], Graph], name: str
) -> None:
    whole = named(network())
    given = {"sparsity": 0.5, "importance": "magnitude"}
    if name == "prune_weights":
        given["elements"] = 1
    cut = stages.build(name, {**given, "recovery": "none"}, data=data(whole))(whole)
    repaired = stages.build(name, given, data=data(whole))
    made = repaired(whole)
    assert repaired(made) is made, "twice is once"
    assert error(whole, made) < error(whole, cut)
    assert size(made) == size(cut)


@pytest.mark.parametrize("network", [residual, attention_heads])
@pytest.mark.parametrize("name", ["prune_channels", "prune_weights"])
def test_several_steps_take_as_much_and_stay_fitted(
    network: Callable[[], Graph], name: str
) -> None:
    whole = named(network())
    given = {"sparsity": 0.5, "importance": "magnitude"}
    if name == "prune_weights":
        given["elements"] = 1
    cut = stages.build(name, {**given, "recovery": "none"}, data=data(whole))(whole)
    once = stages.build(name, given, data=data(whole))(whole)
    made = stages.build(name, {**given, "steps": 3}, data=data(whole))(whole)
    assert size(made) == size(once) == size(cut)
    zeros = [
        sum(int((n.array == 0).sum()) for n in g.nodes if n.is_constant and n.type.rank > 1)
        for g in (once, made)
    ]
    assert zeros[0] == zeros[1]
    assert error(whole, made) < error(whole, cut)
    with pytest.raises(Error, match="0 steps"):
        stages.build(name, {"steps": 0}, data=data(whole))(whole)


def test_products_that_keep_all_channels_say_why() -> None:
    told: dict[str, str] = {}
    whole = named(residual())
    explain = lambda rule, node, reason: told.setdefault(node.name, reason)  # noqa: E731
    stages.build("prune_channels", {}, explain=explain)(whole)
    last = [n.name for n in whole.nodes if n.op == "MatMul"]
    assert list(told) == last, "its outputs are the model's"
    assert "need all of its channels" in told[last[0]]


@pytest.mark.parametrize(
    ("kind", "recovery"),
    [("activation", "least_squares"), ("second_order", "least_squares"), ("activation", "none")],
)
@pytest.mark.parametrize("name", ["prune_channels", "prune_weights"])
def test_channels_and_weights_that_are_never_fed_go_first(
    name: str, kind: str, recovery: str
) -> None:
    """Large weights that read nothing but zeros are worth nothing."""
    silent = np.arange(16) % 2 == 0
    first = conv(IMAGE, 16)
    w, b = first.operands[1].array.copy(), np.ones(16, np.float32)
    w[silent], b[silent] = 0, 0
    x = make("Relu", first.with_inputs([IMAGE, constant(w), constant(b)]))
    wide = weights(24, 16, 3, 3).array * np.where(silent, 3, 1)[None, :, None, None]
    second = make("Conv", x, constant(wide.astype(np.float32)), pads=(1,) * 4, name="second")
    whole = graph(head(make("Relu", second)))
    options = {"sparsity": 0.5, "importance": kind, "recovery": recovery, "include": ("Conv",)}
    if name == "prune_channels":
        options["exclude"] = ("second",)
    else:
        options["include"] = ("second",)
    made = stages.build(name, options, data=data(whole))(whole)
    assert error(whole, made) < 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"scope": "global"},
        {"scope": "sensitivity", "importance": "second_order"},
        {"recovery": "compensate"},
        {"pattern": "2:4", "recovery": "compensate"},
        {"pattern": "8x4", "importance": "activation"},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_every_way_takes_as_much_as_was_asked_for(options: dict[str, object]) -> None:
    whole = named(plain())
    made = stages.build("prune_weights", {**options, "elements": 1}, data=data(whole))(whole)
    products = [n for n in made.nodes if n.op in ("Conv", "MatMul")]
    zeros = sum(int((n.operands[1].array == 0).sum()) for n in products if n.op != "x")
    total = sum(n.operands[1].type.size for n in products)
    assert 0.35 < zeros / total <= 0.58
    assert error(whole, made) < 0.6


def test_statistics_keeps_the_mean_and_spread_of_every_channel() -> None:
    whole = named(plain())
    samples = data(whole)
    made = stages.build("prune_weights", {"recovery": "statistics", "elements": 1}, data=samples)
    seen = []
    for g in (whole, made(whole)):
        rows: dict[str, list[Array]] = {}

        def observe(node: Node, array: Array, rows: dict[str, list[Array]] = rows) -> None:
            if node.op == "Conv":
                rows.setdefault(node.name, []).append(
                    np.moveaxis(array, 1, -1).reshape(-1, array.shape[1])
                )

        for sample in samples.samples:
            evaluate(graph(*g.outputs), sample, lambda n, a, f=observe: f(n, a))
        seen.append(np.concatenate(rows["p0"]))
    np.testing.assert_allclose(seen[0].mean(0), seen[1].mean(0), atol=1e-4)
    np.testing.assert_allclose(seen[0].std(0), seen[1].std(0), rtol=1e-3)


def test_what_stays_whole_says_why() -> None:
    told: list[str] = []
    whole = named(groups_and_depthwise())
    stages.build("prune_weights", {"pattern": "2:4"}, None, lambda *a: told.append(a[2]))(whole)
    assert any("channels has one input" in t for t in told)
    assert any("no multiple of 4" in t for t in told)
    assert any("has only" in t for t in told)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("prune_weights", {"sparsity": 1.0}, "not in"),
        ("prune_weights", {"recovery": "least_squares"}, "needs calibration"),
        ("prune_weights", {"scope": "random"}, "unknown choice"),
        ("prune_channels", {"importance": "second_order"}, "needs calibration"),
        ("prune_channels", {"importance": "taste"}, "unknown choice"),
    ],
)
def test_impossible_wishes_are_refused(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(Error, match=words):
        stages.build(name, options)(plain())


# As people ask for it.


def test_wishes_become_passes() -> None:
    assert pruning(["channels:0.25", "2:4"], ["Conv"], []) == {
        "prune_channels": {"sparsity": 0.25, "include": ("Conv",), "exclude": ()},
        "prune_weights": {"pattern": "2:4", "include": ("Conv",), "exclude": ()},
    }
    for wish in ("half", "channels:2", "magnitude:", "magnitude:1", "3x:0.5"):
        with pytest.raises(Error, match="cannot read"):
            pruning([wish], [], [])
    with pytest.raises(Error, match="once more"):
        pruning(["2:4", "block:0.5"], [], [])


def test_pruned_models_compile_to_kernels_that_skip_and_files_that_are_smaller(
    tmp_path: Path,
) -> None:
    wide = make("Relu", conv(make("Relu", conv(IMAGE, 64)), 64))
    whole = graph(head(make("Relu", conv(wide, 64))))
    samples = list(data(whole).samples)
    artifact = compile(
        write(whole),
        prune=["channels:0.25", "block:0.75"],
        calibration=samples,
        precision="int8",
        threads=1,
    )
    kernels = [s.kernel for s in artifact.manifest.variants[0].steps]
    assert any(k.startswith("sparse_") for k in kernels), kernels
    assert "pruned_channels" in artifact.manifest.notes
    assert "pruned_weights" in artifact.manifest.notes
    plain_file = artifact.save(tmp_path / "plain.qc")
    small_file = artifact.save(tmp_path / "small.qc", compress=True)
    assert small_file.stat().st_size < 0.7 * plain_file.stat().st_size
    want, got = (load(f).run(samples[0]) for f in (plain_file, small_file))
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)
