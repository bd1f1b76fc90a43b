"""Builds a model from its configuration: not much larger than its files, and without library messages.

A damaged number would otherwise take hours, or all memory, before a weight is found to be missing.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from torch.nn.modules import module as hooks
from transformers.utils import logging

from treeshare.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MIN_MODULES, _MODULES_PER_TENSOR = 3_000, 30
_MIN_NUMBERS = 1 << 24

_ROOM = 4
"""How often a number of the files may be in the model: a head may be tied, a layer registered twice."""

_PACKED_ROOM = 32
"""The same where the files are quantised: many of the model's numbers in one of the files'."""


class _Quiet:
    """How many threads want transformers to be quiet, and the settings that the first of them found."""

    lock = threading.Lock()
    num_inside = 0
    verbosity = 0
    hook: Any = None


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Inside, transformers writes neither warnings nor bars; then the user's settings hold again.

    Its settings are the process's: where several threads are inside, the last to leave sets them back.
    """
    with _Quiet.lock:
        if not _Quiet.num_inside:
            _Quiet.verbosity = logging.get_verbosity()
            _Quiet.hook = logging.set_tqdm_hook(_no_bar)
            logging.set_verbosity_error()
        _Quiet.num_inside += 1
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.num_inside -= 1
            if not _Quiet.num_inside:
                logging.set_verbosity(_Quiet.verbosity)
                logging.set_tqdm_hook(_Quiet.hook)


def _no_bar(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    return factory(*args, **kwargs | {"disable": True})


@contextlib.contextmanager
def bounded(name: str, *, num_tensors: int, num_elements: int, packed: bool = False) -> Iterator[None]:
    """Refuse a model that grows, while it is built inside, far beyond what its files hold.

    Counts what this thread registers in modules; costs a microsecond for each.

    Args:
        name: What the user calls the model.
        num_tensors: Tensors in its files.
        num_elements: Numbers in all of them.
        packed: Whether they are quantised.

    Raises:
        ModelLoadError: Saying by how much.
    """
    max_modules = _MIN_MODULES + _MODULES_PER_TENSOR * num_tensors
    max_numbers = max(_MIN_NUMBERS, (_PACKED_ROOM if packed else _ROOM) * num_elements)
    counts, thread = {"modules": 0, "numbers": 0}, threading.get_ident()

    def refuse(what: str, limit: int) -> None:
        raise ModelLoadError(
            f"model: cannot load {name}: its configuration describes more than {limit} {what}, its files "
            f"hold {num_elements} numbers in {num_tensors} tensors; config.json is damaged or another model's"
        )

    def count_module(*_: object) -> None:
        if threading.get_ident() == thread:
            counts["modules"] += 1
            if counts["modules"] > max_modules:
                refuse("modules", max_modules)

    def count_numbers(_module: object, _name: str, tensor: Any) -> None:  # noqa: ANN401
        if tensor is not None and threading.get_ident() == thread:
            counts["numbers"] += tensor.numel()
            if counts["numbers"] > max_numbers:
                refuse("numbers", max_numbers)

    with contextlib.ExitStack() as stack:
        for register, hook in (
            (hooks.register_module_module_registration_hook, count_module),
            (hooks.register_module_parameter_registration_hook, count_numbers),
            (hooks.register_module_buffer_registration_hook, count_numbers),
        ):
            stack.callback(register(hook).remove)
        yield
