"""`vmp data shard` on more than forty files that break video pipelines.

Each is in the shards, upright and with the right frame count, or in the quarantine for the right
reason. `VMP_UPDATE_DOCS=1 pytest <this file>` rewrites the table in docs/data.md.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.options import ShardConfig
from data_prep.sealed.verify import verify
from data_prep.shard import shard
from pipeline.data import DataError
from pipeline.predict import decode_all
from tests.data_prep.torture_files import CASES

DOCS = Path(__file__).parents[2] / "docs/data.md"
BEGIN, END = "<!-- torture table: begin -->", "<!-- torture table: end -->"
# Quadrants of every made picture when upright: red, green, blue, white, row by row.
CORNERS = np.array([[230, 30, 30], [30, 200, 30], [30, 30, 230], [235, 235, 235]])
REAL = {
    "arm_wrestling.mp4": 280,
    "nasa_13013.mp4": 390,
    "nasa_13013_rotated.mp4": 17,
    "skeleton_demo.mp4": 72,
    "spatiotemporal_demo.mp4": 57,
    "structuralize.mp4": 300,
    "test.avi": 164,
}
NAMES = {os.fsencode(case.name).decode("utf-8", "backslashreplace"): case.name for case in CASES}
"""As printed -> as on the disk."""


@dataclass(frozen=True)
class Torture:
    files: Path
    expected: dict[str, dict[str, Any]]
    """What `torture_files.py` says that each file must become."""
    found: dict[str, dict[str, Any]]
    """Row of the index with its video, or line of the quarantine."""


@pytest.fixture(scope="module")
def torture(tmp_path_factory: pytest.TempPathFactory, real_videos: Path) -> Torture:
    videos, out = tmp_path_factory.mktemp("torture") / "files", tmp_path_factory.mktemp("shards")
    maker = Path(__file__).with_name("torture_files.py")
    subprocess.run([sys.executable, str(maker), str(videos)], check=True, capture_output=True)
    expected = json.loads((videos / "expected.json").read_text())
    for name in REAL:
        shutil.copy(real_videos / name, videos / "any" / name)
    config = ShardConfig(
        format="folder",
        videos=videos,
        out=str(out),
        max_missing=0.5,
        clips_per_shard=20,
        decoders=2,
    )
    shard(config, show_progress=False)
    assert verify(str(out), workers=1, show_progress=False).findings == []
    found: dict[str, dict[str, Any]] = {}
    for row in pq.read_table(out / "index.parquet").to_pylist():
        with (out / row["shard"]).open("rb") as tar:
            tar.seek(row["offset"])
            row["video"] = tar.read(row["size"])
        found[row["source"].removeprefix("any/")] = row
    for line in (out / "quarantine.jsonl").read_text().splitlines():
        row = json.loads(line)
        found[row["source"].removeprefix("any/")] = row
    return Torture(videos, expected, found)


def test_every_file_is_accounted_for(torture: Torture) -> None:
    assert len(torture.expected) >= 40
    assert set(torture.found) == set(torture.expected) | set(REAL)


def test_every_file_becomes_what_it_should(torture: Torture) -> None:
    expected = {name: case["outcome"] for name, case in torture.expected.items()} | REAL
    outcomes = {name: row.get("code", row.get("frames")) for name, row in torture.found.items()}
    assert outcomes == expected


def test_what_was_kept_is_decodable_and_upright(torture: Torture) -> None:
    checked = 0
    for name, row in torture.found.items():
        if "code" in row:
            continue
        with av.open(io.BytesIO(row["video"])) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == row["frames"], name
        height, width = frames[0].shape[:2]
        assert height % 2 == width % 2 == 0, name
        assert min(height, width) <= 256, name
        if not torture.expected.get(name, {"upright": False})["upright"]:
            continue
        rows, columns = (height // 4, height * 3 // 4), (width // 4, width * 3 // 4)
        patches = [frames[-1][y - 2 : y + 3, x - 2 : x + 3] for y in rows for x in columns]
        means = np.array([patch.reshape(-1, 3).mean(0) for patch in patches])
        nearest = np.abs(means[:, None] - CORNERS[None]).sum(-1).argmin(1)
        assert nearest.tolist() == [0, 1, 2, 3], name
        checked += 1
    assert checked >= 35


def test_prediction_shows_what_the_shard_stores(torture: Torture) -> None:
    """The same size, way up, colours and number of frames; the difference is compression."""
    for name, row in torture.found.items():
        path = Path(os.fsdecode(torture.files / "any" / NAMES.get(name, name)))
        if "code" in row:
            if row["code"] not in ("too_short", "unknown_suffix"):
                with pytest.raises(DataError):
                    decode_all(path)
            continue
        with av.open(io.BytesIO(row["video"])) as container:
            stored = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
        shown = decode_all(path)
        assert shown.shape == stored.shape, name
        assert np.abs(shown.astype(float) - stored).mean() < 12, name
        assert np.abs(shown.mean((0, 1, 2)) - stored.mean((0, 1, 2))).max() < 3, name


def test_the_table_in_the_docs_is_this_one(torture: Torture) -> None:
    lines = ["| file | outcome |", "|---|---|"]
    for name in [*torture.expected, *REAL]:
        row = torture.found[name]
        shown = name if len(name) < 60 else name[:30] + " ..."
        shown = shown.replace("|", "\\|").replace("\n", "\\n")
        if "code" in row:
            lines.append(f"| `{shown}` | left out: `{row['code']}` |")
        else:
            size = f"{row['width']}x{row['height']}"
            plural = "" if row["frames"] == 1 else "s"
            lines.append(f"| `{shown}` | {row['frames']} frame{plural}, {size} |")
    table = "\n".join(lines)
    text = DOCS.read_text()
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    if os.environ.get("VMP_UPDATE_DOCS"):
        DOCS.write_text(f"{head}{BEGIN}\n{table}\n{END}{tail}")
    assert DOCS.read_text().split(BEGIN)[1].split(END)[0].strip() == table
