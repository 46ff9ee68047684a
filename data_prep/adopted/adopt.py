"""Implements `vmp data adopt`: indexes foreign tars where they lie, and seals the result.

No tar is copied or changed. With `out`, links with plain names point at the tars. Every video is
decoded once, in processes that may die of it. A killed call goes on with the tars that have no
record yet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.progress import track

from data_prep.adopted.labels import choose_classes, label_text
from data_prep.adopted.links import Place, places
from data_prep.adopted.seal import known_manifest, seal_split
from data_prep.adopted.tar import AdoptedTar, Identity
from data_prep.errors import DataError, refused
from data_prep.jobs.pool import Caps, ClipPool
from data_prep.jobs.record import ShardResult, read_result, record_name
from data_prep.plan import UNLABELLED_SPLIT
from data_prep.schema import Manifest, SplitName
from data_prep.storage import DirectoryStore, Store
from data_prep.video.clip import PreparedClip, RejectedClip
from data_prep.workdir import NAME as WORK_NAME
from data_prep.workdir import Workdir


class AdoptConfig(BaseModel):
    """The tars, the place of the index, and the labels of one `vmp data adopt`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Path
    """A directory of tars, or one tar."""
    out: Path | None = None
    """Directory of the index, with links to the tars; by default the directory of the tars."""
    split: SplitName = "train"
    dataset: str = ""
    """Part of every key; the name of the shard directory by default."""
    label_key: str | None = None
    """Field of the json member that holds the label; None = the cls or txt member holds it."""
    unlabelled: bool = False
    """Whether to read no labels at all; only the split `test` may lack them."""
    classes: tuple[str, ...] | None = None
    """Class names in the order of their numbers; None = those that occur."""
    max_missing: float = Field(default=0.1, ge=0, le=1)
    """Share of the samples that may be unusable."""
    decoders: int | None = Field(default=None, ge=1)
    """Decoding processes; by default one per usable core."""
    caps: Caps = Caps()

    @property
    def root(self) -> Path:
        """The shard directory that results."""
        return self.out or (self.source if self.source.is_dir() else self.source.parent)


def adopt(config: AdoptConfig, *, show_progress: bool = True) -> Manifest:
    """Index the tars of one split, beside the other splits that the directory may hold.

    Raises `DataError` for bad input and when too many samples are unusable.
    """
    if config.unlabelled and config.split != UNLABELLED_SPLIT:
        raise DataError(f"--unlabelled: only the split {UNLABELLED_SPLIT!r} may lack labels")
    found = places(config.source, config.out, config.split)
    workdir = Workdir(config.root / WORK_NAME)
    try:
        workdir.root.mkdir(exist_ok=True)
    except OSError as error:
        raise refused(error, f"{config.root}: cannot be written; give another --out") from None
    with workdir.alone():
        return _adopt(config, found, show_progress)


def _adopt(config: AdoptConfig, found: list[Place], show_progress: bool) -> Manifest:
    root = config.root
    store = DirectoryStore(root)
    names = [place.link.name for place in found]
    known = known_manifest(store, str(root), config.split, names)
    identity = Identity(config.dataset or root.resolve().name, config.split)
    find_label = None if config.unlabelled else partial(label_text, key=config.label_key)
    tars = [AdoptedTar(place, identity, find_label) for place in found]
    classes = choose_classes(
        [label for tar in tars for label in tar.labels],
        given=config.classes,
        known=None if known is None else known.classes,
        source=config.source,
    )
    numbers = {name: number for number, name in enumerate(classes)}
    for tar in tars:
        tar.number(numbers)
        tar.place.make_link()
    results = list(_results(tars, config, store, show_progress))
    return seal_split(store, str(root), results, known, identity, classes, config.max_missing)


def _results(
    tars: list[AdoptedTar], config: AdoptConfig, store: Store, show_progress: bool
) -> Iterator[ShardResult]:
    """Yield the record of every tar; decode the videos of those that have none."""
    done = {tar.place: read_result(store, tar.place.link.name, tar.plan()) for tar in tars}
    todo = [tar for tar in tars if done[tar.place] is None]
    requests = [(None, request) for tar in todo for request in tar.requests()]
    with ExitStack() as stack:
        answers: Iterator[PreparedClip | RejectedClip] = iter(())
        if requests:
            decoders = min(config.decoders or len(os.sched_getaffinity(0)), len(requests))
            pool = stack.enter_context(ClipPool[None](decoders, config.caps))
            answers = (answer for _, answer in pool.map(requests))
            if show_progress:
                console = Console(stderr=True)
                answers = iter(track(answers, "decoding", total=len(requests), console=console))
        for tar in tars:
            result = done[tar.place]
            if result is None:
                result = tar.result(answers)
                store.write(record_name(result.name), result.model_dump_json().encode())
            yield result
        next(answers, None)  # the bar of progress ends with its iterator
