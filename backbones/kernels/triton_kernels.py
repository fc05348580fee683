"""The kernels behind `triton_attention`, which `triton_launch` calls.

A program has a tile of `BM` query tokens, or of keys: `ROWS` rows of a group by `COLS` columns, of
which a group need not fill all. Tokens are read from the map at the places that `index` says.
Relative positions come as terms, of each query for each offset, in the order of `relative_tables`.
Channels D of a head are read as D1 + D2, powers of two (80 = 64 + 16).

Scores are in base 2: times log2(e). That of a hidden key is finite, so that a row of hidden keys is
no NaN: what it adds up is scaled away by the first visible one. Products of float32 are three of
TF32, as precise.

Sizes that change with the image are not specialised on, so that no image compiles anew.
"""

import triton
import triton.language as tl

_SIZES = ["B", "T", "G", "h", "w", "L"]


@triton.jit
def _tokens(index, n, inside, INDEX: tl.constexpr):
    """Token at each place of a group; -1 for padding and outside the group."""
    token = tl.where(inside, n, -1)
    if INDEX:
        token = tl.load(index + n, mask=inside, other=-1)
    return token


@triton.jit
def _read(
    x, pad, token, inside, stride, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
    PADDED: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """(tokens, WIDTH) channels of a head from FIRST on: of padding those of `pad`, or zeros; zeros
    outside and behind the D channels."""
    rows = x + token * stride
    read = token >= 0
    if PADDED:
        rows = tl.where(read, rows, pad + token * 0)
        read = inside
    d = FIRST + tl.arange(0, WIDTH)
    mask = read[:, None]
    if FIRST + WIDTH > D:
        mask = mask & (d < D)[None, :]
    return tl.load(rows[:, None] + d[None, :], mask=mask, other=0.0).to(DOT)


@triton.jit
def _write(
    x, value, token, stride, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """The inverse of `_read`; padding is dropped."""
    d = FIRST + tl.arange(0, WIDTH)
    mask = (token >= 0)[:, None] & (d < D)[None, :]
    tl.store(x + (token * stride)[:, None] + d[None, :], value, mask=mask)


@triton.jit
def _read_terms(terms, mask):
    """In base 2."""
    return tl.load(terms, mask=mask, other=0.0).to(tl.float32) * 1.4426950408889634


@triton.jit(do_not_specialize=_SIZES)
def forward(
    qkv, pad, index, labels, terms, out, lse, scale, B, T, G, h, w, M, L,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    BM: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    INDEX: tl.constexpr, PADDED: tl.constexpr, LABELS: tl.constexpr, TERMS: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one head and group: `out` (B, T, M * D); `lse` (M, B * T), the logarithm
    of the sum of exponentials, in base 2."""
    N = h * w
    tiles = (N + BM - 1) // BM
    pid = tl.program_id(0)
    n = pid % tiles * BM + tl.arange(0, BM)
    m = pid // tiles % M
    group = pid // tiles // M % G
    image = (pid // tiles // M // G).to(tl.int64)
    E = 3 * M * D
    qkv += image * T * E + m * D
    first = (m * B + image) * T  # of the image's tokens of this head

    inside = n < N
    index += group * N
    token = _tokens(index, n, inside, INDEX)
    real = token >= 0
    q1 = _read(qkv, pad, token, inside, E, 0, D1, D, False, DOT)
    if D2 > 0:
        q2 = _read(qkv, pad, token, inside, E, D1, D2, D, False, DOT)
    if LABELS:
        labels += group * N
        label = tl.load(labels + n, mask=inside, other=-1)
    if TERMS:
        terms += first * L
        h_terms = terms + (token * L + h - 1 - n // w)
        w_terms = terms + (token * L + 2 * h - 1 + w - 1 - n % w)
    pad += m * D

    high = tl.full([BM], -1.0e30, tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc1 = tl.zeros([BM, D1], tl.float32)
    if D2 > 0:
        acc2 = tl.zeros([BM, D2], tl.float32)
    j = tl.arange(0, ROWS * COLS)
    for c in range(0, w, COLS):
        col = c + tl.arange(0, COLS)
        if TERMS:
            rel_w = _read_terms(w_terms[:, None] + col[None, :], real[:, None] & (col < w)[None, :])
        for r in range(0, h, ROWS):
            key_row = r + j // COLS
            key_col = c + j % COLS
            there = (key_row < h) & (key_col < w)
            key = key_row * w + key_col
            key_token = _tokens(index, key, there, INDEX)
            k1 = _read(qkv + M * D, pad + M * D, key_token, there, E, 0, D1, D, PADDED, DOT)
            s = tl.dot(q1, tl.trans(k1), input_precision="tf32x3")
            if D2 > 0:
                k2 = _read(qkv + M * D, pad + M * D, key_token, there, E, D1, D2, D, PADDED, DOT)
                s = tl.dot(q2, tl.trans(k2), s, input_precision="tf32x3")
            s = s * scale
            if TERMS:
                row = r + tl.arange(0, ROWS)
                mask = real[:, None] & (row < h)[None, :]
                rel_h = _read_terms(h_terms[:, None] + row[None, :], mask)
                if ROWS == 1:
                    s = s + (rel_h + rel_w)
                else:
                    rel = rel_h[:, :, None] + rel_w[:, None, :]
                    s = tl.reshape(tl.reshape(s, (BM, ROWS, COLS)) + rel, (BM, ROWS * COLS))
            visible = there[None, :]
            if LABELS:
                key_label = tl.load(labels + key, mask=there, other=-2)
                visible = visible & (label[:, None] == key_label[None, :])
            s = tl.where(visible, s, -1.0e30)

            higher = tl.maximum(high, tl.max(s, 1))
            lower = tl.exp2(high - higher)
            p = tl.exp2(s - higher[:, None])
            total = total * lower + tl.sum(p, 1)
            high = higher
            p = p.to(DOT)
            v1 = _read(qkv + 2 * M * D, pad + 2 * M * D, key_token, there, E, 0, D1, D, PADDED, DOT)
            acc1 = tl.dot(p, v1, acc1 * lower[:, None], input_precision="tf32x3")
            if D2 > 0:
                v2 = _read(
                    qkv + 2 * M * D, pad + 2 * M * D, key_token, there, E, D1, D2, D, PADDED, DOT
                )
                acc2 = tl.dot(p, v2, acc2 * lower[:, None], input_precision="tf32x3")

    out += image * T * M * D + m * D
    _write(out, acc1 / total[:, None], token, M * D, 0, D1, D)
    if D2 > 0:
        _write(out, acc2 / total[:, None], token, M * D, D1, D2, D)
    tl.store(lse + first + token, high + tl.log2(total), mask=real)


@triton.jit(do_not_specialize=_SIZES)
def backward_queries(
    qkv, pad, index, labels, terms, out, grad, lse, delta, grad_qkv, grad_terms,
    scale, natural, B, T, G, h, w, M, L,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    BM: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, CHUNKS: tl.constexpr,
    INDEX: tl.constexpr, PADDED: tl.constexpr, LABELS: tl.constexpr, TERMS: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """A tile of queries: their q in `grad_qkv`; `grad_terms`, of rows at each step and of columns
    behind the last; and `delta` (M, B * T), grad . out, which the keys' kernel reads."""
    N = h * w
    tiles = (N + BM - 1) // BM
    pid = tl.program_id(0)
    n = pid % tiles * BM + tl.arange(0, BM)
    m = pid // tiles % M
    group = pid // tiles // M % G
    image = (pid // tiles // M // G).to(tl.int64)
    E = 3 * M * D
    qkv += image * T * E + m * D
    out += image * T * M * D + m * D
    grad += image * T * M * D + m * D
    first = (m * B + image) * T

    inside = n < N
    index += group * N
    token = _tokens(index, n, inside, INDEX)
    real = token >= 0
    q1 = _read(qkv, pad, token, inside, E, 0, D1, D, False, DOT)
    g1 = _read(grad, pad, token, inside, M * D, 0, D1, D, False, DOT)
    o1 = _read(out, pad, token, inside, M * D, 0, D1, D, False, DOT)
    dot = tl.sum(g1.to(tl.float32) * o1.to(tl.float32), 1)
    if D2 > 0:
        q2 = _read(qkv, pad, token, inside, E, D1, D2, D, False, DOT)
        g2 = _read(grad, pad, token, inside, M * D, D1, D2, D, False, DOT)
        o2 = _read(out, pad, token, inside, M * D, D1, D2, D, False, DOT)
        dot += tl.sum(g2.to(tl.float32) * o2.to(tl.float32), 1)
    tl.store(delta + first + token, dot, mask=real)
    norm = tl.load(lse + first + token, mask=real, other=0.0)
    if LABELS:
        labels += group * N
        label = tl.load(labels + n, mask=inside, other=-1)
    if TERMS:
        terms += first * L
        grad_terms += first * L
        to_h = token * L + h - 1 - n // w
        to_w = token * L + 2 * h - 1 + w - 1 - n % w
    pad += m * D

    acc1 = tl.zeros([BM, D1], tl.float32)
    if D2 > 0:
        acc2 = tl.zeros([BM, D2], tl.float32)
    j = tl.arange(0, ROWS * COLS)
    for c in range(0, w, COLS):
        col = c + tl.arange(0, COLS)
        if TERMS:
            w_places = to_w[:, None] + col[None, :]
            w_mask = real[:, None] & (col < w)[None, :]
            rel_w = _read_terms(terms + w_places, w_mask)
            grad_w = tl.zeros([BM, COLS], tl.float32)
        for r in range(0, h, ROWS):
            key_row = r + j // COLS
            key_col = c + j % COLS
            there = (key_row < h) & (key_col < w)
            key = key_row * w + key_col
            key_token = _tokens(index, key, there, INDEX)
            k1 = _read(qkv + M * D, pad + M * D, key_token, there, E, 0, D1, D, PADDED, DOT)
            s = tl.dot(q1, tl.trans(k1), input_precision="tf32x3")
            if D2 > 0:
                k2 = _read(qkv + M * D, pad + M * D, key_token, there, E, D1, D2, D, PADDED, DOT)
                s = tl.dot(q2, tl.trans(k2), s, input_precision="tf32x3")
            s = s * scale
            if TERMS:
                row = r + tl.arange(0, ROWS)
                h_places = to_h[:, None] + row[None, :]
                h_mask = real[:, None] & (row < h)[None, :]
                rel_h = _read_terms(terms + h_places, h_mask)
                if ROWS == 1:
                    s = s + (rel_h + rel_w)
                else:
                    rel = rel_h[:, :, None] + rel_w[:, None, :]
                    s = tl.reshape(tl.reshape(s, (BM, ROWS, COLS)) + rel, (BM, ROWS * COLS))
            visible = there[None, :]
            if LABELS:
                key_label = tl.load(labels + key, mask=there, other=-2)
                visible = visible & (label[:, None] == key_label[None, :])
            p = tl.exp2(tl.where(visible, s, -1.0e30) - norm[:, None])

            v1 = _read(qkv + 2 * M * D, pad + 2 * M * D, key_token, there, E, 0, D1, D, PADDED, DOT)
            grad_p = tl.dot(g1, tl.trans(v1), input_precision="tf32x3")
            if D2 > 0:
                v2 = _read(
                    qkv + 2 * M * D, pad + 2 * M * D, key_token, there, E, D1, D2, D, PADDED, DOT
                )
                grad_p = tl.dot(g2, tl.trans(v2), grad_p, input_precision="tf32x3")
            grad_s = p * (grad_p - dot[:, None])
            if TERMS:
                if ROWS == 1:
                    grad_h = tl.sum(grad_s, 1)[:, None]
                    grad_w += grad_s
                else:
                    by_row = tl.reshape(grad_s, (BM, ROWS, COLS))
                    grad_h = tl.sum(by_row, 2)
                    grad_w += tl.sum(by_row, 1)
                if CHUNKS:  # of columns: a row's terms get a sum from each
                    before = tl.load(grad_terms + h_places, mask=h_mask & (c > 0), other=0.0)
                    grad_h += before.to(tl.float32)
                tl.store(grad_terms + h_places, grad_h, mask=h_mask)
            grad_s = grad_s.to(DOT)
            acc1 = tl.dot(grad_s, k1, acc1, input_precision="tf32x3")
            if D2 > 0:
                acc2 = tl.dot(grad_s, k2, acc2, input_precision="tf32x3")
        if TERMS:
            tl.store(grad_terms + w_places, grad_w, mask=w_mask)

    grad_qkv += image * T * E + m * D
    _write(grad_qkv, acc1 * natural, token, E, 0, D1, D)
    if D2 > 0:
        _write(grad_qkv, acc2 * natural, token, E, D1, D2, D)


@triton.jit(do_not_specialize=_SIZES)
def backward_keys(
    qkv, pad, index, labels, terms, grad, lse, delta, grad_qkv, grad_pad,
    scale, natural, B, T, G, h, w, M, L,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    BM: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    INDEX: tl.constexpr, PADDED: tl.constexpr, LABELS: tl.constexpr, TERMS: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """A tile of keys: their k and v in `grad_qkv`; and in `grad_pad` (programs, 2, D) what padding
    among them adds. Scores are (keys, queries) here, so that products read them as they are."""
    N = h * w
    across = (w + COLS - 1) // COLS
    tiles = (h + ROWS - 1) // ROWS * across
    pid = tl.program_id(0)
    r = pid % tiles // across * ROWS
    c = pid % tiles % across * COLS
    m = pid // tiles % M
    group = pid // tiles // M % G
    image = (pid // tiles // M // G).to(tl.int64)
    E = 3 * M * D
    qkv += image * T * E + m * D
    grad += image * T * M * D + m * D
    first = (m * B + image) * T

    row = r + tl.arange(0, ROWS)
    col = c + tl.arange(0, COLS)
    j = tl.arange(0, ROWS * COLS)
    key_row = r + j // COLS
    key_col = c + j % COLS
    there = (key_row < h) & (key_col < w)
    key = key_row * w + key_col
    index += group * N
    pad += m * D
    terms += first * L
    key_token = _tokens(index, key, there, INDEX)
    k1 = _read(qkv + M * D, pad + M * D, key_token, there, E, 0, D1, D, PADDED, DOT)
    v1 = _read(qkv + 2 * M * D, pad + 2 * M * D, key_token, there, E, 0, D1, D, PADDED, DOT)
    grad_k1 = tl.zeros([ROWS * COLS, D1], tl.float32)
    grad_v1 = tl.zeros([ROWS * COLS, D1], tl.float32)
    if D2 > 0:
        k2 = _read(qkv + M * D, pad + M * D, key_token, there, E, D1, D2, D, PADDED, DOT)
        v2 = _read(qkv + 2 * M * D, pad + 2 * M * D, key_token, there, E, D1, D2, D, PADDED, DOT)
        grad_k2 = tl.zeros([ROWS * COLS, D2], tl.float32)
        grad_v2 = tl.zeros([ROWS * COLS, D2], tl.float32)
    if LABELS:
        labels += group * N
        key_label = tl.load(labels + key, mask=there, other=-2)

    for start in range(0, N, BM):
        n = start + tl.arange(0, BM)
        inside = n < N
        token = _tokens(index, n, inside, INDEX)
        real = token >= 0
        q1 = _read(qkv, pad, token, inside, E, 0, D1, D, False, DOT)
        s = tl.dot(k1, tl.trans(q1), input_precision="tf32x3")
        if D2 > 0:
            q2 = _read(qkv, pad, token, inside, E, D1, D2, D, False, DOT)
            s = tl.dot(k2, tl.trans(q2), s, input_precision="tf32x3")
        s = s * scale
        if TERMS:
            to_h = terms + (token * L + h - 1 - n // w)
            to_w = terms + (token * L + 2 * h - 1 + w - 1 - n % w)
            rel_h = _read_terms(to_h[None, :] + row[:, None], real[None, :] & (row < h)[:, None])
            rel_w = _read_terms(to_w[None, :] + col[:, None], real[None, :] & (col < w)[:, None])
            if ROWS == 1:
                s = s + (rel_h + rel_w)
            else:
                rel = rel_h[:, None, :] + rel_w[None, :, :]
                s = tl.reshape(tl.reshape(s, (ROWS, COLS, BM)) + rel, (ROWS * COLS, BM))
        visible = there[:, None]
        if LABELS:
            label = tl.load(labels + n, mask=inside, other=-1)
            visible = visible & (label[None, :] == key_label[:, None])
        norm = tl.load(lse + first + token, mask=real, other=0.0)
        p = tl.exp2(tl.where(visible, s, -1.0e30) - norm[None, :])

        g1 = _read(grad, pad, token, inside, M * D, 0, D1, D, False, DOT)
        grad_v1 = tl.dot(p.to(DOT), g1, grad_v1, input_precision="tf32x3")
        grad_p = tl.dot(v1, tl.trans(g1), input_precision="tf32x3")
        if D2 > 0:
            g2 = _read(grad, pad, token, inside, M * D, D1, D2, D, False, DOT)
            grad_v2 = tl.dot(p.to(DOT), g2, grad_v2, input_precision="tf32x3")
            grad_p = tl.dot(v2, tl.trans(g2), grad_p, input_precision="tf32x3")
        dot = tl.load(delta + first + token, mask=real, other=0.0)
        grad_s = (p * (grad_p - dot[None, :])).to(DOT)
        grad_k1 = tl.dot(grad_s, q1, grad_k1, input_precision="tf32x3")
        if D2 > 0:
            grad_k2 = tl.dot(grad_s, q2, grad_k2, input_precision="tf32x3")

    grad_k1 = grad_k1 * natural
    grad_qkv += image * T * E + m * D
    _write(grad_qkv + M * D, grad_k1, key_token, E, 0, D1, D)
    _write(grad_qkv + 2 * M * D, grad_v1, key_token, E, 0, D1, D)
    if D2 > 0:
        grad_k2 = grad_k2 * natural
        _write(grad_qkv + M * D, grad_k2, key_token, E, D1, D2, D)
        _write(grad_qkv + 2 * M * D, grad_v2, key_token, E, D1, D2, D)
    if PADDED:
        padding = (there & (key_token < 0))[:, None]
        grad_pad += pid.to(tl.int64) * 2 * D
        d = tl.arange(0, D1)
        tl.store(grad_pad + d, tl.sum(tl.where(padding, grad_k1, 0.0), 0), mask=d < D)
        tl.store(grad_pad + D + d, tl.sum(tl.where(padding, grad_v1, 0.0), 0), mask=d < D)
        if D2 > 0:
            d = D1 + tl.arange(0, D2)
            tl.store(grad_pad + d, tl.sum(tl.where(padding, grad_k2, 0.0), 0), mask=d < D)
            tl.store(grad_pad + D + d, tl.sum(tl.where(padding, grad_v2, 0.0), 0), mask=d < D)
