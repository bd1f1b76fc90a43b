"""Codes of 8 bits in numpy: elementwise float32 operations, in the order that ``native/int8.h`` fixes."""

from __future__ import annotations

import numpy as np

TINY = np.float32(2.0**-100)


def padded(x, unit):
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % unit)])


def transform(x, width):
    """Sums and differences of inputs that are 1, 2, 4, ... apart, of what is scaled first."""
    if width <= 1:
        return x
    x = x * (np.float32(1) / np.sqrt(np.float32(width)))
    distance = 1
    while distance < width:
        pairs = x.reshape(*x.shape[:-1], -1, 2, distance)
        x = np.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], -2)
        x = x.reshape(*pairs.shape[:-3], -1)
        distance *= 2
    return x


def quantize(x, *, group=None, transform_width=1):
    """Codes int8 ``[rows, padded inputs]`` and scales float32 ``[rows, groups]`` of float32 rows."""
    x = padded(transform(np.asarray(x, np.float32), transform_width), 64)
    codes, scales = np.zeros(x.shape, np.int8), []
    group = group or x.shape[1]
    for first in range(0, x.shape[1], group):
        part = x[:, first : first + group]
        finite = np.isfinite(part).all(1)
        largest = np.where(finite, np.abs(np.where(np.isfinite(part), part, 0)).max(1), np.float32(np.nan))
        tiny = largest < TINY
        with np.errstate(divide="ignore", over="ignore"):
            factor = np.where(tiny | ~finite, np.float32(0), np.float32(127) / largest)
        scales.append(np.where(tiny, np.float32(0), largest / np.float32(127)))
        safe = np.where(finite[:, None], part, np.float32(0))
        codes[:, first : first + group] = np.rint(safe * factor[:, None]).astype(np.int8)
    return codes, np.stack(scales, 1).astype(np.float32)


def multiply(rows, weights, bias=None):
    """float32 ``[num_rows, num_outputs]`` of two pairs of codes and scales."""
    (a, row_scales), (b, weight_scales) = rows, weights
    num_groups = row_scales.shape[1]
    group = -(-a.shape[1] // num_groups // 64) * 64
    total = np.zeros((len(a), len(b)), np.float32)
    if bias is not None:
        total = total + np.asarray(bias, np.float32)
    for i in range(num_groups):
        part = slice(i * group, (i + 1) * group)
        sums = a[:, part].astype(np.int32) @ b[:, part].astype(np.int32).T
        scale = row_scales[:, i, None] * weight_scales[None, :, i]
        total = total + sums.astype(np.float32) * scale
    return total


def numbers_of(weights, num_inputs, transform_width=1):
    """What ``lookup_int8`` gives for codes and scales."""
    codes, scales = weights
    group = -(-codes.shape[1] // scales.shape[1] // 64) * 64
    spread = np.repeat(scales, group, axis=1)[:, : codes.shape[1]]
    return transform(codes.astype(np.float32) * spread, transform_width)[:, :num_inputs]


def to_bfloat16(x):
    """Bits, rounded to nearest, ties to even, as the kernels store them; no NaN, and what is tiny is zero."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where((bits & 0x7F800000) == 0, bits >> 16 & 0x8000, rounded).astype(np.uint16)
