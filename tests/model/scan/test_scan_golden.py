"""Every backend reproduces the outputs and gradients of the published scan."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.scan import available_backends, selective_scan

GOLDEN = Path(__file__).parents[2] / "golden" / "selective_scan_0.npz"
ARGUMENTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("case", ["forward", "masked_backward"])
def test_values_and_gradients(backend: str, case: str) -> None:
    golden = {name: torch.tensor(array) for name, array in np.load(GOLDEN).items()}
    tensors = {name: golden[name].clone().requires_grad_() for name in ARGUMENTS}
    out = selective_scan(
        **tensors,
        delta_softplus=True,
        initial_state="first_token",
        mask_current=case == "masked_backward",
        backend=backend,
    )
    out.backward(golden["dout"])
    torch.testing.assert_close(out, golden[f"{case}/out"], rtol=1e-5, atol=1e-6)
    for name, tensor in tensors.items():
        expected = golden[f"{case}/d_{name}"]
        atol = 1e-6 * float(expected.abs().max())
        torch.testing.assert_close(tensor.grad, expected, rtol=1e-5, atol=atol, msg=name)
