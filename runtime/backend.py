"""The files of ../qcompiler that run artifacts -> the wheel `qcompiler-runtime` (PEP 517).

The wheel holds these files in the folder `_qcompiler`, which `shim.py` makes importable as
`qcompiler`; the tree has no copies. Equal files give equal wheels.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "qcompiler"
FOLDER = "_qcompiler"
FILES = (
    "__init__.py",
    "__main__.py",
    "artifact/__init__.py",
    "artifact/abi.py",
    "artifact/artifact.py",
    "artifact/entropy.py",
    "artifact/manifest.py",
    "artifact/members.py",
    "artifact/pieces.py",
    "artifact/program.py",
    "artifact/sizes.py",
    "cli/__init__.py",
    "cli/acting.py",
    "cli/arguments.py",
    "cli/batch.py",
    "cli/commands.py",
    "cli/executing.py",
    "cli/flags.py",
    "cli/gpu.py",
    "cli/inputs.py",
    "cli/places.py",
    "cli/remote.py",
    "cli/serving.py",
    "cli/show.py",
    "cli/using.py",
    "data/__init__.py",
    "data/array_files.py",
    "data/samples.py",
    "dtypes.py",
    "export/__init__.py",
    "export/request.py",
    "errors.py",
    "files.py",
    "hardware/__init__.py",
    "hardware/cpu.py",
    "options.py",
    "py.typed",
    "runtime/*.py",
    "runtime/cuda/*.py",
    "runtime/executor/*.py",
    "runtime/remote/*.py",
    "runtime/serve/*.py",
    "version.py",
)
"""What reading and running artifacts and the command line need; patterns within qcompiler/."""
_DATE = (1980, 1, 1, 0, 0, 0)


def files() -> list[Path]:
    """The files of qcompiler/ that are in the wheel."""
    found = []
    for pattern in FILES:
        fitting = sorted(SOURCE.glob(pattern))
        if not fitting:
            raise FileNotFoundError(f"no {pattern} in {SOURCE}: build it from a clone")
        found += fitting
    return found


def build_wheel(
    wheel_directory: str,
    config_settings: Mapping[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Write the wheel -> its file's name."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stem = f"{project['name'].replace('-', '_')}-{project['version']}"
    name = f"{stem}-py3-none-any.whl"
    record = []
    with zipfile.ZipFile(Path(wheel_directory) / name, "w") as wheel:
        for path, data in _members(project, f"{stem}.dist-info"):
            _write(wheel, path, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{path},sha256={digest},{len(data)}")
        path = f"{stem}.dist-info/RECORD"
        _write(wheel, path, "\n".join([*record, f"{path},,", ""]).encode())
    return name


def build_sdist(sdist_directory: str, config_settings: Mapping[str, Any] | None = None) -> str:
    """Raise UnsupportedOperation: the sources are the compiler's."""
    raise UnsupportedOperation("only a wheel is made of the runtime: pip wheel --no-deps ./runtime")


class UnsupportedOperation(Exception):
    """The exception that PEP 517 requires."""


def _members(project: Mapping[str, Any], facts: str) -> Iterator[tuple[str, bytes]]:
    """A wheel's files except the list of them: paths and bytes."""
    yield "qcompiler.py", (HERE / "shim.py").read_bytes()
    for file in files():
        yield f"{FOLDER}/{file.relative_to(SOURCE).as_posix()}", file.read_bytes()
    yield f"{facts}/LICENSE", (HERE.parent / "LICENSE").read_bytes()
    yield f"{facts}/METADATA", _metadata(project).encode()
    yield f"{facts}/WHEEL", _WHEEL.encode()
    scripts = "".join(f"{name} = {place}\n" for name, place in project["scripts"].items())
    yield f"{facts}/entry_points.txt", f"[console_scripts]\n{scripts}".encode()


_WHEEL = "Wheel-Version: 1.0\nGenerator: qcompiler\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def _metadata(project: Mapping[str, Any]) -> str:
    """METADATA of a version that old devices' pip reads."""
    head = [
        "Metadata-Version: 2.1",
        f"Name: {project['name']}",
        f"Version: {project['version']}",
        f"Summary: {project['description']}",
        f"License: {project['license']}",
        f"Requires-Python: {project['requires-python']}",
        *(f"Requires-Dist: {needed}" for needed in project["dependencies"]),
        "Description-Content-Type: text/markdown",
    ]
    readme = (HERE / project["readme"]).read_text(encoding="utf-8")
    return "\n".join(head) + f"\n\n{readme}"


def _write(wheel: zipfile.ZipFile, path: str, data: bytes) -> None:
    member = zipfile.ZipInfo(path, _DATE)
    member.external_attr = 0o644 << 16
    member.compress_type = zipfile.ZIP_DEFLATED
    wheel.writestr(member, data, compresslevel=9)
