"""treeshare: many completions for many prompts, as one tree of shared segments.

Reading order: ``tree/prompt_tree.py`` (what is shared), ``attention/state.py`` and ``attention/cpu.py``
(attention once per node, merged up the tree), ``attention/layout.py`` (a step's plan),
``attention/key_blocks.py`` (why a row's bits do not know the tree), ``kv/store.py`` (where KV lies),
``models/adapter.py`` (an unchanged transformers model on packed rows), ``engine/engine.py`` (the step loop).
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treeshare.engine.async_llm import AsyncLLM
    from treeshare.engine.beams import BeamSearchParams
    from treeshare.engine.llm import LLM
    from treeshare.engine.lora import LoRARequest
    from treeshare.engine.outputs import CompletionOutput, RequestOutput
    from treeshare.engine.prompts import TextPrompt, TokensPrompt
    from treeshare.errors import TreeshareError
    from treeshare.sampling.params import SamplingParams
    from treeshare.sampling.structured import StructuredOutputsParams
    from treeshare.tree import FewShotPrompts, PromptTree

    __version__: str

# Threads that wait for one another spin only briefly (OpenMP reads this when torch is loaded): where other
# programs want the cores too, long spinning keeps away the very thread that is waited for. W1s beside a busy
# program: 139 tokens/s with OpenMP's own spinning, 230 with this; alone no difference.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

_HOMES = {
    "LLM": "treeshare.engine.llm",
    "AsyncLLM": "treeshare.engine.async_llm",
    "BeamSearchParams": "treeshare.engine.beams",
    "LoRARequest": "treeshare.engine.lora",
    "CompletionOutput": "treeshare.engine.outputs",
    "RequestOutput": "treeshare.engine.outputs",
    "SamplingParams": "treeshare.sampling.params",
    "TextPrompt": "treeshare.engine.prompts",
    "TokensPrompt": "treeshare.engine.prompts",
    "StructuredOutputsParams": "treeshare.sampling.structured",
    "PromptTree": "treeshare.tree",
    "FewShotPrompts": "treeshare.tree",
    "TreeshareError": "treeshare.errors",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "BeamSearchParams",
    "CompletionOutput",
    "FewShotPrompts",
    "LoRARequest",
    "PromptTree",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
    "TreeshareError",
    "__version__",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import public names on first use: ``import treeshare`` alone does not load torch."""
    if name == "__version__":
        from treeshare.installation import version

        return version()
    if name not in _HOMES:
        if not name.startswith("_"):
            from treeshare.vllm_names import absence, others_of

            if name in others_of("import"):  # of an AttributeError, "from treeshare import" drops the words
                raise ImportError(absence("import", name))
        raise AttributeError(f"module 'treeshare' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names, those that are imported on first use among them."""
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING", "Any", "annotations", "importlib", "os"})
