"""The directory of a study: its design, one file per finished unit, rendered clips and claims.

```
DIR/design.json
DIR/units/<unit>.json    written when the unit has finished, and never changed
DIR/clips/               rendered clips
DIR/claims/              which process trains what; see data_prep.jobs.claims
```
"""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import ValidationError

from data_prep.durable import publish
from pipeline.errors import ConfigError
from pipeline.study.design import Arm, Design, Settings, Unit
from pipeline.study.train import Result


class Store:
    """The files of one study.

    Raises ConfigError when the directory holds another study, or a file that cannot be read.
    """

    def __init__(self, folder: Path, design: Design) -> None:
        self.folder = folder
        self.design = design
        self.clips = folder / "clips"
        self.claims = folder / "claims"
        self._units = folder / "units"
        self._known: dict[str, Result] = {}

    @classmethod
    def make(cls, folder: Path, design: Design) -> Store:
        """Open a directory for this design, new or begun."""
        path = folder / "design.json"
        if path.exists():
            if read_design(folder) != design:
                raise ConfigError(
                    f"{folder}: holds a study of another design; choose another directory, or "
                    "run this one with the version that began it"
                )
        else:
            try:
                for part in ("units", "claims", "clips"):
                    (folder / part).mkdir(parents=True, exist_ok=True)
                publish(path, design.model_dump_json(indent=1).encode())
            except (FileExistsError, NotADirectoryError, PermissionError) as error:
                raise ConfigError(
                    f"{folder}: cannot be written ({error.strerror}); choose another directory"
                ) from None
        return cls(folder, design)

    def result(self, unit: Unit) -> Result | None:
        """The result of a unit; None when it has not finished."""
        if unit.name not in self._known:
            path = self._units / f"{unit.name}.json"
            try:
                text = path.read_text()
            except FileNotFoundError:
                return None
            try:
                self._known[unit.name] = Result.model_validate_json(text)
            except ValidationError:
                raise ConfigError(
                    f"{path}: is damaged; delete it, and the study trains that unit again"
                ) from None
        return self._known[unit.name]

    def keep(self, result: Result) -> None:
        publish(self._units / f"{result.unit.name}.json", result.model_dump_json().encode())

    def results(self) -> list[Result]:
        """The results of all finished units, in the order of the design."""
        found = (self.result(unit) for unit in self.design.units())
        return [result for result in found if result is not None]

    def chosen(self, data: str, arm: Arm) -> Settings | None:
        """The settings of highest validation accuracy; None until the whole grid has finished."""
        tuned = [self.result(unit) for unit in self.design.tuning(data, arm)]
        finished = [result for result in tuned if result is not None]
        return None if len(finished) < len(tuned) else best_settings(finished)


def best_settings(tuned: list[Result]) -> Settings:
    """Highest validation accuracy, then lowest validation loss, then the first of the grid."""

    def merit(result: Result) -> tuple[float, float]:
        loss = result.val_loss if math.isfinite(result.val_loss) else math.inf
        return result.val_top1, -loss

    return max(tuned, key=merit).settings


def read_design(folder: Path) -> Design:
    """Raises ConfigError when `folder` holds no study."""
    path = folder / "design.json"
    try:
        return Design.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"{folder}: holds no study (no design.json); `vmp study ablation {folder}` begins one"
        ) from None
    except ValidationError:
        raise ConfigError(f"{path}: is not the design of a study of this version") from None
