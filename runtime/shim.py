"""`import qcompiler` -> the runtime, where it alone is installed; installed as `qcompiler.py`.

Python takes a folder `qcompiler` before this file, so where the compiler is installed beside it,
that is what is found: it holds the runtime, too. The finder of an editable install comes later
than this file, and is asked here. So both may be installed, and no file belongs to both.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_FOLDER = Path(__file__).resolve().with_name("_qcompiler_runtime")


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
