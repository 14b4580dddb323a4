"""Device code of `tbkin_core.modeling.kernels`, which alone imports it: Triton need not be installed.

Letters as in `tbkin_core.modeling.attention`. A block of M queries sees the whole row of its L keys, so
that largest entry, sums and selection need no second pass. Blocks are powers of two, what exceeds L or D is
masked. Bounds of loops are constants: Triton's interpreter cannot count to a tensor under every NumPy.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

# The interpreter multiplies bfloat16 as the integers it keeps them in.
_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
# Of these Triton would compile a kernel anew for values that are 1 or divide by 16; batches differ in them.
_VARYING = ["length", "text_length", "seed", "mask_batch", "mask_key"]


@triton.jit
def _product(left, right):
    """(M, K) and (K, N) -> (M, N) in float32."""
    if _INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def _load_rows(base, rows, length, stride, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """(M, D) of a matrix whose rows lie `stride` apart; zeros outside."""
    columns = tl.arange(0, BLOCK_D)
    inside = (rows < length)[:, None] & (columns < WIDTH)[None, :]
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store_rows(base, block, rows, length, stride, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    columns = tl.arange(0, BLOCK_D)
    inside = (rows < length)[:, None] & (columns < WIDTH)[None, :]
    tl.store(base + rows[:, None] * stride + columns[None, :], block.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _exponentials(
    query,
    key,
    present,
    scale,
    rows,
    keys,
    text_length,
    least,
    RULE: tl.constexpr,
    SCOPE: tl.constexpr,
):
    """Softmax numerators (M, L) of all keys and of the kept ones; the equations stand in `attention`.

    `least` is ln τ, or τ where the rule compares scores.
    """
    scores = _product(query, tl.trans(key)) * scale  # (M, L)
    scores = tl.where(present[None, :], scores, float("-inf"))
    largest = tl.max(scores, axis=1)  # (M,)
    dense = tl.exp(scores - largest[:, None])
    if RULE == "dense":
        selected = dense
    else:
        if RULE == "relative":
            lowest = largest + least
        elif RULE == "probability":
            lowest = largest + tl.log(tl.sum(dense, axis=1)) + least
        else:
            tl.static_assert(RULE == "score", "unknown rule")
            lowest = tl.zeros_like(largest) + least
        kept = scores >= tl.minimum(lowest, largest)[:, None]
        if SCOPE != "all":
            query_is_text = (rows < text_length)[:, None]
            key_is_text = (keys < text_length)[None, :]
            if SCOPE == "cross-modal":
                kept = kept | (query_is_text == key_is_text)
            elif SCOPE == "text-to-image":
                kept = kept | (rows >= text_length)[:, None] | key_is_text
            else:
                tl.static_assert(SCOPE == "image-to-text", "unknown scope")
                kept = kept | query_is_text | (keys >= text_length)[None, :]
        selected = tl.where(kept, dense, 0.0)
    return dense, selected


@triton.jit
def _dropout_factors(seed, head, rows, keys, dropout, inverse, BLOCK_L: tl.constexpr):
    """(M, L) of 0 with probability `dropout` and else `inverse`; depends on seed, head and place only."""
    # One call of the generator gives four numbers, here for four neighbouring keys.
    BLOCK_M: tl.constexpr = rows.shape[0]
    quads = tl.arange(0, BLOCK_L // 4)
    places = (head * BLOCK_L + rows[:, None]) * (BLOCK_L // 4) + quads[None, :]
    first, second, third, fourth = tl.rand4x(seed, places)  # (M, L/4)
    draws = tl.join(tl.join(first, third), tl.join(second, fourth))  # (M, L/4, 2, 2)
    return tl.where(tl.reshape(draws, (BLOCK_M, BLOCK_L)) >= dropout, inverse, 0.0)


@triton.jit(do_not_specialize=_VARYING)
def attention_forward(
    query, key, value, key_mask, output, query_batch, query_head, query_row, key_batch, key_head,
    key_row, value_batch, value_head, value_row, mask_batch, mask_key, heads, length, text_length,
    scale, least, seed, dropout, inverse, RULE: tl.constexpr, SCOPE: tl.constexpr,
    DROPOUT: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program a block of queries of one head of one sample; `output` is (B, L, H, D)."""
    head_of_all = tl.program_id(0)
    batch = (head_of_all // heads).to(tl.int64)
    head = (head_of_all % heads).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    keys = tl.arange(0, BLOCK_L)
    present = tl.load(key_mask + batch * mask_batch + keys * mask_key, mask=keys < length, other=0) != 0
    q = _load_rows(query + batch * query_batch + head * query_head, rows, length, query_row, WIDTH, BLOCK_D)
    k = _load_rows(key + batch * key_batch + head * key_head, keys, length, key_row, WIDTH, BLOCK_D)
    v = _load_rows(value + batch * value_batch + head * value_head, keys, length, value_row, WIDTH, BLOCK_D)
    _, selected = _exponentials(q, k, present, scale, rows, keys, text_length, least, RULE, SCOPE)
    total = tl.sum(selected, axis=1)  # (M,)
    if DROPOUT:
        selected = selected * _dropout_factors(seed, head_of_all, rows, keys, dropout, inverse, BLOCK_L)
    attended = _product(selected.to(v.dtype), v) / total[:, None]  # (M, D)
    start = output + (batch * length * heads + head) * WIDTH
    _store_rows(start, attended, rows, length, heads * WIDTH, WIDTH, BLOCK_D)


@triton.jit(do_not_specialize=_VARYING)
def attention_backward(
    gradient, query, key, value, key_mask, query_gradient, key_gradient, value_gradient,
    gradient_batch, gradient_head, gradient_row, query_batch, query_head, query_row, key_batch,
    key_head, key_row, value_batch, value_head, value_row, mask_batch, mask_key, heads, length,
    text_length, scale, least, seed, dropout, inverse, RULE: tl.constexpr, SCOPE: tl.constexpr,
    STRAIGHT_THROUGH: tl.constexpr, DROPOUT: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program a head of a sample: nothing is summed across programs; gradients are (B, L, H, D)."""
    head_of_all = tl.program_id(0)
    batch = (head_of_all // heads).to(tl.int64)
    head = (head_of_all % heads).to(tl.int64)
    keys = tl.arange(0, BLOCK_L)
    present = tl.load(key_mask + batch * mask_batch + keys * mask_key, mask=keys < length, other=0) != 0
    k = _load_rows(key + batch * key_batch + head * key_head, keys, length, key_row, WIDTH, BLOCK_D)
    v = _load_rows(value + batch * value_batch + head * value_head, keys, length, value_row, WIDTH, BLOCK_D)
    start_of_head = (batch * length * heads + head) * WIDTH
    dk = tl.zeros((BLOCK_L, BLOCK_D), dtype=tl.float32)
    dv = tl.zeros((BLOCK_L, BLOCK_D), dtype=tl.float32)
    for first in range(0, QUERIES, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        q = _load_rows(
            query + batch * query_batch + head * query_head, rows, length, query_row, WIDTH, BLOCK_D
        )
        do = _load_rows(
            gradient + batch * gradient_batch + head * gradient_head,
            rows,
            length,
            gradient_row,
            WIDTH,
            BLOCK_D,
        )
        dense, selected = _exponentials(q, k, present, scale, rows, keys, text_length, least, RULE, SCOPE)
        weights = selected / tl.sum(selected, axis=1)[:, None]  # (M, L)
        dw = _product(do, tl.trans(v))  # (M, L)
        if DROPOUT:
            factors = _dropout_factors(seed, head_of_all, rows, keys, dropout, inverse, BLOCK_L)
            dw = dw * factors
            used = (weights * factors).to(do.dtype)
        else:
            used = weights.to(do.dtype)
        dv += _product(tl.trans(used), do)
        if STRAIGHT_THROUGH:
            weights = dense / tl.sum(dense, axis=1)[:, None]
        ds = weights * (dw - tl.sum(weights * dw, axis=1)[:, None]) * scale
        ds = ds.to(q.dtype)
        dq = _product(ds, k)
        _store_rows(query_gradient + start_of_head, dq, rows, length, heads * WIDTH, WIDTH, BLOCK_D)
        dk += _product(tl.trans(ds), q)
    _store_rows(key_gradient + start_of_head, dk, keys, length, heads * WIDTH, WIDTH, BLOCK_D)
    _store_rows(value_gradient + start_of_head, dv, keys, length, heads * WIDTH, WIDTH, BLOCK_D)


@triton.jit(do_not_specialize=["texts", "regions"])
def transport(
    cost,
    text_mask,
    region_mask,
    plan,
    texts,
    regions,
    minus_inverse_beta,
    ITERATIONS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program a sample: all iterations of `losses.optimal_transport_distance`; contiguous (B, T, K)."""
    sample = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_K)
    is_text = tl.load(text_mask + sample * texts + rows, mask=rows < texts, other=0) != 0
    is_region = tl.load(region_mask + sample * regions + columns, mask=columns < regions, other=0) != 0
    both = is_text[:, None] & is_region[None, :]
    inside = (rows < texts)[:, None] & (columns < regions)[None, :]
    places = sample * texts * regions + rows[:, None] * regions + columns[None, :]
    costs = tl.load(cost + places, mask=inside, other=0.0)  # (T, K)
    kernel = tl.where(both, tl.exp(costs * minus_inverse_beta), 0.0)
    current = tl.where(both, 1.0, 0.0)
    words = tl.maximum(tl.sum(is_text.to(tl.float32), axis=0), 1.0)  # no word, no distance
    boxes = tl.sum(is_region.to(tl.float32), axis=0)
    scale_text = tl.where(is_text, 1.0 / words, 0.0)  # (T,)
    for _ in range(ITERATIONS):
        proximal = kernel * current
        column = boxes * tl.sum(proximal * scale_text[:, None], axis=0)  # (K,)
        scale_region = tl.where(is_region, 1.0 / tl.maximum(column, 1e-30), 0.0)
        shared = proximal * scale_region[None, :]
        row = words * tl.sum(shared, axis=1)  # (T,)
        scale_text = tl.where(is_text, 1.0 / tl.maximum(row, 1e-30), 0.0)
        current = scale_text[:, None] * shared
    tl.store(plan + places, current, mask=inside)
