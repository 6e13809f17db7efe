"""`import qcompiler` -> the runtime, unless the compiler is installed too; installed as
`qcompiler.py`.

Python prefers a folder `qcompiler` to this file, so an installed compiler is found first, which
includes the runtime. The finder of an editable install comes after this file, so it is asked here.
Thus both may be installed, and no file belongs to both.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_FOLDER = Path(__file__).resolve().with_name("_qcompiler")


def _spec() -> ModuleSpec:
    for finder in sys.meta_path:
        found = finder.find_spec("qcompiler", None)
        if found is not None and found.submodule_search_locations is not None:
            return found
    found = spec_from_file_location(
        "qcompiler", _FOLDER / "__init__.py", submodule_search_locations=[str(_FOLDER)]
    )
    assert found is not None
    return found


_found = _spec()
_module = sys.modules["qcompiler"] = module_from_spec(_found)
assert _found.loader is not None
_found.loader.exec_module(_module)

if __name__ == "__main__":  # python -m qcompiler
    from qcompiler.cli import main

    sys.exit(main())
