"""One foreign tar on its way to the record of a shard."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from data_prep.adopted.labels import class_number
from data_prep.adopted.links import Place
from data_prep.adopted.members import ForeignSample, Member, read_members
from data_prep.errors import DataError, refused
from data_prep.jobs.record import RejectedRow, SampleRow, ShardResult, Timings
from data_prep.jobs.write import printable
from data_prep.plan import UNLABELLED_SPLIT, clip_key
from data_prep.video.clip import EncodeSettings, PreparedClip, ProbeRequest, RejectedClip
from data_prep.video.picture import PICTURE_VERSION

SETTINGS = EncodeSettings()
"""Of these, the limits on frames and the short side apply to adopted videos."""


class Identity(NamedTuple):
    """What distinguishes equal names of different data sets and splits."""

    dataset: str
    split: str


class _Video(NamedTuple):
    member: Member
    label: str | None


FindLabel = Callable[[ForeignSample], str]
"""Returns the label of a sample as text. Raises `ValueError` with the reason if it has none."""


class AdoptedTar:
    """A tar whose samples were read; `number` gives them classes, `result` makes the record."""

    def __init__(self, place: Place, identity: Identity, find_label: FindLabel | None) -> None:
        """Read the members and, unless `find_label` is None, the label of every sample.

        Raises `DataError` for a damaged tar.
        """
        self.place, self._identity = place, identity
        self._state = self._stat()
        self._videos: list[_Video] = []
        self._labels: list[int] = []
        self._rejected: list[RejectedRow] = []
        for sample in read_members(place.tar):
            self._add(sample, find_label)

    def _add(self, sample: ForeignSample, find_label: FindLabel | None) -> None:
        if sample.fault is not None:
            self._reject(sample.key, *sample.fault)
            return
        if sample.video is None:
            self._reject(sample.key, "unpaired", f"{', '.join(sample.labels)} without a video")
            return
        try:
            label = None if find_label is None else find_label(sample)
        except ValueError as error:
            if self._identity.split != UNLABELLED_SPLIT or sample.labels:
                self._reject(sample.video.name, "no_label", str(error))
                return
            label = None
        self._videos.append(_Video(sample.video, label))

    @property
    def labels(self) -> list[str]:
        return [video.label for video in self._videos if video.label is not None]

    def number(self, classes: Mapping[str, int]) -> None:
        """Give every video the number of its class; those of unknown classes are rejected."""
        known, self._labels = [], []
        for video in self._videos:
            label = -1 if video.label is None else class_number(video.label, classes)
            if label is None:
                self._reject(video.member.name, "unknown_class", f"label {video.label!r}")
                continue
            known.append(video)
            self._labels.append(label)
        self._videos = known

    def __len__(self) -> int:
        return len(self._videos)

    def plan(self) -> str:
        """The sha256 of all that determines the record; call it after `number`."""
        videos = [
            (video.member.name, video.member.offset, video.member.size, label)
            for video, label in self._pairs()
        ]
        content = [self._identity, self.place.tar.name, self._state, PICTURE_VERSION, videos]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def requests(self) -> Iterator[ProbeRequest]:
        for video in self._videos:
            member = video.member
            yield ProbeRequest(str(self.place.tar), member.offset, member.size, SETTINGS)

    def result(self, answers: Iterator[PreparedClip | RejectedClip]) -> ShardResult:
        """Make the record from the answers to the requests, and hash the tar.

        Raises `DataError` when the tar has changed since its members were read.
        """
        began = time.monotonic()
        rows = []
        for video, label in self._pairs():
            answer = next(answers)
            if isinstance(answer, RejectedClip):
                self._reject(video.member.name, answer.code, answer.detail)
            else:
                rows.append(self._row(video.member, label, answer))
        with self.place.tar.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if self._stat() != self._state:
            raise DataError(f"{self.place.tar}: changed while it was read; adopt it again")
        return ShardResult(
            name=self.place.link.name,
            split=self._identity.split,
            plan=self.plan(),
            samples=len(rows),
            bytes=self._state[0] if rows else 0,
            sha256=digest if rows else "",
            rows=tuple(rows),
            rejected=tuple(self._rejected),
            timings=Timings.since(began),
        )

    def _pairs(self) -> Iterator[tuple[_Video, int]]:
        return zip(self._videos, self._labels, strict=True)

    def _stat(self) -> tuple[int, int]:
        try:
            found = self.place.tar.stat()
        except OSError as error:
            raise refused(error, f"{self.place.tar}: cannot be read") from None
        return found.st_size, found.st_mtime_ns

    def _row(self, member: Member, label: int, probed: PreparedClip) -> SampleRow:
        return SampleRow.of(
            probed,
            key=self._key(member.name),
            offset=member.offset,
            size=member.size,
            label=label,
            source=self._source(member.name),
            source_bytes=member.size,
        )

    def _reject(self, name: str, code: str, detail: str) -> None:
        self._rejected.append(
            RejectedRow(
                key=self._key(name),
                source=self._source(name),
                where=printable(str(self.place.tar)),
                code=code,
                detail=printable(detail),
            )
        )

    def _key(self, name: str) -> str:
        dataset, split = self._identity
        return clip_key(dataset, f"{split}/{self._source(name)}", 0.0, None)

    def _source(self, name: str) -> str:
        return printable(f"{self.place.tar.name}/{name}")
