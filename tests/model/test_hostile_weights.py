"""Hostile weight files are refused with one line, quickly and in little memory."""

from __future__ import annotations

import json
import resource
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

from model import ModelError, WeightsError, create_model, from_pretrained, load_model
from model.config import resolve_config

TINY = "videomambapro-tiny-test"
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """Limit the address space to 16 GB more than now; a file of a few kilobytes needs far less."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 16 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def _state() -> State:
    torch.manual_seed(0)
    return create_model(TINY).state_dict()


def _refused(load: Callable[[Path], object], path: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("load", [load_model, from_pretrained])
@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ("[]", "model_config metadata: model: Input should be an object"),
        ("7", "model_config metadata: model: Input should be an object"),
        ("null", "model_config metadata: model: Input should be an object"),
        ("{", "model_config metadata: model: Invalid JSON"),
        ("[" * 100_000, "model_config metadata: model: Invalid JSON: recursion limit"),
        ('{"depth":' * 100_000, "model_config metadata: model: Invalid JSON: recursion limit"),
        ('{"num_classes": 1000000000000}', r"model\.num_classes: .*less than or equal to 1000000"),
        ('{"depth": 1000000000}', r"model\.depth: .*less than or equal to 1024"),
        ('{"embed_dim": 1%s}' % ("0" * 9000), "model: Invalid JSON: number out of range"),
        ('{"num_classes": 1000000, "embed_dim": 65536}', r"describes [\d,]+ parameters, the file"),
        ('{"img_size": 8192, "patch_size": 1}', r"describes [\d,]+ parameters, the file"),
        ('{"depth": 1024}', r"describes [\d,]+ parameters, the file"),
        ('{"drop_path_rate": NaN}', r"model\.drop_path_rate: Input should be a finite number"),
        ('{"a\\nb": 1}', r"model\.'a\\nb': Extra inputs"),
        ('{"layout": "%s"}' % ("x" * 10**6), r"model\.layout: "),
    ],
    ids=lambda text: text[:30],
)
def test_a_configuration_that_a_file_carries(
    tmp_path: Path, load: Callable[[Path], object], stored: str, message: str
) -> None:
    path = tmp_path / "w.safetensors"
    save_file(_state(), path, {"model_config": stored})
    _refused(load, path, message)


def _whole(change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: {key: change(value) for key, value in state.items()}


def _head(change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: state | {"head.weight": change(state["head.weight"])}


HOSTILE: dict[str, tuple[Callable[[State], State], str]] = {
    "sparse": (_head(Tensor.to_sparse), "'head.weight' is 'torch.sparse_coo', not dense"),
    "meta": (_head(lambda t: t.to("meta")), "'head.weight' has a shape and no values"),
    "complex": (_head(lambda t: t.to(torch.complex64)), "'head.weight' has dtype torch.complex64"),
    "integers": (_head(Tensor.int), "'head.weight' has dtype torch.int32"),
    "nan": (_head(lambda t: t * torch.nan), "'head.weight' holds NaN or infinite numbers"),
    "infinite": (_head(lambda t: t / 0), "'head.weight' holds NaN or infinite numbers"),
    "infinite as float32": (
        _head(lambda t: t.double() + 1e300),
        "'head.weight' holds NaN or infinite numbers",
    ),
    "repeated": (
        _head(lambda t: torch.zeros(1).expand(10**9, 32)),
        "'head.weight' claims 32,000,000,000 numbers and stores fewer",
    ),
    "empty": (_head(lambda t: t[:0]), r"'head.weight' is empty, of shape \(0, 32\)"),
    "scalars": (_whole(lambda t: torch.tensor(1.0)), "not a VideoMamba state_dict"),
    "flat": (_whole(Tensor.flatten), "not a VideoMamba state_dict"),
    "key of many digits": (
        lambda state: state | {f"layers.{'9' * 9000}.norm.weight": torch.ones(32)},
        "the file has no 'layers.2.norm.weight'",
    ),
    "key of many lines": (
        lambda state: state | {"a\nb\x1b[2J": torch.ones(1)},
        r"the model has no 'a\\nb\\x1b\[2J'",
    ),
    "depth of a million": (
        lambda state: {f"layers.{n}.x": torch.ones(1) for n in range(5000)} | state,
        r"its shapes describe no model: model\.depth: .*1024",
    ),
    "blocks without weights": (
        lambda state: (
            {f"layers.{n}.norm.weight": torch.ones(1) for n in range(1000)}
            | state
            | {"cls_token": torch.zeros(1, 1, 60_000)}
        ),
        "cannot be fitted|not a VideoMamba|describe no model",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_tensors_that_are_no_weights(tmp_path: Path, kind: str) -> None:
    change, message = HOSTILE[kind]
    path = tmp_path / "w.pth"
    torch.save({"model": change(_state())}, path)
    _refused(from_pretrained, path, message)


@pytest.mark.parametrize("shape", [(2, 4, 32), (1, 4, 32, 1), (4, 32), (1, 1, 1)])
@pytest.mark.parametrize("key", ["pos_embed", "temporal_pos_embedding"])
def test_embeddings_of_shapes_that_cannot_be_resized(
    tmp_path: Path, key: str, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "w.pth"
    torch.save(_state() | {key: torch.zeros(shape)}, path)
    load = lambda path: from_pretrained(path, config=resolve_config(TINY, num_frames=8))  # noqa: E731
    _refused(load, path, f"'{key}' cannot be fitted: ")


@pytest.mark.parametrize(
    "content",
    [
        {("a", "b"): 1},
        {"x" * 10**6: 1},
        {f"key{n}": n for n in range(10**4)},
        {"a\nb": 1},
    ],
    ids=["tuples", "long", "many", "lines"],
)
def test_what_a_file_holds_instead_is_said_briefly(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "w.pth"
    torch.save(content, path)
    _refused(from_pretrained, path, "holds no state_dict; .* keys: ")


def test_lists_within_lists(tmp_path: Path) -> None:
    opcodes = b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."  # what pickle itself cannot write
    path = tmp_path / "w.pth"
    torch.save({"model": 1}, path)
    with zipfile.ZipFile(path) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as out:
        for name, content in entries.items():
            out.writestr(name, opcodes if name.endswith("data.pkl") else content)
    _refused(from_pretrained, path, "holds no state_dict|not loaded")


def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"head.weight": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in entries.items():
            out.writestr(name, content)
    _refused(from_pretrained, path, "a compressed archive, which unpacks to 4,0")


def test_a_dtype_of_another_world(tmp_path: Path) -> None:
    content = save({"head.weight": torch.zeros(4)})
    (tmp_path / "w.safetensors").write_bytes(content.replace(b'"F32"', b'"F99"'))
    _refused(from_pretrained, tmp_path / "w.safetensors", "damaged safetensors file")


def _a_model_or_one_line(load: Callable[[Path], object], path: Path) -> None:
    line = ""
    try:
        load(path)
    except WeightsError as error:
        line = str(error)
    assert "\n" not in line


BOUNDED = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@BOUNDED
@given(st.data())
def test_damage_anywhere_ends_in_a_model_or_in_one_line(
    tmp_path: Path, data: st.DataObject
) -> None:
    """Overwrites bytes of a real file, mostly in the header and the pickle."""
    suffix = data.draw(st.sampled_from([".pth", ".safetensors"]))
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(_state(), path)
    else:
        save_file(_state(), path, {"model_config": resolve_config(TINY).model_dump_json()})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, min(len(content), 8000) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    _a_model_or_one_line(from_pretrained, path)


@BOUNDED
@given(
    fields=st.dictionaries(
        st.sampled_from(sorted(resolve_config(TINY).model_dump())) | st.text(max_size=5),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just([]),
        max_size=4,
    )
)
def test_any_configuration_ends_in_a_model_or_in_one_line(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    stored = json.dumps(resolve_config(TINY).model_dump() | fields)
    path = tmp_path / "w.safetensors"
    save_file(_state(), path, {"model_config": stored})
    _a_model_or_one_line(load_model, path)
