"""Runs a function on N gloo ranks: its results in rank order, or the first traceback."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from pipeline.training import distributed
from pipeline.training.distributed import World, free_port


def run_on_ranks(
    function: Callable[..., Any], ranks: int, *arguments: object, timeout_s: float = 200
) -> list[Any]:
    """`function(world, *arguments)` on every rank of one machine, each a process of its own.

    `function` stands at the top of a module, since the processes import it. What it returns and
    takes is pickled. One launch costs the imports of `ranks` processes: do much in each.
    """
    spawn = multiprocessing.get_context("spawn")
    port, started = free_port(), []
    for rank in range(ranks):
        ours, theirs = spawn.Pipe(duplex=False)
        process = spawn.Process(
            target=_be_rank, args=(function, rank, ranks, port, theirs, arguments), daemon=True
        )
        process.start()
        theirs.close()
        started.append((process, ours))
    try:
        answers = [_receive(rank, ours, timeout_s) for rank, (_, ours) in enumerate(started)]
    finally:
        for process, _ in started:
            process.join(timeout=5)
            process.kill()
    # One that lost its peer says little; the peer says why.
    errors = [error for _, error in answers if error is not None]
    if errors:
        raise AssertionError("\n".join(errors))
    return [result for result, _ in answers]


def _receive(rank: int, pipe: Connection, timeout_s: float) -> tuple[Any, str | None]:
    try:
        if pipe.poll(timeout_s):
            answer: tuple[Any, str | None] = pickle.loads(pipe.recv_bytes())
            return answer
    except EOFError:
        return None, f"rank {rank} died without a word"
    return None, f"rank {rank} said nothing for {timeout_s:g} s"


def _be_rank(
    function: Callable[..., Any],
    rank: int,
    ranks: int,
    port: int,
    answer: Connection,
    arguments: tuple[object, ...],
) -> None:
    env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    os.environ |= {name: str(value) for name, value in (env | {"MASTER_PORT": port}).items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    result, error = None, None
    try:
        world: World = distributed.join(timeout_s=60)
        result = function(world, *arguments)
        distributed.leave()
    except BaseException:
        error = f"rank {rank}: {traceback.format_exc()}"
    # As bytes: a pipe's own pickling would leave tensors in shared memory of a process that ends.
    answer.send_bytes(pickle.dumps((result, error)))
