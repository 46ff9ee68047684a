"""The studies that ship: the ablation of VideoMambaPro's two changes, whole and as a short form."""

from __future__ import annotations

from pipeline.study.design import Arm, DataSet, Design, Nuisance

_NEITHER = Arm(layout="shared", start="zero", mask=False)
_BOTH = Arm(layout="shared", start="first_token", mask=True)
_LAST = ("class_token", "last")

CANDIDATES = (
    _NEITHER.with_options(_LAST),
    _NEITHER.with_options(("class_token", "middle")),
    _NEITHER.with_options(("pooling", "mean")),
    _NEITHER.with_options(("bc_init", "fan_in")),
    _NEITHER.with_options(("delta_init", "large")),
    _BOTH.with_options(_LAST),
)

NUISANCES = (
    Nuisance(),
    Nuisance(backend="chunked"),
    Nuisance(backend="reference"),
    Nuisance(precision="bf16"),
    Nuisance(zero_stage=0),
    Nuisance(zero_stage=1),
    Nuisance(zero_stage=2),
    Nuisance(zero_stage=3),
)

FULL = Design(
    title="ablation",
    data={
        "motion": DataSet(kind="motion", frames=8, patch=8, steps=480),
        "events": DataSet(kind="events", frames=16, patch=16, steps=1000),
    },
    learning_rates=(3e-3, 6e-3),
    warmups=(0.1, 0.3),
    candidate_arms=CANDIDATES,
    nuisances=NUISANCES,
)

SHORT = FULL.model_copy(
    update={
        "title": "ablation, short form",
        "data": {
            "motion": DataSet(kind="motion", frames=4, patch=8, steps=4),
            "events": DataSet(kind="events", frames=8, patch=16, steps=4),
        },
        "embed_dim": 16,
        "depth": 1,
        "d_state": 2,
        "batch": 8,
        "train_clips": 40,
        "val_clips": 20,
        "test_clips": 20,
        "learning_rates": (3e-3,),
        "warmups": (0.0, 0.25),
        "seeds": (0, 1),
        "candidate_arms": CANDIDATES[:1],
        "nuisances": NUISANCES[:2],
        "probe_at": (0.0, 1.0),
        "probe_clips": 4,
    }
)
"""Every path of the whole study in seconds; its figures mean nothing."""

DESIGNS = {"full": FULL, "short": SHORT}
