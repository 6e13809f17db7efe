"""The energy that a GPU takes, by NVML, which comes with NVIDIA's driver; optional.

NVML counts GPUs in another order than CUDA does, so a GPU is found by its place on the bus.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from qcompiler.errors import Error
from qcompiler.runtime.cuda import driver

LIBRARY = "libnvidia-ml.so.1"


def counter(gpu: driver.Gpu) -> Callable[[], int] | None:
    """A GPU -> what tells the millijoules that it has taken since its driver was loaded; None where
    there is no NVML, or it does not know (chips of boards, GPUs before Volta).
    """
    bus = ctypes.create_string_buffer(32)
    try:
        library = ctypes.CDLL(LIBRARY)
        gpu.call("cuDeviceGetPCIBusId", bus, ctypes.c_int(len(bus)), ctypes.c_int(gpu.device))
        handle, found = ctypes.c_void_p(), ctypes.c_ulonglong()
        failed = (
            library.nvmlInit_v2()
            or library.nvmlDeviceGetHandleByPciBusId_v2(bus, ctypes.byref(handle))
            or library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(found))
        )
    except (OSError, AttributeError, Error):
        return None
    if failed:
        return None

    def told() -> int:
        status = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(found))
        if status:
            raise Error(f"NVML does not tell the energy any more ({status})")
        return int(found.value)

    return told
