"""torch.compile of what surrounds the scan gives the eager step, up to rounding."""

from __future__ import annotations

import pytest
import torch

from model import create_model
from model.scan import available_backends
from pipeline.training.engine import compile_blocks
from tests.conftest import require

pytestmark = pytest.mark.slow


def test_compiled_blocks_equal_eager_ones_and_keep_their_names() -> None:
    require("cpu" in available_backends("cpu"), "a C++ compiler")
    torch.manual_seed(0)
    eager = create_model("videomambapro-tiny-test", num_classes=8)
    compiled = create_model("videomambapro-tiny-test", num_classes=8)
    compiled.load_state_dict(eager.state_dict())
    compile_blocks(compiled)
    assert list(compiled.state_dict()) == list(eager.state_dict())
    config = eager.config
    clip = torch.randn(2, 3, config.num_frames, config.img_size, config.img_size)
    logits = [model(clip) for model in (eager, compiled)]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-5)
    for answer in logits:
        answer.square().mean().backward()
    expected = {name: p.grad for name, p in eager.named_parameters()}
    for name, parameter in compiled.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5, msg=name)
