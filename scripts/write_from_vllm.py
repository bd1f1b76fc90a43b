"""Write ``docs/from_vllm.md`` from ``treeshare/vllm_names.json``: vLLM's names, and what becomes of each.

.venv/bin/python scripts/write_from_vllm.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from treeshare.vllm_names import ANY, vllm_names

PAGE = Path(__file__).parents[1] / "docs" / "from_vllm.md"

HEAD = """# From vLLM

Change the import: `from treeshare import LLM, SamplingParams`; `StructuredOutputsParams`, `BeamSearchParams`,
`LoRARequest`, `TokensPrompt`, `TextPrompt`, `RequestOutput`, `CompletionOutput` come from `treeshare`, too.

Below stand all names of vLLM {version}, and what becomes of each. *Same*: treeshare has it. *Another*:
the name has another meaning here. *Taken at*: these values ask for nothing, so they are accepted; any
other is refused by one sentence that says what to use instead. *Any*: no value of it changes a token.
*Absent*: asking for it is an error that says what to use instead. A name that neither has is refused,
with the nearest that there is. Written by `scripts/write_from_vllm.py`.

Random numbers are others than vLLM's, so tokens at a temperature are others; greedy ones agree up to
rounding. A prompt that comes twice in a call gets different completions. `AsyncLLM` stands for
`AsyncLLMEngine`, `treeshare serve` for `vllm serve`, `treeshare batch` for `vllm run-batch`.
"""

TITLES = {
    "SamplingParams": "`SamplingParams(...)`",
    "LLM": "`LLM(...)`",
    "LLM.generate": "`LLM.generate(...)`",
    "LLM.chat": "`LLM.chat(...)`",
    "LLM.beam_search": "`LLM.beam_search(...)`",
    "BeamSearchParams": "`BeamSearchParams(...)`",
    "BeamSearchSequence": "`BeamSearchSequence`",
    "AsyncLLM.generate": "`AsyncLLM.generate(...)`",
    "StructuredOutputsParams": "`StructuredOutputsParams(...)`",
    "LoRARequest": "`LoRARequest(...)`",
    "LLM.": "Methods of `LLM`",
    "prompt": "A prompt: `TextPrompt`, `TokensPrompt`, or a mapping",
    "RequestOutput": "`RequestOutput`",
    "CompletionOutput": "`CompletionOutput`",
    "chat": "Server: `/v1/chat/completions`",
    "completions": "Server: `/v1/completions`",
}


ELSEWHERE = {
    "import": "`from vllm import ...`",
    "SamplingParams": "`SamplingParams(...)`: older versions, transformers",
    "LLM": "`LLM(...)`: older versions, transformers",
    "LLM.generate": "`LLM.generate(...)`: older versions",
    "LLM.chat": "`LLM.chat(...)`: older versions",
    "BeamSearchParams": "`BeamSearchParams(...)`: transformers",
    "StructuredOutputsParams": "`StructuredOutputsParams(...)`: older versions",
    "LoRARequest": "`LoRARequest(...)`: older versions",
    "server": "Server: older versions, OpenAI, others",
}
"""Names that vLLM has no more, or never had, and that people write."""


def _shown(value: object) -> str:
    return f"`{json.dumps(value) if isinstance(value, (dict, list)) else repr(value)}`"


def _row(name: str, entry: dict[str, Any]) -> str:
    if "instead" not in entry:
        return f"| `{name}` | {entry.get('here', 'same')} | {entry.get('note', '')} |"
    accepts = entry["accepts"]
    taken = "any" if accepts == ANY else ", ".join(map(_shown, accepts))
    taken += ", or a list of them" if entry.get("each") else ""
    return f"| `{name}` | {'taken at ' + taken if taken else 'absent'} | {entry['instead']} |"


def written() -> str:
    """The whole page."""
    names = vllm_names()
    parts = [HEAD.format(version=names["version"])]
    tables = [(title, names[key]) for key, title in TITLES.items()]
    tables += [(title, names["elsewhere"][key]) for key, title in ELSEWHERE.items()]
    for title, table in tables:
        rows = sorted(table.items(), key=lambda item: "instead" in item[1])
        parts.append(
            f"## {title}\n\n| | here | |\n|---|---|---|\n" + "\n".join(_row(*row) for row in rows) + "\n"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
