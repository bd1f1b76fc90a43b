"""Write ``docs/from_vllm.md`` from ``treeshare/vllm_names.json``: vLLM's names, and what each does here.

.venv/bin/python scripts/write_from_vllm.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from treeshare.vllm_names import ANY, vllm_names

PAGE = Path(__file__).parents[1] / "docs" / "from_vllm.md"

HEAD = """# From vLLM

Change the import: `from treeshare import LLM, SamplingParams`. `StructuredOutputsParams`, `BeamSearchParams`,
`LoRARequest`, `TokensPrompt`, `TextPrompt`, `RequestOutput` and `CompletionOutput` are in `treeshare` too.
The tables list every name of vLLM {version} and what treeshare does with it:

- *same*: treeshare has it, with the same meaning. *Another*: it has a different meaning here.
- *accepted at* VALUES: treeshare does not have it, but these values require nothing, so they are accepted.
  Any other value is rejected, with an error that says what to use instead.
- *ignored*: any value is accepted, because none of them changes a token.
- *absent*: treeshare does not have it; using it is an error that says what to use instead.

A name that vLLM does not have either is rejected; the error suggests the most similar name. This page is
written by `scripts/write_from_vllm.py`.

treeshare's random numbers differ from vLLM's, so tokens sampled at a temperature differ; greedy tokens
agree up to rounding. If a prompt occurs twice in a call, the two get different completions. Use `AsyncLLM`
for `AsyncLLMEngine`, `treeshare serve` for `vllm serve`, and `treeshare batch` for `vllm run-batch`.
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
"""Names that vLLM does not have any more, or never had, and that people use."""


def _shown(value: object) -> str:
    return f"`{json.dumps(value) if isinstance(value, (dict, list)) else repr(value)}`"


def _row(name: str, entry: dict[str, Any]) -> str:
    if "instead" not in entry:
        return f"| `{name}` | {entry.get('here', 'same')} | {entry.get('note', '')} |"
    accepts = entry["accepts"]
    values = ", ".join(map(_shown, accepts)) if accepts != ANY else ""
    values += ", or a list of them" if entry.get("each") else ""
    treatment = "ignored" if accepts == ANY else f"accepted at {values}" if values else "absent"
    return f"| `{name}` | {treatment} | {entry['instead']} |"


def written() -> str:
    """The whole page."""
    names = vllm_names()
    parts = [HEAD.format(version=names["version"])]
    tables = [(title, names[key]) for key, title in TITLES.items()]
    tables += [(title, names["elsewhere"][key]) for key, title in ELSEWHERE.items()]
    for title, table in tables:
        rows = sorted(table.items(), key=lambda item: "instead" in item[1])
        parts.append(
            f"## {title}\n\n| name | treeshare | note |\n|---|---|---|\n"
            + "\n".join(_row(*row) for row in rows)
            + "\n"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
