"""What the CUDA driver is asked for, told by a driver that only notes it down."""
# ruff: noqa: N802  (the names are the driver's)

import ctypes
from typing import Any

import pytest
import torch

from model.scan.cuda import launch
from model.scan.problem import ScanError


class Driver:
    """Notes down calls; ``status`` is what launches answer."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.status = 0

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:
        function._obj.value = 1000 + len(name)
        self.calls.append(("find", (name,)))
        return 0

    def cuFuncSetAttribute(self, function: Any, attribute: int, value: int) -> int:
        self.calls.append(("allow", (attribute, value)))
        return 0

    def cuCtxGetCurrent(self, context: Any) -> int:
        context._obj.value = 7
        return 0

    def cuLaunchKernel(self, function: Any, *arguments: Any) -> int:
        *grid, shared, stream, parameters, _ = arguments
        value = ctypes.cast(parameters[0], ctypes.POINTER(Parameters)).contents.length
        self.calls.append(("launch", (function.value, *grid, shared, stream.value, value)))
        return self.status

    def cuGetErrorString(self, status: int, text: Any) -> int:
        text._obj.value = b"out of resources"
        return 0


class Parameters(ctypes.Structure):
    _fields_ = [("length", ctypes.c_int)]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr(launch, "_driver", lambda: driver)
    monkeypatch.setattr(
        torch._C, "_cuda_getCurrentRawStream", lambda index: 40 + index, raising=False
    )
    return driver


@pytest.fixture
def kernels(driver: Driver) -> launch._OnDevice:
    loaded = object.__new__(launch._OnDevice)
    loaded._index, loaded._module, loaded._functions = 2, launch.Pointer(5), {}
    return loaded


def test_a_launch_goes_to_the_current_stream_with_its_parameters(
    driver: Driver, kernels: launch._OnDevice
) -> None:
    for length in (3, 4):
        kernels.launch("walk", 9, 64, 512, Parameters(length))
    grid = (9, 1, 1, 64, 1, 1, 512, 42)
    assert driver.calls == [
        ("find", (b"walk",)),
        ("launch", (1004, *grid, 3)),
        ("launch", (1004, *grid, 4)),
    ]


def test_more_shared_memory_is_asked_for_once(driver: Driver, kernels: launch._OnDevice) -> None:
    for shared in (48 * 1024, 70_000, 60_000, 80_000):
        kernels.launch("walk", 1, 64, shared, Parameters(1))
    asked = [arguments for call, arguments in driver.calls if call == "allow"]
    assert asked == [(8, 70_000), (8, 80_000)]


def test_a_failed_launch_says_what_was_asked_for(driver: Driver, kernels: launch._OnDevice) -> None:
    driver.status = 701
    with pytest.raises(
        ScanError, match=r"launch walk of 5 blocks, 64 threads, 0 bytes: out of resources \(701\)"
    ):
        kernels.launch("walk", 5, 64, 0, Parameters(1))
