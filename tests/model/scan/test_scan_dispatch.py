"""Bad requests to the scan end in one clear line."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model.scan import (
    ScanError,
    available_backends,
    bidirectional_scan,
    cuda,
    dispatch,
    selective_scan,
)
from model.scan.cuda import compile as cuda_compile
from model.scan.native import library

Make = Callable[..., dict[str, Tensor]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"u": torch.zeros(2, 3)},
            r"u is \(2, 3\) float32; it must be \(batch, channels, tokens\)",
        ),
        ({"u": torch.zeros(2, 5, 0)}, r"u is \(2, 5, 0\)"),
        ({"A": torch.zeros(4, 4)}, r"A is \(4, 4\) float32; u asks for \(5, state size\)"),
        ({"B": torch.zeros(2, 4, 8)}, r"B is \(2, 4, 8\) float32; .* \(2, 4, 7\)"),
        ({"D": torch.zeros(4)}, r"D is \(4,\) float32; .* \(5,\)"),
        ({"z": torch.zeros(2, 5, 7, dtype=torch.long)}, r"z is .* int64; it must be floating"),
        ({"C": torch.zeros(2, 4, 7, device="meta")}, "C is on meta, u is on cpu"),
        ({"initial_state": "one"}, "initial_state is 'one'"),
        ({"backend": "gpu"}, "no backend 'gpu'; choose one of auto, "),
        ({"backend": "cuda"}, "'cuda' cannot run on cpu here: it needs an NVIDIA GPU"),
    ],
)
def test_bad_arguments(random_scan: Make, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = random_scan((2, 5, 7, 4))
    del arguments["A_b"]
    with pytest.raises(ScanError, match=message):
        selective_scan(**(arguments | change))


def test_every_available_backend_runs(random_scan: Make) -> None:
    tensors = random_scan((1, 5, 7, 4))
    outs = [bidirectional_scan(**tensors, backend=name) for name in available_backends()]
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0])


def test_double_precision_is_kept(random_scan: Make) -> None:
    tensors = random_scan((1, 5, 7, 4), dtype=torch.float64)
    auto = bidirectional_scan(**tensors)
    reference = bidirectional_scan(**tensors, backend="reference")
    torch.testing.assert_close(auto, reference, rtol=1e-12, atol=1e-12)


def test_without_a_compiler_it_warns_once_and_falls_back(
    random_scan: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from model.scan.native import build

    caches = (library.builds, build.build_library, dispatch._say_once)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.INFO):
        assert "cpu" not in available_backends()
        for _ in range(2):
            bidirectional_scan(**random_scan((1, 5, 7, 4)))
        with pytest.raises(ScanError, match=r"needs .* C\+\+ compiler"):
            bidirectional_scan(**random_scan((1, 5, 7, 4)), backend="cpu")
    for cache in caches:
        cache.cache_clear()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "no-such-compiler" in warnings[0].getMessage()
    assert "chunked" in caplog.text


def test_the_log_names_the_backend_that_is_used_and_once(
    random_scan: Make, caplog: pytest.LogCaptureFixture
) -> None:
    dispatch._say_once.cache_clear()
    arguments = random_scan((1, 2, 3, 2))
    del arguments["A_b"]
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            selective_scan(**arguments, backend="reference")
    assert [record.message for record in caplog.records] == [
        "scan on cpu uses the reference backend"
    ]


def test_the_device_of_the_tensors_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may have an old GPU beside a new one, whichever of them is current."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(7, 5), (9, 0)][index])
    monkeypatch.setattr(cuda_compile, "why_unavailable", lambda: None)
    cuda._why_unavailable.cache_clear()
    old, new = (torch.device("cuda", index) for index in (0, 1))
    assert available_backends(new)[0] == "cuda"
    assert "cuda" not in available_backends(old)
    assert "not sm_75" in (cuda.why_unavailable("cuda") or "")
    cuda._why_unavailable.cache_clear()
