"""What an exported file says of itself, when somebody else has written it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given

from model import WeightsError, create_model, save_model
from pipeline.errors import ConfigError
from pipeline.inference.exported import CARD_METADATA, read_exported
from tests.fuzz import BOUNDED, damaged_json, value_or_own_error

CARD = {
    "version": 1, "name": "x", "classes": ["a", "b", "c", "d", "e"], "sampling": "dense",
    "stride": 2, "mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2], "clips": 4, "crops": 3,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_cards(tmp_path: Path, suffix: str) -> None:
    net = create_model("videomambapro-tiny-test")
    path = tmp_path / f"w{suffix}"

    @BOUNDED
    @given(damaged_json(CARD))
    def any_content(content: bytes) -> None:
        save_model(path, net, {CARD_METADATA: content.decode("utf-8", "replace")})
        found = value_or_own_error(lambda: read_exported(path), WeightsError, ConfigError)
        if found is not None:
            _, card = found  # type: ignore[misc]
            assert card.clips * card.crops <= 3000
            assert all(value == value for value in card.mean)

    any_content()
