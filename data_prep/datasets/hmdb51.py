"""HMDB51: the files `<class>_test_split<F>.txt` of `testTrainMulti_7030_splits`.

A line is `<file> <use>`: 1 means training, 2 means test (the split `val` here), and 0 means that
only other divisions use the file. Videos lie in `<class>/<file>` below the video directory.
"""

from __future__ import annotations

from data_prep.annotation import Annotation, Listing, Problem
from data_prep.datasets.inputs import Inputs, read_lines, require_annotations
from data_prep.errors import DataError

_USES = {"1": "train", "2": "val"}
_UNUSED = "0"


def read(inputs: Inputs) -> Listing:
    """Read one division. Classes are sorted by name."""
    root = require_annotations(inputs, "the directory testTrainMulti_7030_splits")
    ending = f"_test_split{inputs.fold}.txt"
    lists = sorted(root.glob(f"*{ending}"))
    if not lists:
        raise DataError(f"--annotations {root}: no file called <class>{ending}")
    annotations: list[Annotation] = []
    problems: list[Problem] = []
    for path in lists:
        label = path.name.removesuffix(ending)
        for number, line in enumerate(read_lines(path), 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            name, _, use = line.strip().rpartition(" ")
            if use in _USES and name.strip():
                video = f"{label}/{name.strip()}"
                annotations.append(Annotation(video, label, _USES[use], where=where))
            elif use != _UNUSED or not name.strip():
                problems.append(Problem(where, "malformed", f"expected '<file> 0|1|2': {line!r}"))
    classes = tuple(path.name.removesuffix(ending) for path in lists)
    return Listing(annotations, problems, classes)
