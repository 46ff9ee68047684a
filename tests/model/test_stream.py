"""The forward-only model: it is causal, and a stream gives the bits of the whole clip."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from model import ModelError, VideoMamba, create_model
from model.scan import available_backends
from model.staggered import StaggeredStream
from model.step_linear import linear_by_step
from model.stream import Stream

TINY = "videomambapro-tiny-test"
EXACT = [name for name in ("cpu", "reference") if name in available_backends()]
FRAMES = 6  # longer than the four frames of a training clip


def _net(**overrides: Any) -> VideoMamba:
    torch.manual_seed(0)
    net = create_model(TINY, direction="forward", **overrides).eval()
    with torch.no_grad():  # away from the initial point, where many terms vanish or coincide
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return net


def _video(frames: int = FRAMES, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn((batch, 3, frames, 16, 16), generator=torch.Generator().manual_seed(seed))


def _chunkings(frames: int) -> Iterator[list[int]]:
    """All ways to cut `frames` frames into pieces, in order."""
    for cuts in product([False, True], repeat=frames - 1):
        sizes = [1]
        for cut in cuts:
            sizes[-1:] = [sizes[-1], 1] if cut else [sizes[-1] + 1]
        yield sizes


def _pushed(stream: Stream, video: Tensor, sizes: list[int]) -> Tensor:
    return torch.cat([stream.push(piece) for piece in video.split(sizes, dim=2)], dim=1)


@pytest.mark.parametrize(
    "fields",
    [
        *({"scan_backend": backend} for backend in EXACT),
        {"tubelet_size": 2},
        {"initial_state": "zero", "value": "raw"},
        {"embed_dim": 36, "d_state": 3, "d_conv": 3},
        {"d_conv": 1, "depth": 1},
    ],
    ids=str,
)
def test_every_chunking_gives_the_bits_of_the_whole_video(fields: dict[str, Any]) -> None:
    net, video = _net(**fields), _video()
    with torch.no_grad():
        whole = net.frame_logits(video)
    stream, seen = Stream(net, batch=2), 0
    for sizes in _chunkings(FRAMES):
        stream.reset()
        assert torch.equal(_pushed(stream, video, sizes), whole), sizes
        seen += 1
    assert seen == 2 ** (FRAMES - 1)


def test_a_video_alone_gives_the_bits_it_has_in_a_batch() -> None:
    net, video = _net(), _video()
    with torch.no_grad():
        whole = net.frame_logits(video)
    for index in range(2):
        assert torch.equal(Stream(net).push(video[index : index + 1])[0], whole[index])


def test_one_product_is_rounded_otherwise_so_steps_are_computed_one_by_one() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 8 * 17, 64), torch.randn(256, 64), torch.randn(256)
    exact = torch.nn.functional.linear(x, weight, bias)
    with torch.no_grad():
        whole = linear_by_step(x, weight, bias, 17)
        pieces = [linear_by_step(step, weight, bias, 17) for step in x.split(17, dim=1)]
    assert torch.equal(torch.cat(pieces, dim=1), whole)
    torch.testing.assert_close(whole, exact)


def test_the_clip_logits_are_those_of_its_last_frame_in_training_too() -> None:
    net, clip = _net(), _video(4)
    with torch.no_grad():
        frames = net.frame_logits(clip)
        assert torch.equal(net(clip), frames[:, -1])
    torch.testing.assert_close(net(clip), frames[:, -1])
    torch.testing.assert_close(net.frame_logits(clip), frames)


def test_logits_depend_on_all_earlier_frames_and_no_later_one() -> None:
    net, video = _net(depth=1), _video(4, batch=1).requires_grad_()
    for step in range(4):
        (gradient,) = torch.autograd.grad(net.frame_logits(video)[0, step].sum(), video)
        reaches = gradient.abs().amax(dim=(0, 1)) > 0
        assert reaches[: step + 1].all()
        assert not reaches[step + 1 :].any()


def test_time_beyond_the_trained_length_is_the_last_trained_time() -> None:
    net, video = _net(), _video()
    longer = _net(num_frames=FRAMES)
    state = net.state_dict()
    times = state["temporal_pos_embedding"]
    state["temporal_pos_embedding"] = torch.cat([times, times[:, -1:], times[:, -1:]], dim=1)
    longer.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(net.frame_logits(video)[:, -1], longer(video))


def test_another_process_goes_on_with_the_exported_state() -> None:
    net, video = _net(tubelet_size=2), _video()
    with torch.no_grad():
        whole = net.frame_logits(video)
    first = Stream(net, batch=2)
    for cut in range(FRAMES + 1):
        first.reset()
        before = first.push(video[:, :, :cut])
        state = first.state_dict()
        first.push(_video(seed=9))  # what the first stream does next leaves the copy alone
        second = Stream(net, batch=2)
        second.push(_video(seed=8))
        second.load_state_dict(state)
        assert second.steps == cut // 2
        after = second.push(video[:, :, cut:])
        assert torch.equal(torch.cat([before, after], dim=1), whole), cut


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    net, video = _net(), _video()
    stream = Stream(net, batch=2)
    stream.push(video[:, :, :3])
    state, kept = stream.state_dict(), stream.state_dict()
    other = _net()
    with torch.no_grad():
        other.norm_f.weight[0] += 1
    wrong: list[tuple[dict[str, Tensor], str]] = [
        ({}, "'steps' is missing"),
        (state | {"steps": torch.tensor(-1)}, "'steps' is missing or not a 0-dim int64 count"),
        ({k: v for k, v in state.items() if k != "1.scan"}, "'1.scan' is missing"),
        (state | {"x\n": torch.zeros(1)}, r"'x\\n' is not part of it"),
        (state | {"0.scan": state["0.scan"][:1]}, r"'0.scan' is \(1, 64, 4\); this stream \(2 vid"),
        (state | {"pending": torch.zeros(2, 3, 1, 16, 16)}, r"has \(2, 3, 0, 16, 16\)"),
        (Stream(other, batch=2).state_dict(), "other weights"),
    ]
    for bad, message in wrong:
        with pytest.raises(ModelError, match=message):
            stream.load_state_dict(bad)
    assert all(torch.equal(stream.state_dict()[name], tensor) for name, tensor in kept.items())


def test_what_is_carried_does_not_grow() -> None:
    stream = Stream(_net(tubelet_size=10, num_frames=20, depth=1))
    frame = _video(1, batch=1)
    stream.push(frame.expand(-1, -1, 10, -1, -1))
    expected = {name: (t.shape, t.dtype) for name, t in stream.state_dict().items()}
    size = stream.nbytes()
    for _ in range(100):
        stream.push(frame.expand(-1, -1, 100, -1, -1))
    assert stream.steps == 1001  # 10,010 frames
    state = stream.state_dict()
    assert {name: (t.shape, t.dtype) for name, t in state.items()} == expected
    assert stream.nbytes() == size
    # Nothing that is carried is a view that keeps a longer tensor alive.
    carried = [stream._pending, *(t for layer in stream._states if layer for t in layer)]
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in carried)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_a_stream_needs_a_forward_only_model_and_frames_of_its_size() -> None:
    both = create_model(TINY)
    with pytest.raises(ModelError, match=r"trained with model\.direction=forward.*--window"):
        Stream(both)
    with pytest.raises(ModelError, match="need a model with direction=forward"):
        both.frame_logits(_video(4))
    with pytest.raises(ModelError, match=r"takes \(1, 3, any number, 16, 16\)"):
        Stream(_net()).push(_video(1))
    with pytest.raises(ModelError, match=r"takes \(batch, 3, 4, 16, 16\)"):
        _net(tubelet_size=2).frame_logits(_video(3))


@pytest.mark.parametrize("setting", ["none", "full"])
def test_every_parameter_trains(setting: str) -> None:
    net = _net(activation_checkpointing=setting, drop_path_rate=0.3).train()
    keep = torch.tensor([[True, True], [True, True]])
    net(_video(4), drop_path_keep=keep).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("horizon", [1, 2, 3, 4])
def test_a_staggered_stream_answers_from_the_last_steps_alone(horizon: int) -> None:
    net, video = _net(tubelet_size=2, depth=1), _video(20)
    stream = StaggeredStream(net, batch=2, horizon=horizon)
    ages: list[int] = []
    for step in range(10):
        frames = video[:, :, 2 * step : 2 * step + 2]
        answers = [stream.push(frames[:, :, :1]), stream.push(frames[:, :, 1:])]
        assert [answer.shape[1] for answer in answers] == [0, 1]
        ages.append(stream.steps)
        seen = video[:, :, 2 * (step + 1 - ages[-1]) : 2 * (step + 1)]
        with torch.no_grad():
            assert torch.equal(answers[1][:, 0], net.frame_logits(seen)[:, -1]), step
    assert ages[:horizon] == list(range(1, horizon + 1))
    assert set(ages[horizon:]) == set(range(horizon // 2 + 1, horizon + 1))
    stream.reset()
    with torch.no_grad():
        first = net.frame_logits(video[:, :, :2])
    assert torch.equal(stream.push(video[:, :, :3]), first)
