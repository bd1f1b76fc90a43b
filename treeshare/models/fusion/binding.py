"""Replaces the forward of a model's layers by programs of the kernels: all, or none and the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from treeshare.models.fusion.compiler import compile_recipe
from treeshare.models.fusion.graph import Unfusable
from treeshare.models.fusion.judge import NUM_ROWS, Call, Mixer, judge
from treeshare.models.fusion.layer import FLOATS, FusedLayer, Workspace
from treeshare.models.fusion.recipe import find_recipe
from treeshare.models.fusion.tables import StepTables
from treeshare.models.pages import in_large_pages
from treeshare.models.quantization import codes_by_parameter, is_placeholder
from treeshare.models.step import running
from treeshare.native import ELEMENTS, kernel_level, unused_reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from treeshare.models.fusion.program import Program
    from treeshare.models.quantization import Int8Weights


def fuse_layers(model: nn.Module, level: str | None = None) -> tuple[list[FusedLayer], str | None]:
    """Fuse the decoder layers of ``model``, all or none.

    Args:
        model: A model whose linear layers have no forward but their own, or one of int8 weights.
        level: Whose kernels; None: the process's, ``kernel_level()``.

    Returns:
        The fused layers; or none, and the reason.
    """
    layers = decoder_layers(model)
    try:
        _require_kernels(layers)
        calls = find_calls(model, layers)
        dtype = _dtype(calls)
        codes = codes_by_parameter(model)
        programs = find_programs(calls, dtype, codes, level)
    except Unfusable as reason:
        return [], str(reason)
    for parameter in model.parameters():  # else the mapped file stays in memory beside the joined weights
        if not is_placeholder(parameter):
            parameter.data = in_large_pages(parameter.data)
    workspace, tables = Workspace(), StepTables(dtype)
    fused = [
        FusedLayer(program, dtype, workspace, tables, codes, level, layer)
        for program, layer in zip(programs, layers, strict=True)
    ]
    for layer, forward in zip(layers, fused, strict=True):
        layer.forward = forward
    return fused, None


def unfuse_layers(model: nn.Module) -> None:
    """Give every decoder layer its own forward back."""
    for layer in model.modules():
        if isinstance(vars(layer).get("forward"), FusedLayer):
            del layer.forward


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of ``model``: the members of its longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=()))


@torch.inference_mode()
def find_calls(model: Any, layers: list[nn.Module]) -> list[Call]:  # noqa: ANN401
    """How the model calls its layers, found by running it on a few tokens.

    Raises:
        Unfusable: If it does not call each once, in their order.
    """
    found: list[Any] = []

    def note(*call: Any) -> None:  # noqa: ANN401
        found.append(call)

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        with running(Mixer()):
            model(
                input_ids=torch.arange(NUM_ROWS).unsqueeze(0) % model.get_input_embeddings().weight.shape[0],
                position_ids=torch.arange(NUM_ROWS).unsqueeze(0) * 3 % 11,
                use_cache=False,
            )
    finally:
        for hook in hooks:
            hook.remove()
    if [layer for layer, *_ in found] != layers:
        raise Unfusable("it does not call each of its layers once, in their order")
    return [Call(*call) for call in found]


def find_programs(
    found: list[Call],
    dtype: torch.dtype,
    codes: Mapping[int, Int8Weights] = FLOATS,
    level: str | None = None,
) -> list[Program]:
    """The programs of a model's layers; of layers that compute the same, one is compiled and judged.

    Args:
        found: How the model calls them.
        dtype: Of their weights.
        codes: The model's int8 weights, by the identities of their parameters.
        level: As for ``fuse_layers``.

    Raises:
        Unfusable: If a layer has none, or the kernels cannot read its weights.
    """
    known: dict[object, tuple[Program, dict[str, int]]] = {}
    programs = []
    for call in found:
        record, attend = call.record()
        if record not in known:
            graph = call.trace()
            key = graph.key()
            attend = attend or next((value.setup for value in graph.values if value.kind == "attend"), None)
            if key not in known:
                judge(call, dtype, level=level)
                identities = {name: identity for identity, name in graph.names.items()}
                known[key] = compile_recipe(find_recipe(graph, dtype), codes), identities
            known[record] = known[key]
        program, identities = known[record]
        own = dict(call.layer.named_parameters()) | dict(call.layer.named_buffers())
        assert attend is not None
        programs.append(program.with_weights({identities[name]: own[name] for name in identities}, attend))
    seen: set[int] = set()
    for program in programs:
        seen = program.require_weights(dtype, seen)
    return programs


def _require_kernels(layers: list[nn.Module]) -> None:
    if kernel_level() == "none":
        reason = unused_reason()
        raise Unfusable("no compiled kernels are used" + (f": {reason}" if reason else ""))
    if not layers:
        raise Unfusable("it has no list of layers")


def _dtype(calls: list[Call]) -> torch.dtype:
    """Of the layers' weights; those of blocks are their own."""
    dtypes = set()
    for call in calls:
        block = [] if call.block is None else list(call.layer.get_submodule(call.block.name).parameters())
        inside = {id(parameter) for parameter in block}
        dtypes |= {weight.dtype for weight in call.layer.parameters() if id(weight) not in inside}
    if len(dtypes) != 1 or not dtypes <= set(ELEMENTS):
        raise Unfusable("its weights are neither all bfloat16 nor all float32")
    return dtypes.pop()
