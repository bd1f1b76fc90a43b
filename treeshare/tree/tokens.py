"""Checks token ids from outside and converts them to int32."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from treeshare.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    TokenArray: TypeAlias = NDArray[np.int32]

MAX_TOKEN_ID = 2**31 - 1


def as_token_array(token_ids: Sequence[int] | NDArray[np.integer], where: str) -> TokenArray:
    """Copy ``token_ids`` to a read-only int32 array.

    Args:
        token_ids: Any flat sequence or 1-D array of integers in ``[0, 2**31)``.
        where: What the ids belong to, e.g. ``"prompt 3"``: the error message begins with it.

    Returns:
        int32 ``[num_tokens]``, read-only.

    Raises:
        DataError: If the ids are not a flat list of integers in range.
    """
    try:
        array = np.asarray(token_ids)
    except Exception as error:  # whatever an object of somebody's raises
        raise DataError(f"{where}: expected a flat list of integers ({error})") from error
    if array.ndim != 1:
        raise DataError(f"{where}: got {_describe(token_ids)}, expected a flat list of integers")
    if array.size:
        if array.dtype.kind not in "iu":
            raise DataError(f"{where}: got values of type {array.dtype}, expected integers")
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > MAX_TOKEN_ID:
            bad = low if low < 0 else high
            position = int(np.flatnonzero(array == bad)[0])
            raise DataError(f"{where}: got id {bad} at position {position}, expected [0, 2**31)")
    tokens: TokenArray = array.astype(np.int32)
    tokens.setflags(write=False)
    return tokens


def _describe(value: object) -> str:
    shape = getattr(value, "shape", None)
    return f"an array of shape {tuple(shape)}" if shape is not None else f"a {type(value).__name__}"
