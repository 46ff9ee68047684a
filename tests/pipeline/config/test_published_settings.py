"""The shipped recipes have the settings of the published scripts, as effective values.

The rows are copied from the scripts of VideoMamba by hand, not computed by this project: videos per
step, peak learning rate, epochs, warm-up epochs, weight decay, drop path, clips at test.
"""

from __future__ import annotations

import pytest

from pipeline.config import load_config

FINE_TUNING = """
k400_t16_f8       512 8.0e-4  70 5 .1   .1  4
k400_t16_f16      512 8.0e-4  70 5 .1   .1  4
k400_t16_f32      256 4.0e-4  70 5 .1   .1  4
k400_t16_f64      256 4.0e-4  70 5 .1   .1  4
k400_t16_f64_384   96 3.75e-6 10 2 1e-8 .1  4
k400_s16_f8       512 8.0e-4  50 5 .05  .35 4
k400_s16_f16      512 8.0e-4  50 5 .05  .35 4
k400_s16_f32      256 4.0e-4  50 5 .05  .35 4
k400_s16_f64      128 2.0e-4  50 5 .05  .35 4
k400_s16_f64_384  128 5.0e-6   6 1 1e-8 .35 4
k400_m16_f8       512 8.0e-4  50 5 .05  .8  4
k400_m16_f16      256 2.0e-4  50 5 .05  .8  4
k400_m16_f32      128 1.0e-4  50 5 .05  .8  4
k400_m16_f64       64 5.0e-5  50 5 .05  .8  4
k400_m16_f64_384   32 1.25e-6  6 1 1e-8 .8  4
ssv2_t16_f8       512 1.6e-3  35 5 .1   .1  2
ssv2_t16_f16      512 1.6e-3  35 5 .1   .1  2
ssv2_t16_f16_288  512 2.0e-5  10 2 1e-8 .1  2
ssv2_s16_f8       512 1.6e-3  30 5 .05  .35 2
ssv2_s16_f16      512 1.6e-3  30 5 .05  .35 2
ssv2_s16_f16_288  192 7.5e-6  10 2 1e-8 .35 2
ssv2_m16_f8       512 1.6e-3  30 5 .05  .8  2
ssv2_m16_f16      256 8.0e-4  30 5 .05  .8  2
ssv2_m16_f16_288   96 3.75e-6 10 2 1e-8 .8  2
breakfast_videomamba_t16_f32 256 4.0e-4 70 5 .1  .1 4
breakfast_videomamba_t16_f64 256 4.0e-4 70 5 .1  .1 4
breakfast_videomamba_s16_f32 256 4.0e-4 50 5 .05 .4 4
breakfast_videomamba_s16_f64 128 2.0e-4 50 5 .05 .4 4
breakfast_videomamba_m16_f32  64 1.0e-4 50 5 .05 .8 4
breakfast_videomamba_m16_f64  32 5.0e-5 50 5 .05 .8 4
coin_videomamba_t16_f32 256 4.0e-4 40 5 .1  .1 10
coin_videomamba_t16_f64 256 4.0e-4 40 5 .1  .1 10
coin_videomamba_s16_f32 256 4.0e-4 35 5 .05 .4 10
coin_videomamba_s16_f64 128 2.0e-4 35 5 .05 .4 10
coin_videomamba_m16_f32  64 1.0e-4 30 5 .05 .8 10
coin_videomamba_m16_f64  32 5.0e-5 30 5 .05 .8 10
k400_videomamba_m16_mask_ft_f8  512 4e-4 45 5 .05 .4 4
k400_videomamba_m16_mask_ft_f16 256 2e-4 45 5 .05 .4 4
k400_videomamba_m16_mask_ft_f32 128 1e-4 45 5 .05 .4 4
k400_videomamba_m16_mask_ft_f64  64 5e-5 45 5 .05 .4 4
k400_videomamba_m16_mask_ft_f64_384 32 1.25e-6 6 1 1e-8 .4 4
ssv2_videomamba_m16_mask_ft_f8  512 4e-4 30 5 .05 .4 2
ssv2_videomamba_m16_mask_ft_f16 256 2e-4 30 5 .05 .4 2
ssv2_videomamba_m16_mask_ft_f16_288 96 3.75e-6 10 2 1e-8 .4 2
breakfast_videomamba_m16_mask_ft_f32 64 1e-4 45 5 .05 .4 4
breakfast_videomamba_m16_mask_ft_f64 32 5e-5 45 5 .05 .4 4
coin_videomamba_m16_mask_ft_f32 64 1e-4 30 5 .05 .4 10
coin_videomamba_m16_mask_ft_f64 32 5e-5 30 5 .05 .4 10
""".strip().splitlines()

PRE_TRAINING = """
in1k_t16_224 4096 4e-3 300 5  .1   0   1e-5 1e-6 5.0
in1k_s16_224 4096 4e-3 300 5  .05  .15 1e-5 1e-6 -
in1k_m16_224 2048 2e-3 300 20 .05  .5  5e-6 5e-7 5.0
in1k_t16_448 2048 2e-5 30  5  1e-8 0   5e-6 1e-6 -
in1k_s16_448 512  5e-6 30  5  1e-8 .15 5e-6 1e-6 -
in1k_m16_448 512  5e-6 30  5  1e-8 .5  5e-6 1e-6 -
in1k_t16_576 1024 1e-5 10  2  1e-8 0   5e-6 1e-6 -
in1k_s16_576 512  5e-6 10  2  1e-8 .15 5e-6 1e-6 -
in1k_m16_576 512  5e-6 10  2  1e-8 .5  5e-6 1e-6 -
""".strip().splitlines()


@pytest.mark.parametrize("row", FINE_TUNING, ids=lambda row: row.split()[0])
def test_fine_tuning(row: str) -> None:
    name, videos, lr, epochs, warmup, weight_decay, drop_path, clips = row.split()
    config = load_config(name)
    assert config.batch.global_size == int(videos)
    assert config.optim.lr == float(lr)
    assert (config.schedule.epochs, config.schedule.warmup_epochs) == (int(epochs), int(warmup))
    # The scripts scale 1e-6 by clips / 256, and a step has two clips of each video.
    floor = pytest.approx(1e-6 * 2 * int(videos) / 256, rel=1e-12)
    assert config.schedule.min_lr == floor
    assert config.schedule.warmup_lr == floor
    assert config.optim.weight_decay == float(weight_decay)
    assert config.optim.clip_grad is None
    assert config.optim.layer_decay == (0.8 if "mask_ft" in name else 1.0)
    assert config.model.drop_path_rate == float(drop_path)
    assert (config.eval.clips, config.eval.crops) == (int(clips), 3)
    assert config.data.views == 2
    augment = config.data.randaugment
    of_size = (2, 5, 0.25) if "_t16" in name else (4, 7, 0.5)
    assert (augment.num_ops, augment.magnitude, augment.std) == of_size
    assert config.data.sampling == ("segment" if "ssv2" in name else "tsn")
    assert config.data.hflip == (0.0 if "ssv2" in name else 0.5)


@pytest.mark.parametrize("row", PRE_TRAINING, ids=lambda row: row.split()[0])
def test_image_pre_training(row: str) -> None:
    name, pictures, lr, epochs, warmup, weight_decay, drop_path, min_lr, warmup_lr, clip = (
        row.split()
    )
    config = load_config(name)
    views = 1 if "_t16" in name else 3
    assert config.data.views == views
    # Three views of every picture: a third of the epochs, and about as many clips in a step.
    assert config.batch.global_size * views == pytest.approx(int(pictures), rel=0.07)
    assert config.schedule.epochs == pytest.approx(int(epochs) / views, rel=1e-4)
    assert config.schedule.warmup_epochs == pytest.approx(int(warmup) / views, rel=1e-4)
    assert (config.optim.lr, config.optim.weight_decay) == (float(lr), float(weight_decay))
    assert (config.schedule.min_lr, config.schedule.warmup_lr) == (float(min_lr), float(warmup_lr))
    assert config.optim.clip_grad == (None if clip == "-" else float(clip))
    assert config.model.drop_path_rate == float(drop_path)
    assert config.model.num_frames == 1
    assert config.model.img_size == int(name.rpartition("_")[2])


@pytest.mark.parametrize(
    ("row", "mask", "start"),
    [
        ("plain", False, "zero"),
        ("mask", True, "zero"),
        ("residual", False, "first_token"),
        ("both", True, "first_token"),
    ],
)
def test_the_ablations_differ_in_the_two_changes_only(row: str, mask: bool, start: str) -> None:
    config = load_config(f"ablation_k400_t16_f8_{row}")
    assert (config.model.mask_backward, config.model.initial_state) == (mask, start)
    changed = {"mask_backward": False, "initial_state": "zero"}
    plain = config.model_copy(
        update={
            "name": "k400_videomamba_t16_f8",
            "model": config.model.model_copy(update=changed),
        }
    )
    assert plain == load_config("k400_videomamba_t16_f8")


@pytest.mark.parametrize(("data", "epochs"), [("k400", 801), ("ssv2", 200)])
def test_masked_pre_training(data: str, epochs: int) -> None:
    config = load_config(f"{data}_videomamba_m16_mask_pt_f8")
    assert (config.batch.global_size, config.optim.lr, config.optim.betas) == (
        *(2048, 1.2e-3, (0.9, 0.95)),
    )
    schedule = config.schedule
    assert (schedule.epochs, schedule.warmup_epochs) == (epochs, 40)
    assert (schedule.min_lr, schedule.warmup_lr) == (8e-5, 8e-6)
    assert config.task.kind == "masked"
    assert (config.task.mask_ratio, config.task.mask, config.task.teacher.width) == (
        *(0.8, "attention", 512),
    )
    assert config.model.drop_path_rate == 0.4
    assert not config.data.mix.is_on
    # A fifth of 14 x 14 patches in each of 8 frames, and the class token: 321 tokens.
    assert 8 * (196 - int(0.8 * 196)) + 1 == 321


def test_m_is_distilled_from_s_of_its_own_kind() -> None:
    for kind in ("", "videomamba_"):
        config = load_config(f"in1k_{kind}m16_224")
        assert config.task.kind == "distillation"
        assert str(config.task.teacher.path) == f"runs/in1k_{kind}s16_224"
        assert load_config(f"in1k_{kind}m16_448").task.kind == "classification"
