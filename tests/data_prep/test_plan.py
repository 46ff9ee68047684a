"""The plan is a pure function, complete and without repeats."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from data_prep.annotation import Annotation, Listing
from data_prep.plan import clip_key, plan_shards

CLASSES = ("a", "b", "c")
_annotations = st.builds(
    Annotation,
    path=st.sampled_from([f"{n}.mp4" for n in range(12)]),
    label=st.sampled_from([*CLASSES, "unknown", None]),
    split=st.sampled_from(["train", "val", "test"]),
    trim_start_s=st.sampled_from([0.0, 1.0]),
    where=st.integers(1, 99).map("list.csv:{}".format),
)


@given(st.lists(_annotations, max_size=40), st.integers(1, 7))
def test_every_row_is_planned_once_or_a_problem(rows: list[Annotation], size: int) -> None:
    plan = plan_shards(Listing(rows, [], CLASSES), dataset="d", clips_per_shard=size)
    keys = [clip.key for shard in plan.shards for clip in shard.clips]
    assert len(keys) == len(set(keys))
    # A conflict costs both rows: the repeat is listed, and the first one as well.
    assert len(keys) + len(plan.problems) == len(rows)
    for shard in plan.shards:
        assert 1 <= len(shard.clips) <= size
    sizes = {len(shard.clips) for shard in plan.shards if shard.split == "train"}
    assert not sizes or max(sizes) - min(sizes) <= 1


@given(st.lists(_annotations, max_size=30), st.integers(1, 7), st.randoms())
def test_the_order_of_rows_does_not_matter(
    rows: list[Annotation], size: int, random: Random
) -> None:
    """Holds for rows that are all usable and distinct; of repeats, the first stays by design."""
    unique = {(row.path, row.trim_start_s): row for row in rows}
    usable = [row for row in unique.values() if row.label in CLASSES]
    shuffled = list(usable)
    random.shuffle(shuffled)
    first = plan_shards(Listing(usable, [], CLASSES), dataset="d", clips_per_shard=size)
    second = plan_shards(Listing(shuffled, [], CLASSES), dataset="d", clips_per_shard=size)
    assert first.shards == second.shards


def test_problems_are_named() -> None:
    rows = [
        Annotation("a.mp4", "a", "train", where="f:1"),
        Annotation("a.mp4", "a", "train", where="f:2"),
        Annotation("a.mp4", "a", "val", where="f:3"),
        Annotation("b.mp4", "a", "train", where="f:4"),
        Annotation("b.mp4", "b", "train", where="f:5"),
        Annotation("c.mp4", "z", "train", where="f:6"),
        Annotation("d.mp4", None, "train", where="f:7"),
        Annotation("e.mp4", None, "test", where="f:8"),
    ]
    plan = plan_shards(Listing(rows, [], CLASSES), dataset="d", clips_per_shard=10)
    assert {(p.where, p.code) for p in plan.problems} == {
        ("f:2", "duplicate_row"),
        ("f:3", "in_other_split"),
        ("f:4", "conflicting_labels"),
        ("f:5", "conflicting_labels"),
        ("f:6", "unknown_class"),
        ("f:7", "no_label"),
    }
    planned = {s.split: [(c.path, c.label) for c in s.clips] for s in plan.shards}
    assert planned == {"train": [("a.mp4", 0)], "test": [("e.mp4", -1)]}


def test_keys_are_stable() -> None:
    """The key is written down here, because a change would orphan every existing shard."""
    assert clip_key("k400", "a/b.mp4", 0.0, None) == "9ccac77c0a46833c22c86652aa01e74a"
    assert clip_key("k400", "a/b.mp4", 0.0, 10.0) != clip_key("k400", "a/b.mp4", 0.0, None)
