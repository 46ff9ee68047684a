"""`vmp bench stream`: whether a stream's memory and speed stay the same over many frames."""

from __future__ import annotations

import gc
import time
from typing import NamedTuple

import psutil
import torch
from rich.table import Table

from model import Stream, create_model

_ROUNDS = 10


class Round(NamedTuple):
    """What is measured after a tenth of the frames."""

    frames: int
    frames_per_s: float
    carried_bytes: int
    resident_bytes: int
    """Of the process."""


def measure(preset: str, frames: int, device: str) -> list[Round]:
    """Push random frames one by one through a fresh model of `preset`, in ten rounds."""
    torch.manual_seed(0)
    net = create_model(preset, direction="forward").to(device).eval()
    stream, process = Stream(net), psutil.Process()
    size, tubelet = net.config.img_size, net.config.tubelet_size
    frame = torch.randn(1, 3, tubelet, size, size, device=device)
    stream.push(frame)  # builds kernels
    rounds = []
    for number in range(1, _ROUNDS + 1):
        begin = time.perf_counter()
        for _ in range(frames // _ROUNDS):
            stream.push(frame).cpu()
        seconds = time.perf_counter() - begin
        gc.collect()
        resident = process.memory_info().rss
        done = frames // _ROUNDS * number
        speed = frames // _ROUNDS * tubelet / seconds
        rounds.append(Round(done * tubelet, speed, stream.nbytes(), resident))
    return rounds


def bench_stream(preset: str, frames: int, device: str) -> Table:
    """Measure and tabulate."""
    table = Table("frames", "frames/s", "carried, bytes", "process, MiB")
    for each in measure(preset, frames, device):
        table.add_row(
            f"{each.frames:,}",
            f"{each.frames_per_s:.0f}",
            f"{each.carried_bytes:,}",
            f"{each.resident_bytes / 2**20:.1f}",
        )
    return table
