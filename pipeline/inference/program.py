"""A trained model as a program that runs without this package: torch.export and ONNX.

The scan is a loop of PyTorch, or ONNX's operator Scan, over the tokens of a clip
(`model/scan/portable.py`): exact and slow next to the fused kernels, whose place is training.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from model import VideoMamba
from model.weights import write_durably
from pipeline.errors import ConfigError
from pipeline.inference.exported import CARD_METADATA, Card

_MAX_BATCH = 4096


def write_program(path: Path, net: VideoMamba, card: Card) -> None:
    """Write what `torch.export.load(path).module()(clip)` runs, with the card as an extra file.

    clip: (B, 3, num_frames, img_size, img_size) float32, normalised as the card says; any B up to
    4096. Gives logits (B, classes). Raises WeightsError when the file cannot be written.
    """
    content = io.BytesIO()
    texts = {CARD_METADATA: card.model_dump_json()}
    torch.export.save(_traced(net), content, extra_files=texts)
    write_durably(path, content.getvalue())


def write_onnx(path: Path, net: VideoMamba, card: Card) -> None:
    """Write an ONNX model with the input `clip`, the output `logits` and the card as metadata.

    Shapes are those of `write_program`. Raises ConfigError without the packages that write ONNX,
    and WeightsError when the file cannot be written.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch imports it only while it writes
    except ImportError as error:
        raise ConfigError(
            f"{path}: ONNX needs the package {error.name}; in the checkout: "
            "make venv EXTRAS=dev,onnx"
        ) from None
    program = _traced(net)
    with _quiet():
        written = torch.onnx.export(
            program, dynamo=True, input_names=["clip"], output_names=["logits"], verbose=False
        )
    assert written is not None
    proto = written.model_proto
    onnx.helper.set_model_props(proto, {CARD_METADATA: card.model_dump_json()})
    write_durably(path, proto.SerializeToString())


def _traced(net: VideoMamba) -> ExportedProgram:
    """The forward pass of a model in fp32 on the CPU, for any batch size."""
    config = net.config
    clip = torch.zeros(2, 3, config.num_frames, config.img_size, config.img_size)
    batch = {0: Dim("batch", min=1, max=_MAX_BATCH)}
    with torch.no_grad():
        return torch.export.export(net.float().eval(), (clip,), dynamic_shapes=(batch,))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch.onnx from listing the operators of packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
