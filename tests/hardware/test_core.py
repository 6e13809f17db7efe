"""A core's facts are read from a device's file, checked, and decide which tiles are chosen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler import load, plugins
from qcompiler.driver import Compilation
from qcompiler.emit.assemble import assemble
from qcompiler.emit.machine import target
from qcompiler.errors import Error, Skip
from qcompiler.hardware.core import REFERENCE, Core
from qcompiler.hardware.isa import ISAS, Cpu, host
from qcompiler.ir import Type, placeholder
from qcompiler.kernels.cpu.contraction import blocking
from qcompiler.kernels.cpu.contraction.operands import Product, product_of
from qcompiler.kernels.cpu.contraction.problem import Problem, problem_of
from qcompiler.ops import make
from qcompiler.options import Options

plugins.load_all()
SMALL = Path(__file__).with_name("small_core.toml")


def described(tmp_path: Path, core: str) -> Path:
    path = tmp_path / "mine.toml"
    sizes = "threads = 1\nl1_bytes = 32768\nl2_bytes = 262144\nl3_bytes = 8388608\n"
    path.write_text(f'isa = "x86_avx2"\n{sizes}{core}\n')
    return path


def product(device: Cpu) -> Product:
    found = product_of(device.isa, "float32", "float32", "float32")
    assert found is not None
    return found


def matmul(rows: int, depth: int, width: int, device: Cpu) -> Problem:
    left, right = (
        placeholder(name, Type("float32", dims))
        for name, dims in (("x", (rows, depth)), ("w", (depth, width)))
    )
    root = make("matmul", left, right)
    found = problem_of(root, product(device).mac.lanes, device.core)
    assert not isinstance(found, Skip)
    return found


def test_a_device_without_facts_of_its_core_has_those_of_the_reference(tmp_path: Path) -> None:
    assert plugins.device(str(described(tmp_path, ""))).core == REFERENCE


def test_the_facts_of_a_core_are_read_from_its_table(tmp_path: Path) -> None:
    path = described(tmp_path, "[core]\nwindow = 0\nhz = 1.5e9")
    assert plugins.device(str(path)).core == replace(REFERENCE, window=0, hz=1.5e9)


@pytest.mark.parametrize(
    ("core", "said"),
    [
        ("[core]\nspeed = 3", "unknown fact core.speed"),
        ("[core]\nhz = 0", "core.hz is 0, not above 0"),
        ("[core]\nhz = inf", "core.hz is inf, not above 0"),
        ("[core]\nhz = true", "core.hz is True, not a number"),
        ("[core]\nwindow = 2.5", "core.window is 2.5, not a whole number"),
        ("[core]\nwindow = -1", "core.window is -1, not above 0"),
        ("[core]\nline_bytes = 48", "core.line_bytes is 48, not a power of two"),
        ("[core]\nway_bytes = 32", "core.way_bytes is 32: less than a line"),
        ("core = 3", "core is not a table of facts"),
        ("llvm = 3", "llvm is not words"),
        ('host = "zen4"', "host is not a table of what it has and lacks"),
        ('[host]\nlacks = "amx_tile"', "host is not a table of what it has and lacks"),
        ("[host]\nhas = 3", "host holds what is not words"),
    ],
)
def test_wrong_facts_are_refused_with_the_file(tmp_path: Path, core: str, said: str) -> None:
    path = described(tmp_path, core)
    with pytest.raises(Error) as e:
        plugins.device(str(path))
    assert said in str(e.value)
    assert str(path) in str(e.value)


def test_a_machine_that_is_a_known_device_has_the_facts_of_its_core(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    zen4, here = plugins.device("zen4"), replace(host(), isa=ISAS["x86_avx512bf16"])
    assert zen4.core.macs_per_cycle < REFERENCE.macs_per_cycle
    monkeypatch.setattr(plugins, "host", lambda threads: here)
    for more, core in (("", zen4.core), ("avx_vnni", REFERENCE), ("amx_tile", REFERENCE)):
        flags = "avx512_bf16 avx512_vbmi2 clzero fma " + more
        monkeypatch.setattr(plugins, "features", lambda flags=flags: frozenset(flags.split()))
        assert plugins.device("host") == replace(here, core=core)
    here = replace(here, isa=ISAS["x86_avx2"])  # whose vectors are shorter: other rates
    assert plugins.device("host") == here


def test_a_device_may_say_more_to_llvm_than_its_instruction_set(tmp_path: Path) -> None:
    plain, more = (
        plugins.device(str(described(tmp_path, words)))
        for words in ("", 'llvm = "znver1 +slow-3ops-lea"')
    )
    assert isinstance(plain, Cpu)
    assert isinstance(more, Cpu)
    assert more.isa.llvm == (*plain.isa.llvm, "znver1", "+slow-3ops-lea")
    assert replace(more.isa, llvm=plain.isa.llvm) == plain.isa
    text = str(target(more.isa))
    assert "znver1" in text
    assert "+slow-3ops-lea" in text


def test_a_small_core_in_order_chooses_other_tiles() -> None:
    small = plugins.device(str(SMALL), 1)
    wide = replace(small, core=REFERENCE)
    shapes = [(64, 64, 64), (197, 384, 384), (196, 256, 1024), (3136, 64, 64), (1, 512, 1000)]
    tiles = {}
    for device in (small, wide):
        problems = [matmul(*shape, device) for shape in shapes]
        found = [blocking.priced(p, product(device), device) for p in problems]
        tiles[device.core] = [min(f, key=lambda p: p[0])[1] for f in found]
    assert tiles[small.core] != tiles[REFERENCE]
    blocks = {core: found[1] for core, found in tiles.items()}  # 197 x 384 by 384
    narrow, usual = blocks[small.core], blocks[REFERENCE]
    # Fetching is added to the arithmetic: panels that stay in the first-level cache are best.
    assert narrow.vectors < usual.vectors


def test_tasks_share_the_third_cache() -> None:
    """Panels of two tasks that only one by one would stay there are read from memory again."""
    costs = []
    for size in (12, 24):  # MiB; each task's panels have 8
        device = replace(plugins.device("zen4", 2), l3_bytes=size << 20)
        assert isinstance(device, Cpu)
        found = blocking.priced(matmul(512, 2048, 2048, device), product(device), device)
        low = {t: c for c, t in found if (t.column_tasks, t.block) == (2, 1)}
        assert low
        costs.append(low)
    assert all(costs[0][t] > costs[1][t] for t in costs[0])


def test_in_order_products_wait_for_what_their_step_loads() -> None:
    """The wait is the same for every tile, so a product's share of it falls with the tile."""
    late = Core(window=0)
    assert late.step_cycles(1, 2, 6) == late.load_latency_cycles + 0.5
    few, many = (late.step_cycles(n, 1, 1) / n for n in (2, 12))
    assert many < few
    assert REFERENCE.step_cycles(12, 1, 1) / 12 == REFERENCE.step_cycles(2, 1, 1) / 2


def test_in_order_nothing_is_computed_while_a_line_is_awaited() -> None:
    assert Core(window=0).overlapped(10.0, 10.0) == 20.0
    assert REFERENCE.overlapped(10.0, 10.0) == 11.0


def layers() -> onnx.ModelProto:
    """A convolution, a product and a normalization, of sizes that have faster ways than usual."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 18]>
        g (float[1,32,28,28] x, float[256,4096] a) => (y, z) {
            y = Conv<pads = [1, 1, 1, 1]>(x, w)
            b = MatMul(a, m)
            z = LayerNormalization(b, s)
        }
    """)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (32, 32, 3, 3)), ("m", (4096, 1024)), ("s", (1024,))):
        weights = rng.standard_normal(shape).astype(np.float32) / 16
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    return model


@pytest.mark.parametrize("line_bytes", [32, 128])
@pytest.mark.parametrize("precision", ["float32", "int8-dynamic"])
def test_cache_lines_of_another_size_change_where_values_lie_and_no_result(
    tmp_path: Path, precision: str, line_bytes: int
) -> None:
    rng = np.random.default_rng(1)
    feeds = {
        "x": rng.standard_normal((1, 32, 28, 28)).astype(np.float32),
        "a": rng.standard_normal((256, 4096)).astype(np.float32),
    }
    found, room = [], []
    for size in (64, line_bytes):
        path = described(tmp_path, f"[core]\nline_bytes = {size}\nprefetch_bytes = {size * 64}")
        text = path.read_text().replace("x86_avx2", host().isa.name)
        path.write_text(text.replace("l2_bytes = 262144", "l2_bytes = 2097152"))
        options = Options(target=str(path), precision=precision, threads=2)
        made = Compilation(layers(), options).plan
        names = " ".join(s.kernel.name for s in made.steps)
        assert precision != "float32" or ("winograd" in names and "strassen" in names)
        found.append(load(assemble(made)).run(feeds))
        room.append([s.scratch for s in made.steps])
    assert precision != "float32" or room[0] != room[1]
    for name, want in found[0].items():
        np.testing.assert_allclose(found[1][name], want, rtol=1e-4, atol=1e-4)


def test_whole_and_odd_lines() -> None:
    core = Core(line_bytes=32)
    assert [core.whole_lines(n) for n in (0, 1, 32, 33)] == [0, 32, 32, 64]
    assert [core.odd_lines(n) for n in (1, 32, 33, 65)] == [32, 32, 96, 96]


def test_work_of_a_slower_clock_is_shared_sooner() -> None:
    slow = replace(REFERENCE, hz=1.5e9)
    assert slow.mixed_ns(100.0) == slow.product_ns(100.0) == 200.0
    assert slow.worth_sharing == REFERENCE.worth_sharing / 2
