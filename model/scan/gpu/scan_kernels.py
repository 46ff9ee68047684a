"""The selective scan in Triton, one direction, forward and backward.

A program owns BLOCK channels of one sample and walks the tokens CHUNK at a time with tiles of
CHUNK x BLOCK x N in registers; within a chunk the recurrence is an associative scan. It follows

    carried_t = a_t (carried_{t-1} + written_{t-1}),    h_t = carried_t + written_t

because the masked read-out and the gradient of a_t need ``carried``, and h_t - written_t would
cancel. Backward recomputes a chunk from the state before it and scans the adjoint the other way.
Tokens are addressed in scan order, so no tensor is flipped or copied; strides are free. Sums over
channels go to one partial per program: no atomics, the gradients are deterministic. No kernel
writes what it reads, so the autotuner may run one as often as it likes.

The last dimension of a tile is spread over the lanes of a warp, where sums and scans cost shuffles:
forward has the channels there, for it sums over N; backward, which sums over both, has N.
"""

# Kernel arguments are typed when a kernel is launched, not by annotations.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from model.scan.gpu.language import silu_slope, tl, triton

_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _combine(a_left, x_left, a_right, x_right):
    return a_left * a_right, a_right * x_left + x_right


@triton.jit
def _tile(base, column_stride, token_stride, token, column, has_token, has_column):
    """(tokens, columns) of a tensor as float32; zero where there is no token or column."""
    pointers = base + column[None, :] * column_stride + token[:, None] * token_stride
    return tl.load(pointers, has_token[:, None] & has_column[None, :], other=0.0).to(tl.float32)


@triton.jit
def _token(position, length, REVERSE: tl.constexpr):
    return length - 1 - position if REVERSE else position


@triton.jit
def _step(raw, bias, mask, SOFTPLUS: tl.constexpr):
    """delta after bias and softplus, and the slope of softplus; a masked token has delta 0."""
    raw = raw + bias
    slope = tl.full(raw.shape, 1.0, tl.float32)
    if SOFTPLUS:
        e = tl.exp(tl.minimum(raw, 20.0))
        # log(1 + e) without losing small e
        one_more = 1.0 + e
        small = one_more == 1.0
        log1p = tl.where(small, e, tl.log(one_more) * (e / tl.where(small, 1.0, one_more - 1.0)))
        slope = tl.where(raw > 20.0, 1.0, e / one_more)
        raw = tl.where(raw > 20.0, raw, log1p)
    return tl.where(mask, raw, 0.0), slope


@triton.jit
def forward_kernel(
    u, delta, A, B, C, D, bias, z, before, total, out, states,
    u_b, u_d, u_l, delta_b, delta_d, delta_l, B_b, B_n, B_l, C_b, C_n, C_l, z_b, z_d, z_l,
    channels, length, size,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr,
    FIRST_TOKEN: tl.constexpr, MASKED: tl.constexpr, REVERSE: tl.constexpr,
    ADD: tl.constexpr, LAST: tl.constexpr, KEEP_TOTAL: tl.constexpr, KEEP_STATES: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1).to(tl.int64)
    rows, n = tl.arange(0, CHUNK), tl.arange(0, N)
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    has_d, has_n = d < channels, n < size
    has_nd = has_n[:, None] & has_d[None, :]
    A_tile = tl.load(A + d[None, :] * size + n[:, None], has_nd, other=0.0) * _LOG2E
    step_bias = tl.load(bias + d, has_d, other=0.0) if HAS_BIAS else tl.zeros((BLOCK,), tl.float32)
    skip = tl.load(D + d, has_d, other=0.0) if HAS_D else tl.zeros((BLOCK,), tl.float32)
    u, delta = u + sample * u_b, delta + sample * delta_b
    B, C, z = B + sample * B_b, C + sample * C_b, z + sample * z_b
    dense = sample * length * channels
    before, total, out = before + dense, total + dense, out + dense
    chunks = tl.cdiv(length, CHUNK)
    states += sample * chunks * channels * size

    state = tl.zeros((N, BLOCK), tl.float32)
    if FIRST_TOKEN:
        first = _token(0, length, REVERSE)
        start = tl.load(u + d * u_d + first * u_l, has_d, other=0.0).to(tl.float32)
        state += start[None, :]
    for k in range(chunks):
        position = k * CHUNK + rows
        token = _token(position, length, REVERSE)
        has_t = position < length
        has_td = has_t[:, None] & has_d[None, :]
        if KEEP_STATES:
            tl.store(states + (k * channels + d[None, :]) * size + n[:, None], state, has_nd)
        value = _tile(u, u_d, u_l, token, d, has_t, has_d)
        step, _ = _step(
            _tile(delta, delta_d, delta_l, token, d, has_t, has_d),
            step_bias[None, :],
            has_td,
            SOFTPLUS,
        )
        B_tile = _tile(B, B_n, B_l, token, n, has_t, has_n)
        C_tile = _tile(C, C_n, C_l, token, n, has_t, has_n)
        decay = tl.exp2(step[:, None, :] * A_tile[None, :, :])
        written = (step * value)[:, None, :] * B_tile[:, :, None]

        # The token before, read again rather than moved between threads.
        earlier = tl.where(rows > 0, position - 1, 0)
        token_ = _token(earlier, length, REVERSE)
        has_ = (rows > 0) & (earlier < length)
        value_ = _tile(u, u_d, u_l, token_, d, has_, has_d)
        step_, _ = _step(
            _tile(delta, delta_d, delta_l, token_, d, has_, has_d),
            step_bias[None, :],
            has_[:, None] & has_d[None, :],
            SOFTPLUS,
        )
        B_ = _tile(B, B_n, B_l, token_, n, has_, has_n)
        received = (step_ * value_)[:, None, :] * B_[:, :, None]
        received = tl.where((rows == 0)[:, None, None], state[None, :, :], received)

        _, carried = tl.associative_scan((decay, decay * received), 0, _combine)
        after = carried + written
        visible = carried if MASKED else after
        y = tl.sum(visible * C_tile[:, :, None], axis=1)
        if MASKED:
            y = tl.where((position == 0)[:, None], 0.0, y)
        y += skip[None, :] * value
        state = tl.sum(tl.where((rows == CHUNK - 1)[:, None, None], after, 0.0), axis=0)

        here = token[:, None] * channels + d[None, :]
        if ADD:
            y += tl.load(before + here, has_td, other=0.0)
        if KEEP_TOTAL:
            tl.store(total + here, y, has_td)
        if LAST:
            if HAS_Z:
                gate = _tile(z, z_d, z_l, token, d, has_t, has_d)
                y *= gate * tl.sigmoid(gate)
            tl.store(out + here, y, has_td)


@triton.jit
def backward_kernel(
    u, delta, A, B, C, D, bias, z, total, dout, states,
    du_before, ddelta_before, du, ddelta, dA, dB, dC, dD, dbias, dz,
    u_b, u_d, u_l, delta_b, delta_d, delta_l, B_b, B_n, B_l, C_b, C_n, C_l, z_b, z_d, z_l,
    dout_b, dout_d, dout_l,
    channels, length, size,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr,
    FIRST_TOKEN: tl.constexpr, MASKED: tl.constexpr, REVERSE: tl.constexpr, WRITE_DZ: tl.constexpr,
    ADD_DU: tl.constexpr, ADD_DDELTA: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    block, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows, d, n = tl.arange(0, CHUNK), block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
    has_d, has_n = d < channels, n < size
    has_dn = has_d[:, None] & has_n[None, :]
    A_tile = tl.load(A + d[:, None] * size + n[None, :], has_dn, other=0.0)
    step_bias = tl.load(bias + d, has_d, other=0.0) if HAS_BIAS else tl.zeros((BLOCK,), tl.float32)
    skip = tl.load(D + d, has_d, other=0.0) if HAS_D else tl.zeros((BLOCK,), tl.float32)
    u, delta = u + sample * u_b, delta + sample * delta_b
    B, C, z = B + sample * B_b, C + sample * C_b, z + sample * z_b
    dense = sample * length * channels
    dout, total, dz = dout + sample * dout_b, total + dense, dz + dense
    du_before, ddelta_before = du_before + dense, ddelta_before + dense
    du, ddelta = du + dense, ddelta + dense
    partial = (block * tl.num_programs(1) + sample) * length * size
    dB, dC = dB + partial, dC + partial
    chunks = tl.cdiv(length, CHUNK)
    states += sample * chunks * channels * size

    carry = tl.zeros((BLOCK, N), tl.float32)  # the gradient that later chunks send to the state
    dA_sum = tl.zeros((BLOCK, N), tl.float32)
    dD_sum, dbias_sum = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for done in range(chunks):
        k = chunks - 1 - done
        position = k * CHUNK + rows
        token = _token(position, length, REVERSE)
        has_t = position < length
        has_td, has_tn = has_t[:, None] & has_d[None, :], has_t[:, None] & has_n[None, :]
        value = _tile(u, u_d, u_l, token, d, has_t, has_d)
        step, slope = _step(
            _tile(delta, delta_d, delta_l, token, d, has_t, has_d),
            step_bias[None, :],
            has_td,
            SOFTPLUS,
        )
        B_tile = _tile(B, B_n, B_l, token, n, has_t, has_n)
        C_tile = _tile(C, C_n, C_l, token, n, has_t, has_n)
        dy = _tile(dout, dout_d, dout_l, token, d, has_t, has_d)
        here = token[:, None] * channels + d[None, :]
        if HAS_Z:
            gate = _tile(z, z_d, z_l, token, d, has_t, has_d)
            if WRITE_DZ:
                y = tl.load(total + here, has_td, other=0.0)
                tl.store(dz + here, dy * y * silu_slope(gate), has_td)
            dy *= gate * tl.sigmoid(gate)
        du_tile = skip[None, :] * dy
        dD_sum += tl.sum(dy * value, axis=0)
        if MASKED:
            dy = tl.where((position == 0)[:, None], 0.0, dy)

        # carried, from the tokens before
        decay = tl.exp2(step[:, :, None] * (A_tile * _LOG2E)[None, :, :])
        earlier = tl.where(rows > 0, position - 1, 0)
        token_ = _token(earlier, length, REVERSE)
        has_ = (rows > 0) & (earlier < length)
        value_ = _tile(u, u_d, u_l, token_, d, has_, has_d)
        step_, _ = _step(
            _tile(delta, delta_d, delta_l, token_, d, has_, has_d),
            step_bias[None, :],
            has_[:, None] & has_d[None, :],
            SOFTPLUS,
        )
        B_ = _tile(B, B_n, B_l, token_, n, has_, has_n)
        state = tl.load(states + (k * channels + d[:, None]) * size + n[None, :], has_dn, other=0.0)
        received = (step_ * value_)[:, :, None] * B_[:, None, :]
        received = tl.where((rows == 0)[:, None, None], state[None, :, :], received)
        _, carried = tl.associative_scan((decay, decay * received), 0, _combine)

        # the gradient of h_t, from the tokens after: loaded from the last to the first, for turning
        # one tile costs less than `reverse=True`, which turns both operands and both results
        following = (k + 1) * CHUNK - rows
        token_ = _token(following, length, REVERSE)
        has_ = (rows > 0) & (following < length)
        step_, _ = _step(
            _tile(delta, delta_d, delta_l, token_, d, has_, has_d),
            step_bias[None, :],
            has_[:, None] & has_d[None, :],
            SOFTPLUS,
        )
        C_ = _tile(C, C_n, C_l, token_, n, has_, has_n)
        dy_ = _tile(dout, dout_d, dout_l, token_, d, has_, has_d)
        if HAS_Z:
            gate = _tile(z, z_d, z_l, token_, d, has_, has_d)
            dy_ *= gate * tl.sigmoid(gate)
        decay_ = tl.exp2(step_[:, :, None] * (A_tile * _LOG2E)[None, :, :])
        sent = decay_ * dy_[:, :, None] * C_[:, None, :]
        sent = tl.where((rows == 0)[:, None, None], carry[None, :, :], sent)
        _, dstate = tl.associative_scan((decay_, sent), 0, _combine)
        dstate = tl.flip(dstate, 0)

        dcarried = dstate + dy[:, :, None] * C_tile[:, None, :]
        dlog = dcarried * carried  # the gradient of log a_t
        written = step * value
        if MASKED:
            dwrite, visible = dstate, carried
        else:
            dwrite, visible = dcarried, carried + written[:, :, None] * B_tile[:, None, :]
        dwritten = tl.sum(dwrite * B_tile[:, None, :], axis=2)
        dA_sum += tl.sum(dlog * step[:, :, None], axis=0)
        carry = tl.sum(tl.where((rows == 0)[:, None, None], decay * dcarried, 0.0), axis=0)
        du_tile += step * dwritten
        if FIRST_TOKEN:
            du_tile += tl.where((position == 0)[:, None], tl.sum(carry, axis=1)[None, :], 0.0)
        ddelta_tile = slope * (value * dwritten + tl.sum(dlog * A_tile[None, :, :], axis=2))
        ddelta_tile = tl.where(has_td, ddelta_tile, 0.0)
        dbias_sum += tl.sum(ddelta_tile, axis=0)
        if ADD_DU:
            du_tile += tl.load(du_before + here, has_td, other=0.0)
        tl.store(du + here, du_tile, has_td)
        if ADD_DDELTA:
            ddelta_tile += tl.load(ddelta_before + here, has_td, other=0.0)
        tl.store(ddelta + here, ddelta_tile, has_td)
        there = token[:, None] * size + n[None, :]
        tl.store(dB + there, tl.sum(written[:, :, None] * dwrite, axis=1), has_tn)
        tl.store(dC + there, tl.sum(dy[:, :, None] * visible, axis=1), has_tn)
    tl.store(dA + (sample * channels + d[:, None]) * size + n[None, :], dA_sum, has_dn)
    tl.store(dD + sample * channels + d, dD_sum, has_d)
    tl.store(dbias + sample * channels + d, dbias_sum, has_d)
