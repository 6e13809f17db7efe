"""How many processors a process may use: its affinity, and the time its control groups give it."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest

from qcompiler.hardware import cpu


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root folder with these files of /proc and /sys."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_no_control_groups_are_no_limit(tmp_path: Path) -> None:
    assert cpu.quota(tmp_path) == inf


def test_the_least_of_a_group_and_those_around_it_counts(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/cpu.max": "max 100000\n",
        "sys/fs/cgroup/pods/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/pods/one/cpu.max": "400000 100000\n",
    }
    assert cpu.quota(machine(tmp_path, "0::/pods/one\n", files)) == 1.5


def test_the_first_version_of_control_groups_is_read(tmp_path: Path) -> None:
    at = "sys/fs/cgroup/cpu,cpuacct"
    files = {
        f"{at}/cpu.cfs_quota_us": "-1\n",
        f"{at}/cpu.cfs_period_us": "100000\n",
        f"{at}/docker/one/cpu.cfs_quota_us": "200000\n",
        f"{at}/docker/one/cpu.cfs_period_us": "100000\n",
    }
    groups = "5:memory:/docker/one\n4:cpu,cpuacct:/docker/one\n"
    assert cpu.quota(machine(tmp_path, groups, files)) == 2.0


@pytest.mark.parametrize("text", ["", "max", "a b", "100000 0"])
def test_what_is_not_understood_is_no_limit(tmp_path: Path, text: str) -> None:
    files = {"sys/fs/cgroup/cpu.max": text}
    assert cpu.quota(machine(tmp_path, "0::/\n", files)) == inf


@pytest.mark.parametrize(("share", "cores"), [(0.3, 1), (1.9, 1), (2.0, 2)])
def test_part_of_a_processor_is_no_core(
    share: float, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "quota", lambda: share)
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert cpu.cores() == cores
