"""Philox4x32-10: random numbers that are a function of where they are used.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; known answers from
the Random123 distribution's ``kat_vectors``.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from treeshare.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_NUM_ROUNDS = 10


def philox4x32(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Ten rounds of Philox4x32.

    Args:
        counter: ``[..., 4]`` words below 2**32.
        key: Two words below 2**32.

    Returns:
        ``[..., 4]`` random words below 2**32.
    """
    a, b, c, d = (counter[..., i].astype(np.uint64) for i in range(4))
    key_a, key_b = key
    for _ in range(_NUM_ROUNDS):
        left, right = _MULTIPLIERS[0] * a, _MULTIPLIERS[1] * c
        a, b, c, d = (
            (right >> _SHIFT) ^ b ^ np.uint64(key_a),
            right & _LOW,
            (left >> _SHIFT) ^ d ^ np.uint64(key_b),
            left & _LOW,
        )
        key_a, key_b = (key_a + _WEYL[0]) & 0xFFFFFFFF, (key_b + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([a, b, c, d], axis=-1)


def problem_key(problem_id: str | bytes | int) -> int:
    """The 64-bit key of a problem: a hash of its id, the same on every machine."""
    kind, content = {
        str: ("text", str(problem_id).encode("utf-8", "surrogatepass")),
        bytes: ("bytes", problem_id if isinstance(problem_id, bytes) else b""),
        int: ("int", str(problem_id).encode("utf-8", "surrogatepass")),
    }[type(problem_id)]
    return int.from_bytes(hashlib.blake2b(kind.encode() + b":" + content, digest_size=8).digest(), "little")


def uniforms(
    seed: int, problem_keys: ArrayLike, completion_indices: ArrayLike, positions: ArrayLike
) -> NDArray[np.float64]:
    """One number in [0, 1) for each token to be drawn; a function of the four arguments and nothing else.

    Args:
        seed: Run seed, in [0, 2**64).
        problem_keys: ``[num_draws]``: ``problem_key`` of each draw's problem.
        completion_indices: ``[num_draws]``: below 2**32.
        positions: ``[num_draws]``: tokens generated before, below 2**32.

    Returns:
        ``[num_draws]`` float64, multiples of 2**-53.

    Raises:
        ConfigError: If the seed is out of range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ConfigError.of("seed", got=seed, expected="an integer from 0 to 2**64 - 1")
    keys = np.asarray(problem_keys, dtype=np.uint64)
    indices, places = (np.asarray(x, dtype=np.uint64) for x in (completion_indices, positions))
    counter = np.stack([keys & _LOW, keys >> _SHIFT, indices & _LOW, places & _LOW], axis=-1)
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    bits = (words[..., 0] << np.uint64(21)) | (words[..., 1] >> np.uint64(11))
    return bits.astype(np.float64) * 2.0**-53
