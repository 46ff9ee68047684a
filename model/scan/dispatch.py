"""The public scan: checks its arguments and hands them to the best backend that can run them."""

import functools
import importlib.util
import logging

import torch
from torch import Tensor

from model.scan import gpu, mamba, op
from model.scan.constant import constant
from model.scan.native import library
from model.scan.problem import InitialState, Scan, ScanError
from model.scan.reference import scan_reference

FUSED = ("triton", "cpu")
BACKENDS = (*FUSED, "chunked", "reference", "mamba_ssm")
_log = logging.getLogger(__name__)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: InitialState = "zero",
    mask_current: bool = False,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Selective scan in one direction; names and shapes as in mamba-ssm.

    Args:
        u, delta, z: (B, D, L), any strides; memory laid out (B, L, D) needs no copy.
        A: (D, N). B, C: (B, N, L). D, delta_bias: (D,). These stay float32 under autocast.
        initial_state: "first_token" starts every state of a channel at its first scanned u.
        mask_current: leave each token out of its own read-out (and the first read-out zero).
        reverse: scan from the last token to the first; the result stays in token order.

    Returns:
        (B, D, L) in the dtype of u, its memory laid out (B, L, D).

    Raises:
        ScanError: shapes, dtypes or devices do not fit, or the backend cannot run here.
    """
    scan = Scan(
        u=u,
        delta=delta,
        A=A,
        B=B,
        C=C,
        D=D,
        z=z,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        first_token=_starts_at_first_token(initial_state),
        mask_current=mask_current,
        reverse=reverse,
    )
    return _run(scan, backend)


def bidirectional_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    A_b: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    u_b: Tensor | None = None,
    delta_b: Tensor | None = None,
    B_b: Tensor | None = None,
    C_b: Tensor | None = None,
    D_b: Tensor | None = None,
    delta_bias_b: Tensor | None = None,
    delta_softplus: bool = True,
    initial_state: InitialState = "first_token",
    mask_backward: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Both directions of a VideoMambaPro mixer in one go.

    gate(z) * (forward read-out + D u + backward read-out + D_b u_b). Shapes as in
    ``selective_scan``; every tensor in token order, never flipped. A ``*_b`` tensor that is not
    given is shared with the forward direction, so D then counts twice.
    """
    scan = Scan(
        u=u,
        delta=delta,
        A=A,
        B=B,
        C=C,
        D=D,
        z=z,
        delta_bias=delta_bias,
        A_b=A_b,
        u_b=u_b,
        delta_b=delta_b,
        B_b=B_b,
        C_b=C_b,
        D_b=D_b,
        delta_bias_b=delta_bias_b,
        delta_softplus=delta_softplus,
        first_token=_starts_at_first_token(initial_state),
        mask_current=mask_backward,
    )
    return _run(scan, backend)


@constant
def available_backends(device: str | torch.device = "cpu") -> tuple[str, ...]:
    """Names of the backends that can run on ``device`` here, best first."""
    return probe(torch.device(device).type)


@functools.cache
def probe(device: str) -> tuple[str, ...]:
    """``available_backends`` of a type of device, found out once."""
    fused = [
        *(["triton"] if device == "cuda" and gpu.is_available(device) else []),
        *(["cpu"] if device == "cpu" and library.is_available() else []),
    ]
    names = [*fused, "chunked", "reference"]
    if device == "cuda" and importlib.util.find_spec("mamba_ssm") is not None:
        names.append("mamba_ssm")
    if device == "cpu" and gpu.is_available(device):  # interpreted: for tests, never for speed
        names.append("triton")
    return tuple(names)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _say_used(backend: str, device: str) -> bool:
    return _say_once(backend, device)


@functools.cache
def _say_once(backend: str, device: str) -> bool:
    _log.info("scan on %s uses the %s backend", device, backend)
    return True


def _run(scan: Scan, backend: str) -> Tensor:
    scan.validate()
    device = scan.u.device.type
    ready = available_backends(device)
    chosen = ready[0] if backend == "auto" else backend
    if chosen not in ready:
        raise ScanError(_why_not(chosen, device))
    if chosen in FUSED and scan.state_dtype == torch.float64:
        chosen = "chunked"  # the fused kernels compute in float32
    _say_used(chosen, device)
    if chosen == "reference":
        return scan_reference(scan)
    if chosen == "mamba_ssm":
        return mamba.run(scan, mamba.kernel())
    return op.run(scan, chosen)


def _why_not(backend: str, device: str) -> str:
    if backend not in BACKENDS:
        return f"scan: there is no backend {backend!r}; choose one of auto, {', '.join(BACKENDS)}"
    needs = {
        "triton": "a CUDA device and the triton package; `vmp doctor` says more",
        "mamba_ssm": "a CUDA device and the mamba-ssm package; `vmp doctor` says more",
        "cpu": "tensors on the CPU and a C++ compiler (install g++ or set CXX)",
    }
    return f"scan: backend {backend!r} cannot run on {device} here: it needs {needs[backend]}"


def _starts_at_first_token(initial_state: str) -> bool:
    if initial_state not in ("zero", "first_token"):
        raise ScanError(
            f"scan: initial_state is {initial_state!r}; it must be 'zero' or 'first_token'"
        )
    return initial_state == "first_token"
