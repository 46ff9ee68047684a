"""Random numbers as a pure function of their use, and never of rank, worker or time."""

from __future__ import annotations

import hashlib

import numpy as np


def sample_rng(
    seed: int, epoch: int, key: str, view: int = 0, purpose: str = ""
) -> np.random.Generator:
    """Return the generator for a `purpose` ("frames", "cut", "mix", ...) of a view of a sample.

    The 128-bit Philox key is a hash of all five arguments. Streams of different purposes are
    therefore independent, and a new purpose changes no existing stream.
    """
    name = f"{seed}/{epoch}/{key}/{view}/{purpose}".encode()
    return np.random.Generator(np.random.Philox(key=_philox_key(name)))


def shuffled(count: int, *name: object) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return a permutation of range(count), shape (count,) int64, that depends on `name` only.

    It sorts raw Philox words, a stream that numpy guarantees never to change. A new numpy may
    change `Generator.permutation`, and with it the order of a run that is under way.
    """
    philox = np.random.Philox(key=_philox_key("/".join(map(str, name)).encode()))
    return np.argsort(philox.random_raw(count), kind="stable")


def _philox_key(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
