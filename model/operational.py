"""The mark of a configuration field that is not part of what a run is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Operational:
    """Mark of a field that changes how a run goes, not its result: `Annotated[int, OPERATIONAL]`.

    A run may be resumed with another value. A field without the mark is part of what the run is.
    """


OPERATIONAL = Operational()
