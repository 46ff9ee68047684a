"""The public scan: checks its arguments and hands them to the best backend that can run them."""

import functools
import logging
from typing import Any

import torch
from torch import Tensor

from model.scan import cuda, mamba, op
from model.scan.constant import constant_under_compile
from model.scan.cuda import scan as cuda_scan
from model.scan.native import library
from model.scan.portable import scan_portable
from model.scan.problem import InitialState, Scan, ScanError
from model.scan.reference import scan_reference

FUSED = ("cuda", "cpu")
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
    initial_state: InitialState | Tensor = "zero",
    mask_current: bool = False,
    reverse: bool = False,
    backend: str = "auto",
    return_last_state: bool = False,
) -> Any:
    """Selective scan in one direction; names and shapes as in mamba-ssm (A is real).

    Args:
        u, delta, z: (B, D, L), any strides; memory laid out (B, L, D) needs no copy.
        A: (D, N). D, delta_bias: (D,). These stay float32 under autocast.
        B, C: (B, N, L); (B, G, N, L) for G groups of D / G neighbouring channels that share them;
            (D, N) when they are the same at every token. Kernels fill their tiles within a group,
            so groups of fewer than 32 channels leave lanes idle. On a GPU, a constant B or C runs
            on the backend chunked, which is many times slower.
        initial_state: "first_token" starts every state of a channel at its first scanned u; a
            tensor (B, D, N), such as an earlier last state, is the state to continue from. The
            backend mamba_ssm takes no tensor.
        mask_current: leave each token out of its own read-out (and the first read-out zero).
        reverse: scan from the last token to the first; the result stays in token order.
        return_last_state: also return the state after the last scanned token.

    Returns:
        (B, D, L) in the dtype of u, its memory laid out (B, L, D). With ``return_last_state`` also
        the state (B, D, N) in float32 (float64 stays), through which gradients flow, unlike in
        mamba-ssm.

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
        initial_state=initial_state if isinstance(initial_state, Tensor) else None,
        first_token=_starts_at_first_token(initial_state),
        mask_current=mask_current,
        reverse=reverse,
        return_last_state=return_last_state,
    )
    out, last_state = _run(scan, backend)
    return (out, last_state) if return_last_state else out


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
    """Both directions of a VideoMambaPro mixer in one call.

    The result is gate(z) * (forward read-out + D u + backward read-out + D_b u_b). Shapes are those
    of ``selective_scan``. Every tensor is in token order, never flipped. A ``*_b`` tensor that is
    not given is shared with the forward direction, so D then counts twice.
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
    return _run(scan, backend)[0]


@constant_under_compile
def available_backends(device: str | torch.device = "cpu") -> tuple[str, ...]:
    """Names of the backends that can run on ``device`` here; "auto" takes the first."""
    device = torch.device(device)
    fused = [
        *(["cuda"] if cuda.is_available(device) else []),
        *(["cpu"] if device.type == "cpu" and library.is_available() else []),
    ]
    peers = ["mamba_ssm"] if device.type == "cuda" and _has_mamba() else []
    return (*fused, "chunked", "reference", *peers)


@functools.cache
def _has_mamba() -> bool:
    return mamba.why_unavailable() is None


@constant_under_compile
def say_used(backend: str, device: str) -> bool:
    """Log, once, which backend runs on a type of device."""
    return _say_once(backend, device)


@functools.cache
def _say_once(backend: str, device: str) -> bool:
    _log.info("scan on %s uses the %s backend", device, backend)
    return True


def _run(scan: Scan, backend: str) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_exporting():  # the checks would fix the batch size
        return scan_portable(scan)
    scan.validate()
    chosen = choose(
        backend,
        scan.u.device,
        is_double=scan.state_dtype == torch.float64,
        fits_cuda=cuda_scan.takes(scan),
    )
    if chosen == "reference":
        return scan_reference(scan)
    if chosen == "mamba_ssm":
        return mamba.run(scan, mamba.kernel())
    return op.run(scan, chosen)


def choose(backend: str, device: torch.device, *, is_double: bool, fits_cuda: bool) -> str:
    """The backend that runs a scan on ``device`` when ``backend`` is asked for.

    Args:
        is_double: whether the state is float64. fits_cuda: whether the CUDA kernels take the scan.
    Raises:
        ScanError: the backend is unknown or cannot run here.
    """
    ready = available_backends(device)
    chosen = ready[0] if backend == "auto" else backend
    if chosen not in ready:
        raise ScanError(_why_not(chosen, device.type))
    if chosen == "mamba_ssm" and is_double:
        raise ScanError(
            "scan: backend 'mamba_ssm' cannot compute in float64; cast the tensors or choose "
            "'chunked'"
        )
    if chosen in FUSED and is_double:
        chosen = "chunked"  # the fused kernels compute in float32
    if chosen == "cuda" and not fits_cuda:
        chosen = "chunked"
    say_used(chosen, device.type)
    return chosen


def _why_not(backend: str, device: str) -> str:
    if backend not in BACKENDS:
        return f"scan: there is no backend {backend!r}; choose one of auto, {', '.join(BACKENDS)}"
    needs = {
        "cuda": "an NVIDIA GPU of sm_80 or later, a CUDA build of torch, and cuda-core with NVRTC; "
        "`vmp doctor` says more",
        "mamba_ssm": "a CUDA device and the mamba-ssm package; `vmp doctor` says more",
        "cpu": "tensors on the CPU and a C++ compiler (install g++ or set CXX)",
    }
    return f"scan: backend {backend!r} cannot run on {device} here: it needs {needs[backend]}"


def _starts_at_first_token(initial_state: str | Tensor) -> bool:
    if isinstance(initial_state, Tensor):
        return False
    if initial_state not in ("zero", "first_token"):
        raise ScanError(
            f"scan: initial_state is {initial_state!r}; it must be 'zero', 'first_token' or, in "
            "one direction, a tensor (batch, channels, states)"
        )
    return initial_state == "first_token"
