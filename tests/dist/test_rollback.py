"""A run whose loss spikes goes back and leaves batches out, as if it had never seen them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline import rundir
from pipeline.audit.audit import audit
from pipeline.audit.result import Verdict
from pipeline.checkpoint import layout
from pipeline.data.shards import open_shards
from pipeline.errors import NonFiniteError, SpikeError, UnstableError
from pipeline.rundir import LeftOutBatch, Rollback, StopClass, append_rollback, read_rollbacks
from pipeline.rundir.metrics import read_metrics
from pipeline.rundir.samples import read_samples
from pipeline.training import distributed
from pipeline.training.distributed import World
from pipeline.training.recorder import Recorder
from pipeline.training.trainer import Trainer
from tests import runs
from tests.dist import training
from tests.ranks import run_on_ranks

pytestmark = [pytest.mark.dist, pytest.mark.slow]

STEPS = 18
SETTINGS: dict[str, object] = {
    "stability__rollback": "true",
    "stability__window_steps": 10,
    "stability__threshold": 4,
    "stability__min_rise": 0.3,
    "stability__checkpoint_every_steps": 5,
    "schedule__max_steps": STEPS,
    "checkpoint__every_steps": 100,
    "checkpoint__keep_last": 1,
    "eval__every_epochs": 100,
}
BAD = {12: 3.0}
"""Step 12 ruins the weights, so the losses of steps 13, 14 and 15 are spikes."""
LEFT_OUT = (12, 13, 14, 15)


class KilledError(RuntimeError):
    """What stands for a kill: nothing is done after it."""


class Ended(NamedTuple):
    """A run that has ended, as every rank sees it."""

    run_dir: Path
    end: StopClass | None = None
    error: str = ""
    error_type: str = ""


def run(
    world: World, root: Path, shards: Path, name: str, bad: dict[int, float], **fields: object
) -> Ended:
    run_dir = training.prepare(world, root, shards, name, **SETTINGS | fields)
    try:
        end, _ = training.train(world, run_dir, bad)
    except UnstableError as error:
        return Ended(run_dir, None, str(error), type(error).__name__)
    return Ended(run_dir, end.stop_class)


def killed_at(
    world: World, root: Path, shards: Path, name: str, owner: Any, function: str, *, after: bool
) -> Ended:
    """Kill a run before or after a call of `owner.function`, then resume it."""
    work: Callable[..., Any] = getattr(owner, function)

    def die(*arguments: Any, **named: Any) -> None:
        if after:
            work(*arguments, **named)
        raise KilledError

    run_dir = training.prepare(world, root, shards, name, **SETTINGS)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        training.train(world, run_dir, BAD, lambda _: patch.setattr(owner, function, die))
    return run(world, root, shards, name, BAD)


def stopped_at(world: World, root: Path, shards: Path, name: str, step: int) -> Ended:
    """Ask a run to stop in `step`; it saves."""

    def ask(trainer: Trainer) -> None:
        lr = trainer.schedule.lr

        def lr_and_ask(at: int) -> float:
            if at == step:
                trainer.stopper._note(15, None)
            return lr(at)

        trainer.schedule.lr = lr_and_ask  # type: ignore[method-assign]

    run_dir = training.prepare(world, root, shards, name, **SETTINGS)
    end, _ = training.train(world, run_dir, BAD, ask)
    assert layout.step_of(rundir.committed(run_dir / rundir.CHECKPOINTS)[-1]) == step + 2
    return Ended(run_dir, end.stop_class)


def never_saw_them(world: World, root: Path, shards: Path, stage: int) -> Ended:
    """A run that leaves the same batches out from its beginning, and has no bad step."""
    name = f"innocent-{stage}"
    fields = SETTINGS | {"engine__zero_stage": stage}
    run_dir = training.prepare(world, root, shards, name, **fields)
    batches = tuple(LeftOutBatch(step=step, keys=()) for step in LEFT_OUT)
    given = Rollback(step=15, to_step=10, reason="given", batches=batches)
    distributed.on_main(lambda: append_rollback(run_dir, given))
    return run(world, root, shards, name, {}, engine__zero_stage=stage)


def two_ranks(world: World, root: Path, shards: Path) -> dict[str, Ended]:
    found = {}
    for stage in (1, 3):  # test_engine.py rewinds an engine at all of them
        if stage == 3:
            # Before it, because DeepSpeed's stage 3 changes torch's linear layer for good.
            found |= killed_and_stopped(world, root, shards)
        found[f"innocent-{stage}"] = never_saw_them(world, root, shards, stage)
        name = f"spiked-{stage}"
        found[name] = run(world, root, shards, name, BAD, engine__zero_stage=stage)
    return found


def killed_and_stopped(world: World, root: Path, shards: Path) -> dict[str, Ended]:
    found = {}
    places: list[tuple[Any, str, bool]] = [
        (rundir, "append_rollback", False),
        (rundir, "append_rollback", True),
        (Recorder, "rewind", True),
    ]
    for number, (owner, function, after) in enumerate(places):
        name = f"killed-{number}"
        found[name] = killed_at(world, root, shards, name, owner, function, after=after)
    # Checkpoints that a stop wrote between the target and the spike must not attract the rollback.
    stopped_at(world, root, shards, "stopped", 11)
    found["stopped"] = run(world, root, shards, "stopped", BAD)
    stopped_at(world, root, shards, "elsewhere", 12)
    return found


def one_rank(world: World, root: Path, shards: Path) -> dict[str, Ended]:
    bad_again = BAD | {17: 3.0}
    more = {"schedule__max_steps": 22}
    found = {
        "elsewhere": run(world, root, shards, "elsewhere", BAD),
        "twice": run(world, root, shards, "twice", bad_again, **more),
        "once": run(world, root, shards, "once", bad_again, **more, stability__max_rollbacks=1),
        "raised": run(world, root, shards, "once", bad_again, **more, stability__max_rollbacks=2),
        "nan": run(world, root, shards, "nan", {13: 1e30}),
        "off": run(world, root, shards, "off", {13: 1e30}, stability__rollback="false"),
        "early": run(world, root, shards, "early", {0: 1e30}),
    }
    (root / "twice" / rundir.ROLLBACKS_FILE).rename(root / "log")
    (root / "twice" / rundir.SUMMARY_FILE).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"lists 0 rollbacks, and checkpoint .* after 2: put"):
        run(world, root, shards, "twice", bad_again, **more)
    (root / "log").rename(root / "twice" / rundir.ROLLBACKS_FILE)
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def on_two(root: Path, glyph_shards: Path) -> dict[str, Ended]:
    first, second = run_on_ranks(two_ranks, 2, root, glyph_shards)
    assert first == second
    return dict(first)


@pytest.fixture(scope="module")
def on_one(root: Path, glyph_shards: Path, on_two: dict[str, Ended]) -> dict[str, Ended]:
    (found,) = run_on_ranks(one_rank, 1, root, glyph_shards)
    return dict(found)


def trained_steps(run_dir: Path) -> list[int]:
    return list(read_samples(run_dir))


@pytest.mark.parametrize("stage", [1, 3])
def test_the_run_ends_as_if_it_had_never_seen_the_batches(
    on_two: dict[str, Ended], stage: int
) -> None:
    spiked, innocent = on_two[f"spiked-{stage}"], on_two[f"innocent-{stage}"]
    assert spiked.end is innocent.end is StopClass.FINISHED
    runs.assert_bitwise_equal(runs.final_state(innocent.run_dir), runs.final_state(spiked.run_dir))
    (made,) = read_rollbacks(spiked.run_dir)
    assert (made.step, made.to_step) == (15, 10)
    assert tuple(batch.step for batch in made.batches) == LEFT_OUT
    assert "3 in a row" in made.reason


def test_batches_left_out_are_listed_and_not_counted_as_seen(
    on_two: dict[str, Ended], glyph_shards: Path
) -> None:
    run_dir = on_two["spiked-1"].run_dir
    assert trained_steps(run_dir) == [s for s in range(STEPS) if s not in LEFT_OUT]
    (made,) = read_rollbacks(run_dir)
    shards = open_shards(str(glyph_shards), "train")
    order = shards.order(0, 1)  # eight batches an epoch: step 12 is the fifth of epoch 1
    assert made.batches[0].keys == tuple(s.key for s in shards.samples(order[48:60]))
    for epoch in range(STEPS // 8):
        steps = range(epoch * 8, epoch * 8 + 8)
        seen = [key for step in steps for key in read_samples(run_dir).get(step, [])]
        seen += [key for batch in made.batches if batch.step in steps for key in batch.keys]
        assert len(seen) == len(set(seen)) == 96
    rows = {row["step"]: row for row in read_metrics(run_dir) if row["kind"] == "train"}
    assert list(rows) == list(range(1, STEPS + 1))
    assert all(("loss" in rows[step + 1]) == (step not in LEFT_OUT) for step in range(STEPS))
    assert (rows[STEPS]["rollbacks"], rows[STEPS]["left_out_steps"]) == (1, 4)


def test_the_audit_proves_a_run_with_rollbacks(
    on_two: dict[str, Ended], on_one: dict[str, Ended]
) -> None:
    for name, left_out in (("spiked-1", 4), ("killed-1", 4), ("stopped", 4)):
        found = audit(on_two[name].run_dir, quick=True)
        assert (found.verdict, found.left_out_steps) == (Verdict.PROVEN, left_out), found.reason
        assert found.reason.startswith("each of 14 committed steps saw exactly the 12 samples")
        assert found.reason.endswith("; 4 steps are left out")
    assert audit(on_one["elsewhere"].run_dir, quick=True).verdict is Verdict.PROVEN
    run_dir = on_one["raised"].run_dir
    log = run_dir / rundir.ROLLBACKS_FILE
    whole = log.read_bytes()
    log.write_bytes(b"")  # without the list, the steps have lost their samples
    assert audit(run_dir, quick=True).verdict is Verdict.DISPROVEN
    log.write_bytes(whole)


@pytest.mark.parametrize("name", [*(f"killed-{n}" for n in range(3)), "stopped"])
def test_a_kill_in_the_middle_of_a_rollback_changes_no_bit(
    on_two: dict[str, Ended], name: str
) -> None:
    killed, spiked = on_two[name].run_dir, on_two["spiked-1"].run_dir
    runs.assert_bitwise_equal(runs.final_state(spiked), runs.final_state(killed))
    assert read_samples(killed) == read_samples(spiked)
    assert [r.model_dump(exclude={"time"}) for r in read_rollbacks(killed)] == [
        r.model_dump(exclude={"time"}) for r in read_rollbacks(spiked)
    ]


def test_another_world_size_decides_the_same(
    on_one: dict[str, Ended], on_two: dict[str, Ended]
) -> None:
    """Stopped on two ranks in the middle of the row of spikes, resumed on one."""
    there, here = on_two["spiked-1"].run_dir, on_one["elsewhere"].run_dir
    assert read_samples(there) == read_samples(here)
    difference = runs.largest_relative_difference(runs.final_state(there), runs.final_state(here))
    assert difference < 1e-5


def test_rollbacks_are_bounded_and_the_bound_can_be_raised(on_one: dict[str, Ended]) -> None:
    once = on_one["once"]
    assert once.error_type == SpikeError.__name__
    assert "all stability.max_rollbacks=1 rollbacks are made, see" in once.error
    assert "\n" not in once.error
    twice, raised = on_one["twice"], on_one["raised"]
    assert len(read_rollbacks(twice.run_dir)) == 2
    runs.assert_bitwise_equal(runs.final_state(twice.run_dir), runs.final_state(raised.run_dir))
    assert trained_steps(raised.run_dir) == trained_steps(twice.run_dir)


def test_numbers_that_are_not_finite_are_rolled_back_too(on_one: dict[str, Ended]) -> None:
    nan = on_one["nan"]
    assert nan.end is StopClass.FINISHED
    (made,) = read_rollbacks(nan.run_dir)
    assert [batch.step for batch in made.batches] == [13, 14]
    assert made.reason.startswith("loss or gradients are not finite at step 14")
    assert on_one["off"].error_type == NonFiniteError.__name__


def test_a_spike_before_the_first_interval_goes_back_to_the_very_beginning(
    on_one: dict[str, Ended],
) -> None:
    (made,) = read_rollbacks(on_one["early"].run_dir)
    assert (made.step, made.to_step) == (1, 0)
    assert trained_steps(on_one["early"].run_dir) == list(range(2, STEPS))
