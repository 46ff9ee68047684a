"""`vmp doctor` proves that optional packages load, and says how to get what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.commands import doctor


def test_a_package_that_is_installed_but_does_not_load_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_kernels.py").write_text("raise ImportError('undefined symbol: c10_cuda')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(
        doctor, "EXTRAS", [doctor.Extra("broken_kernels", "a peer", "make kernels")]
    )

    (finding,) = doctor._optional()

    assert finding.state == "note"
    assert "does not load" in finding.text
    assert "undefined symbol: c10_cuda" in finding.text
    assert "make kernels" in finding.text


def test_an_absent_package_names_its_use_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = doctor.Extra("no_such_package", "a faster cache", "apt-get install libthat")
    monkeypatch.setattr(doctor, "EXTRAS", [extra])

    (finding,) = doctor._optional()

    assert finding.state == "note"
    assert all(part in finding.text for part in extra)


def test_the_scan_is_that_of_the_device_that_training_would_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def backends(device: str) -> tuple[str, ...]:
        asked.append(device)
        return ("chunked", "reference")

    monkeypatch.setattr(doctor, "available_backends", backends)
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor.cuda, "why_unavailable", lambda device: "it needs cuda-core")
    scan, note = doctor._kernels()
    assert asked == ["cuda"]
    assert scan.text == "scan on cuda: chunked (also reference)"
    assert (note.state, note.text) == ("note", "no fused scan on this GPU: it needs cuda-core")

    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    _, note = doctor._kernels()
    assert asked == ["cuda", "cpu"]
    assert "no C++ compiler" in note.text
