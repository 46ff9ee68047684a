"""Random numbers as a pure function of what they are for, never of rank, worker or time."""

from __future__ import annotations

import hashlib

import numpy as np


def sample_rng(
    seed: int, epoch: int, key: str, view: int = 0, purpose: str = ""
) -> np.random.Generator:
    """The generator for one `purpose` ("frames", "crop", "mix", ...) of one view of one sample.

    The 128-bit Philox key is a hash of all five arguments, so streams of different purposes are
    independent and adding a purpose changes no other.
    """
    name = f"{seed}/{epoch}/{key}/{view}/{purpose}".encode()
    return np.random.Generator(np.random.Philox(key=_philox_key(name)))


def shuffled(count: int, *name: object) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A permutation of range(count), shape (count,) int64, that depends on `name` only.

    Sorts raw Philox words: numpy keeps that stream for ever, while it may improve
    `Generator.permutation` and so change an order in the middle of somebody's run.
    """
    philox = np.random.Philox(key=_philox_key("/".join(map(str, name)).encode()))
    return np.argsort(philox.random_raw(count), kind="stable")


def _philox_key(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
