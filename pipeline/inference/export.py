"""Export of a trained model, in the format that the name of the output says."""

from __future__ import annotations

from pathlib import Path

from model import save_model
from pipeline.checkpoint.layout import read_state
from pipeline.checkpoint.source import locate
from pipeline.checkpoint.trained import checkpoint_config, load_backbone
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.inference.exported import WEIGHTS_SUFFIXES, Card, check_suffix, write_exported
from pipeline.inference.hub_folder import Evidence, check_folder, write_folder
from pipeline.inference.trained import Trained, open_trained
from pipeline.rundir.summary import read_summary


def export_weights(run: Path, out: Path, *, raw: bool = False) -> Path:
    """Write the model that `locate` finds as `out`, by its suffix.

    .safetensors and .pth hold weights, .pt2 a program of torch.export, .onnx an ONNX model; a name
    without a suffix is a folder in the form of the Hugging Face Hub. Heads that only training uses
    are left out. Masked pre-training leaves a backbone without a classification head, which
    `init_from` and `task.teacher.path` take. With `raw`, take the last weights even if the run kept
    their moving average.
    Raises CheckpointError, ConfigError or WeightsError.
    """
    check_suffix(out)
    if not out.suffix:
        check_folder(out)
    checkpoint = locate(run)
    if checkpoint.is_dir():
        config = checkpoint_config(checkpoint, ["eval.use_ema=false"] if raw else [])
        if config.task.kind == "masked":
            return _export_backbone(checkpoint, config, out)
    trained = open_trained(run, raw=raw)
    net, card = trained.model, Card.of(trained.config, trained.classes)
    match out.suffix:
        case "":
            write_folder(out, net, card, _evidence(run, trained))
        case ".pt2":
            from pipeline.inference.program import write_program

            write_program(out, net, card)
        case ".onnx":
            from pipeline.inference.program import write_onnx

            write_onnx(out, net, card)
        case _:
            write_exported(out, net, card)
    return out


def _export_backbone(checkpoint: Path, config: RunConfig, out: Path) -> Path:
    if out.suffix not in WEIGHTS_SUFFIXES:
        raise ConfigError(
            f"{out}: masked pre-training left a backbone without a head, which only weights can "
            f"hold: choose {' or '.join(WEIGHTS_SUFFIXES)}"
        )
    save_model(out, load_backbone(checkpoint, config))
    return out


def _evidence(run: Path, trained: Trained) -> Evidence:
    if trained.source.is_file():
        return Evidence(None, None, None, None)
    state = read_state(trained.source)
    summary = read_summary(run)
    is_last = summary is not None and summary.steps == state.step
    if summary is None or not is_last:
        return Evidence(state.data_digest, state.step, None, None)
    correct = round(summary.top1 * summary.num_samples)
    return Evidence(state.data_digest, state.step, correct, summary.num_samples)
