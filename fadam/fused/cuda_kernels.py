"""Triton kernels of the fused step: every launch covers all tensors of a parameter group that share their dtypes.

The tensors are found through tables in device memory (`fadam.fused.cuda` builds them): an int64 table of the
rows `PARAM` to `INDEX` below, one column a tensor; addresses of the gradients; and the list of chunks, pairs of
int32 (tensor, number of the chunk in it). One program works on one chunk: in blocks of BLOCK elements with 16-byte
accesses as far as all addresses of the tensor allow it, and in narrow blocks, one element an access, where they do
not and for what eight elements leave over. (In wide blocks the second loop would cost most of the registers.)

Numbers: float32 arithmetic with IEEE square root and, for what is stored, division; subnormal numbers count. Squares
are summed in float64, where those of float32 numbers neither overflow nor vanish. Every sum has a fixed order: over
four neighbours, over the blocks of a chunk, over the threads of a program, over the chunks of a tensor. `tl.minimum`
and `tl.maximum` of floats are avoided, because they may drop a NaN; comparisons are written so that a NaN stays one.
"""

# Kernels get pointers and numbers of the compiler's own types: only what is fixed when they are compiled is annotated.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
import triton
import triton.language as tl

# Rows of the table of tensors, int64: addresses, number of elements here and of the logical tensor (of which this
# may be a shard), index in the caller's list, first chunk and number of chunks, first element in the logical tensor,
# number of the tensor for the random bits.
PARAM = tl.constexpr(0)
MOMENTUM = tl.constexpr(1)
FIM = tl.constexpr(2)
SIZE = tl.constexpr(3)
NUMEL = tl.constexpr(4)
SLOT = tl.constexpr(5)
FIRST = tl.constexpr(6)
COUNT = tl.constexpr(7)
OFFSET = tl.constexpr(8)
INDEX = tl.constexpr(9)

LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32
SMALLEST = tl.constexpr(1.1754943508222875e-38)  # of its normal numbers


@triton.jit
def _load(base, index, end):
    """A block as float32, (BLOCK,); 0 beyond the end, where a gradient of 0 then adds nothing to any sum."""
    return tl.load(base + index, mask=index < end, other=0.0).to(tl.float32)


@triton.jit
def _store(base, index, end, x):
    tl.store(base + index, x.to(base.dtype.element_ty), mask=index < end)


@triton.jit
def _load_gradient(base, index, end, unscale, MAXIMIZE: tl.constexpr):
    g = _load(base, index, end) * unscale
    if MAXIMIZE:
        g = -g
    return g


@triton.jit
def _unscale(grad_scale):
    """1 / grad_scale, or 1 without one."""
    return 1.0 if grad_scale is None else (1.0 / tl.load(grad_scale).to(tl.float64)).to(tl.float32)


@triton.jit
def _squares(x, BLOCK: tl.constexpr):
    """Sums of four neighbours' squares, float64, (BLOCK / 4,); neighbours lie in one thread."""
    x = tl.reshape(x.to(tl.float64), (BLOCK // 4, 4))
    return tl.sum(x * x, 1)


@triton.jit
def _square(x):
    x = x.to(tl.float64)
    return x * x


@triton.jit
def _fim_weights(weights, beta2_t, rest2_t, i, num_tensors):
    """beta2_t and 1 - beta2_t of tensor i: from the table where steps differ or live on the device."""
    if weights is not None:
        beta2_t = tl.load(weights + i)
        rest2_t = tl.load(weights + num_tensors + i)
    return beta2_t, rest2_t


@triton.jit
def _fim(f, g, beta2_t, rest2_t):
    """f_t, at most the largest float32; a NaN stays one."""
    f = beta2_t * f + (rest2_t * g) * g
    return tl.where(f > LARGEST, LARGEST, f)


@triton.jit
def _metric(f, eps_term, RHO: tl.constexpr):
    """d_t = f^rho + eps_t^(2 rho); infinite where that is 0, so that what is divided by it is 0."""
    if RHO == 0.5:
        root = tl.sqrt_rn(f)
    elif RHO == 1.0:
        root = f
    else:
        tiny = f < SMALLEST  # which the hardware's logarithm takes for 0
        power = tl.log2(tl.where(tiny, f * 16777216.0, f)) - tl.where(tiny, 24.0, 0.0)
        root = tl.exp2(power * RHO)
    d = root + eps_term
    return tl.where(d == 0.0, float("inf"), d)


@triton.jit
def _cut(x, limit):
    """x, at most +-limit; a NaN stays one."""
    x = tl.where(x > limit, limit, x)
    return tl.where(x < -limit, -limit, x)


@triton.jit
def _rms(total, numel):
    return tl.sqrt(total / numel.to(tl.float64))


@triton.jit
def _epsilon_is_bound(total, numel, eps, eps2):
    """Whether eps_t = min(eps, eps2 RMS(g)) is eps itself; not so for a NaN."""
    return _rms(total, numel) * eps2 >= eps


@triton.jit
def _epsilon_term(sums, slot, numel, ceiling, eps, eps2, RHO: tl.constexpr, EPS_MODE: tl.constexpr):
    """eps_t^(2 rho) of one tensor, a float32 number; `ceiling` is eps^(2 rho)."""
    if EPS_MODE == "fixed":
        eps_term = ceiling
    else:
        total = tl.load(sums + slot)
        if EPS_MODE == "adaptive":
            x = _rms(total, numel) * eps2
            bound = _epsilon_is_bound(total, numel, eps, eps2)
        else:
            x = _rms(total, numel)
            bound = x >= 1.0
        if RHO != 0.5:
            x = tl.where(x == 0.0, 0.0, tl.exp2(tl.log2(x) * (2.0 * RHO)))
        if EPS_MODE == "scaled":
            x = x * ceiling
        eps_term = tl.where(bound, ceiling, x).to(tl.float32)
    return eps_term


@triton.jit
def _clip_factor(total, numel, clip):
    """1 / max(1, RMS / clip), a float32 number; NaN for a sum that is NaN, 0 for one that is infinite."""
    ratio = _rms(total, numel) / clip
    return (1.0 / tl.where(ratio < 1.0, 1.0, ratio)).to(tl.float32)


@triton.jit
def _mix(x):
    """uint32 to uint32, as in `fadam.metric.stochastic_bfloat16`."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _round_stochastically(x, element, key):
    """float32 to one of its two bfloat16 neighbours, as float32, by a hash of the element's int64 number and a key."""
    bits = x.to(tl.uint32, bitcast=True)
    low = (element & 0xFFFFFFFF).to(tl.uint32)
    high = (element >> 32).to(tl.uint32)
    noise = _mix(_mix(low ^ (high * 0x9E3779B1) ^ key) + key) & 0xFFFF
    rounded = ((bits + noise) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return tl.where((bits & 0x7F800000) == 0x7F800000, x, rounded)  # infinities and NaN as they are


@triton.jit
def _chunk_of(chunks, number, table, num_tensors, chunk_size):
    """Tensor, first element (int64) and number of elements (int32) of a chunk."""
    i = tl.load(chunks + 2 * number)
    start = tl.load(chunks + 2 * number + 1).to(tl.int64) * chunk_size
    left = tl.load(table + SIZE * num_tensors + i) - start
    size = tl.where(left < chunk_size, left, chunk_size).to(tl.int32)
    return i, start, size


@triton.jit(do_not_specialize=["num_tensors"])
def fim_weights_kernel(addresses, weights, log_beta2, rest2, num_tensors, BLOCK: tl.constexpr):
    """beta2_t, 1 - beta2_t and t of every tensor, float32 (3, num_tensors), from steps on the device.

    beta2_t = 1 - (1 - beta2) / (1 - beta2^t), in float64, where 1 - beta2^t keeps its digits.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < num_tensors
    step = tl.load(addresses + i, mask=inside, other=0).to(tl.pointer_type(tl.float32))
    t = tl.load(step, mask=inside, other=1.0)
    rest2_t = rest2 / (1.0 - tl.exp(t.to(tl.float64) * log_beta2))
    rest2_t = tl.where(t == 1.0, 1.0, rest2_t)
    tl.store(weights + i, (1.0 - rest2_t).to(tl.float32), mask=inside)
    tl.store(weights + num_tensors + i, rest2_t.to(tl.float32), mask=inside)
    tl.store(weights + 2 * num_tensors + i, t, mask=inside)


@triton.jit(do_not_specialize=["num_tensors"])
def gradient_kernel(
    table,
    gradients,
    chunks,
    partials,
    grad_scale,
    num_tensors,
    chunk_size,
    G: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of g^2, one a chunk: 4 bytes a float32 parameter."""
    number = tl.program_id(0)
    i, start, size = _chunk_of(chunks, number, table, num_tensors, chunk_size)
    address = tl.load(gradients + i)
    unscale = _unscale(grad_scale)
    lane = tl.arange(0, BLOCK)
    narrow = tl.arange(0, BLOCK // 4)
    wide = tl.where(address % 16 == 0, size // 8 * 8, 0)
    total = tl.full((BLOCK // 4,), 0.0, tl.float64)
    g_base = tl.multiple_of(address.to(tl.pointer_type(G)), 16) + start
    for at in range(0, wide, BLOCK):
        total += _squares(_load_gradient(g_base, at + lane, wide, unscale, MAXIMIZE), BLOCK)
    g_base = address.to(tl.pointer_type(G)) + start
    for at in range(wide, size, BLOCK // 4):
        total += _square(_load_gradient(g_base, at + narrow, size, unscale, MAXIMIZE))
    tl.store(partials + number, tl.sum(total, 0))


@triton.jit
def _directions(
    g_base, f_base, p_base, index, end, unscale, beta2_t, rest2_t, eps_term,
    RHO: tl.constexpr, MAXIMIZE: tl.constexpr, WITH_W: tl.constexpr,
):  # fmt: skip
    """g, n and w of one block before the clip; w is n where there is no weight decay.

    They go into sums only, so the division may be off by 2 units in the last place: it has no branches and shares the
    reciprocal, and this kernel is the one with the most arithmetic for its bytes.
    """
    g = _load_gradient(g_base, index, end, unscale, MAXIMIZE)
    f = _load(f_base, index, end)
    if WITH_W:
        theta = _load(p_base, index, end)
    d = _metric(_fim(f, g, beta2_t, rest2_t), eps_term, RHO)
    n = g / d
    w = n
    if WITH_W:
        w = _cut(theta / d, LARGEST)
    return g, n, w


@triton.jit(do_not_specialize=["num_tensors", "num_chunks"])
def metric_kernel(
    table,
    gradients,
    chunks,
    partials,
    sums,
    weights,
    grad_scale,
    beta2_t,
    rest2_t,
    ceiling,
    eps,
    eps2,
    num_tensors,
    num_chunks,
    chunk_size,
    G: tl.constexpr,
    F: tl.constexpr,
    P: tl.constexpr,
    RHO: tl.constexpr,
    EPS_MODE: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    WITH_W: tl.constexpr,
    GUESS: tl.constexpr,
    REDO: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of n^2 and w^2 before the clip, one a chunk, in rows 1 and 2 of `partials`: 12 bytes a float32 parameter.

    With GUESS, eps_t = eps is taken for granted, and row 0 gets the sums of g^2, by which a launch with REDO finds
    the tensors for which that was wrong. One number after the rows of `partials`, which `sum_kernel` changes, tells
    that launch whether there is any.
    """
    number = tl.program_id(0)
    if GUESS:
        tl.store(partials + 3 * num_chunks, 0.0, mask=number == 0)
    if REDO:  # noqa: SIM102 (what stands in there must not even be compiled otherwise)
        if tl.load(partials + 3 * num_chunks) == 0.0:
            return
    i, start, size = _chunk_of(chunks, number, table, num_tensors, chunk_size)
    numel = tl.load(table + NUMEL * num_tensors + i)
    slot = tl.load(table + SLOT * num_tensors + i)
    keep = size > 0
    if REDO:
        keep = _epsilon_is_bound(tl.load(sums + slot), numel, eps, eps2) == 0
        size = tl.where(keep, size, 0)
    eps_term = ceiling if GUESS else _epsilon_term(sums, slot, numel, ceiling, eps, eps2, RHO, EPS_MODE)
    beta2_t, rest2_t = _fim_weights(weights, beta2_t, rest2_t, i, num_tensors)
    unscale = _unscale(grad_scale)

    g_address = tl.load(gradients + i)
    f_address = tl.load(table + FIM * num_tensors + i)
    p_address = tl.load(table + PARAM * num_tensors + i)
    lane = tl.arange(0, BLOCK)
    narrow = tl.arange(0, BLOCK // 4)
    wide = tl.where((g_address | f_address | p_address) % 16 == 0, size // 8 * 8, 0)
    g_total = tl.full((BLOCK // 4,), 0.0, tl.float64)
    n_total = tl.full((BLOCK // 4,), 0.0, tl.float64)
    w_total = tl.full((BLOCK // 4,), 0.0, tl.float64)

    g_base = tl.multiple_of(g_address.to(tl.pointer_type(G)), 16) + start
    f_base = tl.multiple_of(f_address.to(tl.pointer_type(F)), 16) + start
    p_base = tl.multiple_of(p_address.to(tl.pointer_type(P)), 16) + start
    for at in range(0, wide, BLOCK):
        g, n, w = _directions(
            g_base, f_base, p_base, at + lane, wide, unscale, beta2_t, rest2_t, eps_term, RHO, MAXIMIZE, WITH_W
        )
        if GUESS:
            g_total += _squares(g, BLOCK)
        n_total += _squares(n, BLOCK)
        if WITH_W:
            w_total += _squares(w, BLOCK)

    g_base = g_address.to(tl.pointer_type(G)) + start
    f_base = f_address.to(tl.pointer_type(F)) + start
    p_base = p_address.to(tl.pointer_type(P)) + start
    for at in range(wide, size, BLOCK // 4):
        g, n, w = _directions(
            g_base, f_base, p_base, at + narrow, size, unscale, beta2_t, rest2_t, eps_term, RHO, MAXIMIZE, WITH_W
        )
        if GUESS:
            g_total += _square(g)
        n_total += _square(n)
        if WITH_W:
            w_total += _square(w)

    if GUESS:
        tl.store(partials + number, tl.sum(g_total, 0))
    tl.store(partials + num_chunks + number, tl.sum(n_total, 0), mask=keep)
    if WITH_W:
        tl.store(partials + 2 * num_chunks + number, tl.sum(w_total, 0), mask=keep)


@triton.jit(do_not_specialize=["num_tensors", "num_chunks", "num_slots", "row"])
def sum_kernel(
    table,
    partials,
    sums,
    eps,
    eps2,
    num_tensors,
    num_chunks,
    num_slots,
    row,
    GUESS: tl.constexpr,
    REDO: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows `row` and following of `sums` (3, num_slots), one program a tensor and row, from those of `partials`."""
    if REDO:  # noqa: SIM102 (what stands in there must not even be compiled otherwise)
        if tl.load(partials + 3 * num_chunks) == 0.0:
            return
    i = tl.program_id(0)
    row += tl.program_id(1)
    slot = tl.load(table + SLOT * num_tensors + i)
    first = tl.load(table + FIRST * num_tensors + i).to(tl.int32)
    count = tl.load(table + COUNT * num_tensors + i).to(tl.int32)
    keep = count > 0
    if REDO:
        keep = _epsilon_is_bound(tl.load(sums + slot), tl.load(table + NUMEL * num_tensors + i), eps, eps2) == 0
        count = tl.where(keep, count, 0)
    base = partials + row.to(tl.int64) * num_chunks + first
    lane = tl.arange(0, BLOCK)
    totals = tl.full((BLOCK,), 0.0, tl.float64)
    for at in range(0, count, BLOCK):
        totals += tl.load(base + at + lane, mask=at + lane < count, other=0.0)
    total = tl.sum(totals, 0)
    tl.store(sums + row.to(tl.int64) * num_slots + slot, total, mask=keep)
    if GUESS:
        wrong = _epsilon_is_bound(total, tl.load(table + NUMEL * num_tensors + i), eps, eps2) == 0
        tl.store(partials + 3 * num_chunks, 1.0, mask=(row == 0) & wrong)


@triton.jit
def _update(
    g_base, f_base, m_base, p_base, index, end, element, key, unscale, beta2_t, rest2_t, eps_term, n_factor, w_factor,
    lr, beta1, rest1, weight_decay, m_largest, f_largest,
    RHO: tl.constexpr, MAXIMIZE: tl.constexpr, WITH_W: tl.constexpr, CLIP: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):  # fmt: skip
    """f_t, m_t and theta_t of one block."""
    g = _load_gradient(g_base, index, end, unscale, MAXIMIZE)
    f = _load(f_base, index, end)
    theta = _load(p_base, index, end)
    m = _load(m_base, index, end)
    f = _fim(f, g, beta2_t, rest2_t)
    d = _metric(f, eps_term, RHO)
    n = tl.div_rn(g, d)
    if CLIP:
        n = n * n_factor
    m = beta1 * m + rest1 * n
    update = m
    if WITH_W:
        w = _cut(tl.div_rn(theta, d), LARGEST)
        if CLIP:
            w = w * w_factor
        update = update + weight_decay * w
    theta = theta - lr * update
    if STOCHASTIC:
        theta = _round_stochastically(theta, element + index, key)
    _store(f_base, index, end, _cut(f, f_largest))
    _store(m_base, index, end, _cut(m, m_largest))
    _store(p_base, index, end, theta)


@triton.jit(do_not_specialize=["num_tensors", "num_slots", "t"])
def apply_kernel(
    table,
    gradients,
    chunks,
    sums,
    weights,
    lr,
    grad_scale,
    found_inf,
    beta2_t,
    rest2_t,
    t,
    ceiling,
    eps,
    eps2,
    beta1,
    rest1,
    weight_decay,
    clip,
    m_largest,
    f_largest,
    num_tensors,
    num_slots,
    chunk_size,
    G: tl.constexpr,
    F: tl.constexpr,
    M: tl.constexpr,
    P: tl.constexpr,
    RHO: tl.constexpr,
    EPS_MODE: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    WITH_W: tl.constexpr,
    CLIP: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    LR_TENSOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write f_t, m_t and theta_t: 28 bytes a float32 parameter. Nothing is written where `found_inf` is not 0.

    The chunks go backwards, because the last ones of the pass before are still in the cache.
    """
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    i, start, size = _chunk_of(chunks, number, table, num_tensors, chunk_size)
    if found_inf is not None:
        size = tl.where(tl.load(found_inf) == 0.0, size, 0)
    numel = tl.load(table + NUMEL * num_tensors + i)
    slot = tl.load(table + SLOT * num_tensors + i)
    eps_term = _epsilon_term(sums, slot, numel, ceiling, eps, eps2, RHO, EPS_MODE)
    n_factor = 1.0
    w_factor = 1.0
    if CLIP:
        n_factor = _clip_factor(tl.load(sums + num_slots + slot), numel, clip)
        if WITH_W:
            w_factor = _clip_factor(tl.load(sums + 2 * num_slots + slot), numel, clip)
    beta2_t, rest2_t = _fim_weights(weights, beta2_t, rest2_t, i, num_tensors)
    unscale = _unscale(grad_scale)
    if LR_TENSOR:
        lr = tl.load(lr).to(tl.float32)
    element = start
    key = i
    if STOCHASTIC:
        element = start + tl.load(table + OFFSET * num_tensors + i)
        if weights is not None:
            t = tl.load(weights + 2 * num_tensors + i).to(tl.int32)
        key = _mix(_mix(t.to(tl.uint32)) + tl.load(table + INDEX * num_tensors + i).to(tl.uint32))

    g_address = tl.load(gradients + i)
    f_address = tl.load(table + FIM * num_tensors + i)
    m_address = tl.load(table + MOMENTUM * num_tensors + i)
    p_address = tl.load(table + PARAM * num_tensors + i)
    lane = tl.arange(0, BLOCK)
    narrow = tl.arange(0, BLOCK // 4)
    wide = tl.where((g_address | f_address | m_address | p_address) % 16 == 0, size // 8 * 8, 0)

    g_base = tl.multiple_of(g_address.to(tl.pointer_type(G)), 16) + start
    f_base = tl.multiple_of(f_address.to(tl.pointer_type(F)), 16) + start
    m_base = tl.multiple_of(m_address.to(tl.pointer_type(M)), 16) + start
    p_base = tl.multiple_of(p_address.to(tl.pointer_type(P)), 16) + start
    for at in range(0, wide, BLOCK):
        _update(
            g_base, f_base, m_base, p_base, at + lane, wide, element, key, unscale, beta2_t, rest2_t, eps_term,
            n_factor, w_factor, lr, beta1, rest1, weight_decay, m_largest, f_largest,
            RHO, MAXIMIZE, WITH_W, CLIP, STOCHASTIC,
        )  # fmt: skip

    g_base = g_address.to(tl.pointer_type(G)) + start
    f_base = f_address.to(tl.pointer_type(F)) + start
    m_base = m_address.to(tl.pointer_type(M)) + start
    p_base = p_address.to(tl.pointer_type(P)) + start
    for at in range(wide, size, BLOCK // 4):
        _update(
            g_base, f_base, m_base, p_base, at + narrow, size, element, key, unscale, beta2_t, rest2_t, eps_term,
            n_factor, w_factor, lr, beta1, rest1, weight_decay, m_largest, f_largest,
            RHO, MAXIMIZE, WITH_W, CLIP, STOCHASTIC,
        )  # fmt: skip


@triton.jit(do_not_specialize=["first", "num_tensors"])
def address_kernel(table, odd, first, num_tensors, ADDRESSES: tl.constexpr):
    """Write up to ADDRESSES addresses, which the launch itself carries, into a table, from its entry `first` on.

    `odd` holds 2 address + 1, so that the launch is never specialised, that is compiled anew, for what divides them.
    """
    for k in tl.static_range(ADDRESSES):
        tl.store(table + first + k, odd[k] >> 1, mask=first + k < num_tensors)
