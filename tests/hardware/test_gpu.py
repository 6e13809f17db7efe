"""GPUs as values: their files against their makers' data sheets, and how many blocks fit."""

from pathlib import Path

import pytest

from qcompiler import plugins
from qcompiler.errors import Error
from qcompiler.hardware.gpu import Gpu
from qcompiler.hardware.isa import ISAS, Cpu

SHEETS = {
    "t4": ("sm_75", 8.1, 65, 130, 320),
    "a100": ("sm_80", 19.5, 312, 624, 1555),
    "a10g": ("sm_86", 35, 70, 140, 600),
    "l4": ("sm_89", 30.3, 121, 242, 300),
    "h100": ("sm_90", 62, 989, 1979, 3350),  # 67 at the clock that products of tensors do not reach
    "h200": ("sm_90", 62, 989, 1979, 4800),
    "rtx_4090": ("sm_89", 82.6, 165.2, 660.6, 1008),
    "jetson_orin_gpu": ("sm_87", 5.3, 42.5, 85, 204.8),
}
"""Architecture, TFLOPS in float32 and float16, TOPS in int8 (dense), GB/s."""


@pytest.mark.parametrize("name", SHEETS)
def test_a_gpu_does_what_its_data_sheet_says(name: str) -> None:
    isa, *rates, bandwidth = SHEETS[name]
    gpu = plugins.device(name)
    assert isinstance(gpu, Gpu)
    assert gpu.isa.name == isa
    for dtype, wanted in zip(("f32", "f16", "i8"), rates, strict=True):
        tera = 2e-12 / gpu.multiply_seconds(1, dtype)
        assert tera == pytest.approx(wanted, rel=0.02), dtype
    assert gpu.memory_bytes_per_second == pytest.approx(1e9 * bandwidth)


def test_an_architecture_stands_for_a_gpu_that_has_it() -> None:
    for name in SHEETS.values():
        found = plugins.device(name[0])
        assert isinstance(found, Gpu)
        assert found.name == found.isa.name == name[0]
    assert isinstance(plugins.device("host"), Cpu)


def test_architectures_are_a_family() -> None:
    plugins.load_all()
    found = plugins.names("cuda:all")
    assert found == ["sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_120"]
    assert all(ISAS[n].multiprocessor for n in found)


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks"),
    [
        ("sm_80", 256, 128, 0, 2),  # 65536 registers / (128 x 256)
        ("sm_80", 256, 32, 0, 8),  # 2048 threads
        ("sm_75", 256, 32, 0, 4),  # 1024 threads
        ("sm_80", 32, 16, 0, 32),  # as many blocks as there may be
        ("sm_86", 128, 32, 40 << 10, 2),  # 100 KiB, 1 of each block's is the system's
        ("sm_86", 128, 32, 100 << 10, 0),
        ("sm_90", 128, 32, 100 << 10, 2),
    ],
)
def test_what_limits_the_blocks_of_a_multiprocessor(
    architecture: str, threads: int, registers: int, shared: int, blocks: int
) -> None:
    plugins.load_all()
    sm = ISAS[architecture].multiprocessor
    assert sm is not None
    assert sm.occupancy(threads, registers, shared) == blocks


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('isa = "sm_80"\n[gpu]\nhz = 1e9\n', "gpu.multiprocessors is missing"),
        ('isa = "x86_avx2"\n[gpu]\n', "is no GPU's"),
        ('isa = "sm_80"\nthreads = 3\n[gpu]\n', "unknown fact 'threads'"),
    ],
)
def test_wrong_facts_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(Error, match=reason):
        plugins.device(str(path))
