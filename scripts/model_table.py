"""Which of transformers' causal language models run, and whether they compute what transformers does.

Builds a tiny random model of each class (spread weights, windows shorter than the prompts), loads it as a
user would and compares: greedy tokens of a forest with shared prefixes, three completions of each prompt, and
scores, in float32, with transformers' own ``generate``, one prompt at a time; in bfloat16 sampled completions
and their log-probabilities, alone and in company, bit for bit.

    python scripts/model_table.py --write                # all, in about ten minutes; writes docs/models.md
    python scripts/model_table.py qwen2 'gemma*'         # some; with --write their lines are written anew
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from model_builds import NotBuilt, build, full_config, reference, short
from model_configs import MOST_USED, VARIANTS, WRAPPERS

if TYPE_CHECKING:
    from treeshare.models.known import KnownModel

__all__ = ["MOST_USED", "difference", "examine", "markdown", "names", "save"]

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "models.md"
KNOWN = ROOT / "treeshare" / "models" / "known_models.json"

_NUM_TOKENS = 12
_LOGPROB_ERROR = 2e-3
"""Largest difference of a float32 log-probability that is still rounding: errors of some layers add up."""

_GGUF = (
    "## GGUF files",
    "",
    "Supported architectures: llama (also Mistral and SmolLM), qwen2, qwen2moe, qwen3, qwen3moe, phi3,",
    "gemma2, gemma3, stablelm, starcoder2, nemotron, gpt2, minimax-m2, and falcon with one KV head. Others",
    "are rejected by name, and so is a file with tensors or metadata that would be left out. All kinds of",
    "numbers that gguf-py dequantises are read, also mixed: F32, F16, BF16, Q4_0 to Q8_0, Q2_K to Q6_K, IQ1",
    "to IQ4, TQ1_0, TQ2_0, MXFP4 and NVFP4. Scores equal those of the dequantised model in transformers",
    "(`tests/models/test_gguf_models.py`, `test_gguf_quants.py`).",
)

_MEANING = (
    "**How models are compared.** A small model with random weights is made of each class, with windows",
    "shorter than the prompts. *Equal* means two things. In float32, greedy tokens of three completions for",
    "each of several prompts with shared prefixes, and scores, equal those of transformers for one prompt",
    "at a time. In bfloat16, sampled completions have the same bits alone and together with other prompts.",
    "A name with a comma, such as `llama, yarn`, is a variant of the configuration.",
    "",
    "**Features.** *Window*, *chunks*, *soft cap*, *sinks*: what some of its layers' attention uses.",
    "*Shared KV*: some layers read the KV of an earlier layer. *KV shape per layer*: KV differs in shape",
    "between layers. *Value width*: values and keys have different widths. *Fused*: its decoder layers run",
    "as compiled fused layers on the CPU. *Text model only*: of a multimodal model only the text model is",
    "loaded.",
)

_HEADINGS = {
    "equal": "Equal",
    "DIFFERENT": "Different",
    "CRASH": "Fails with a traceback",
    "refused": "Rejected, and why",
    "not built": "Not examined: transformers cannot make a small model",
}
"""Sections of the page, by verdict."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table.

    Attributes:
        name: The configuration's ``model_type``, perhaps with a variant.
        verdict: ``equal``, ``refused``, ``DIFFERENT``, ``CRASH`` or ``not built``.
        reason: Why, where it is not equal.
        features: What its attention asks for, where it is.
        seconds: That this took.
    """

    name: str
    verdict: str
    reason: str = ""
    features: str = ""
    seconds: float = 0.0


def names() -> list[str]:
    """All lines of the table."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS, *WRAPPERS})


def refusal(name: str) -> str:
    """Why a model of full size is refused, of which no small one was made; empty if it is not.

    Raises:
        NotBuilt: If transformers cannot make it.
    """
    from treeshare.errors import TreeshareError
    from treeshare.models.outline import find_outline
    from treeshare.models.text_part import text_part

    if name in WRAPPERS:
        return ""
    _, config = full_config(name)
    try:
        find_outline(text_part(config), torch.bfloat16, name)
    except TreeshareError as error:
        return _reason(error)
    except Exception as error:  # whatever a class's code raises
        raise NotBuilt(short(error)) from error
    return ""


def _reason(error: Exception) -> str:
    """What a refusal says, without the model's kind."""
    return str(error).partition(": ")[2].removeprefix("not implemented: ")


def save(name: str, folder: Path) -> None:
    """Save a tiny random model that transformers can run.

    Raises:
        NotBuilt: If there is none.
    """
    model, config = build(name)
    try:
        expected_of(model, prompts(model.get_input_embeddings().weight.shape[0])[0])
        model.save_pretrained(folder)
        if name not in WRAPPERS:
            config.save_pretrained(folder)
    except Exception as error:  # whatever a class's code raises
        raise NotBuilt(short(error)) from error


def prompts(vocab_size: int) -> list[list[int]]:
    """Prompts that share beginnings, all longer than the windows."""
    draws = torch.Generator().manual_seed(5)

    def tokens(count: int) -> list[int]:
        return torch.randint(2, vocab_size, (count,), generator=draws).tolist()

    root, branch = tokens(21), tokens(19)
    return [root + tokens(9), root + branch + tokens(1), root + branch + tokens(20), tokens(34)]


def expected_of(model: Any, prompt: list[int]) -> tuple[list[int], torch.Tensor]:  # noqa: ANN401
    """Greedy tokens by ``generate``, and the log-probabilities of all tokens at each."""
    from transformers import GenerationConfig

    options = GenerationConfig(max_new_tokens=_NUM_TOKENS, do_sample=False, pad_token_id=0, bos_token_id=0)
    model.generation_config.eos_token_id = None  # which the options' would not replace
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            generation_config=options,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return output.sequences[0, len(prompt) :].tolist(), torch.cat(output.logits).float().log_softmax(-1)


def difference(folder: Path, backend: str = "auto") -> str:
    """How a saved model's float32 tokens or scores differ from transformers'; empty if they do not."""
    from treeshare import LLM, SamplingParams

    own = reference(folder)
    llm = LLM(folder, dtype="float32", device="cpu", backend=backend)
    asked = prompts(llm.vocab_size)
    greedy = SamplingParams(n=3, temperature=0.0, max_tokens=_NUM_TOKENS, ignore_eos=True)
    outputs = llm.generate(asked, greedy, use_tqdm=False)
    pairs, wanted = [], []
    for prompt, output in zip(asked, outputs, strict=True):
        tokens, logprobs = expected_of(own, prompt)
        if any(list(completion.token_ids) != tokens for completion in output.outputs):
            return (
                f"greedy tokens {list(output.outputs[0].token_ids)[:6]} ..., transformers' {tokens[:6]} ..."
            )
        pairs.append((prompt, tokens))
        wanted.append(logprobs[torch.arange(len(tokens)), tokens])
    for score, logprobs in zip(llm.score(pairs, use_tqdm=False), wanted, strict=True):
        error = float((torch.tensor(score.logprobs) - logprobs).abs().max())
        if not error <= _LOGPROB_ERROR:
            return f"log-probabilities differ by {error:.2g}"
    return ""


def company_difference(folder: Path, backend: str = "auto") -> str:
    """How bfloat16 completions differ alone and in company."""
    from treeshare import LLM, SamplingParams

    llm = LLM(folder, dtype="bfloat16", device="cpu", backend=backend)
    asked = prompts(llm.vocab_size)
    sampled = SamplingParams(
        n=3, temperature=1.0, seed=0, max_tokens=_NUM_TOKENS, ignore_eos=True, logprobs=1
    )
    together = llm.generate(asked, sampled, use_tqdm=False)
    for prompt, output in zip(asked, together, strict=True):
        (alone,) = llm.generate([prompt], sampled, use_tqdm=False)
        for one, other in zip(output.outputs, alone.outputs, strict=True):
            if list(one.token_ids) != list(other.token_ids) or str(one.logprobs) != str(other.logprobs):
                return "bits of bfloat16 completions depend on what else runs"
    return ""


def features_of(folder: Path) -> str:
    """What a model's attention asks for, in words."""
    from treeshare.models import load_model

    loaded = load_model(folder, "float32")
    calls, layers = loaded.calls, loaded.geometry.layers
    features = {
        "window": any(call.spec.window for call in calls),
        "chunks": any(call.spec.chunk for call in calls),
        "soft cap": any(call.spec.soft_cap for call in calls),
        "sinks": any(call.spec.has_sinks for call in calls),
        "shared KV": any(not call.writes for call in calls),
        "KV shape per layer": len({(kv.num_heads, kv.key_width, kv.value_width) for kv in layers}) > 1,
        "value width": any(layer.key_width != layer.value_width for layer in layers),
        "fused": bool(loaded.fused),
        "text model only": bool(loaded.other_tokens),
    }
    return ", ".join(name for name, there in features.items() if there)


def examine(name: str, backend: str = "auto") -> Row:
    """A line of the table."""
    from treeshare.errors import TreeshareError

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        try:
            save(name, folder)
        except NotBuilt as error:
            return _row_without_model(name, str(error))
        try:
            found = difference(folder, backend) or company_difference(folder, backend)
            row = Row(
                name=name,
                verdict="DIFFERENT" if found else "equal",
                reason=found,
                features="" if found else features_of(folder),
            )
        except TreeshareError as error:
            row = Row(name=name, verdict="refused", reason=_reason(error).replace(str(folder), "FOLDER"))
        except Exception as error:  # the fault that this looks for
            traceback.print_exc()
            row = Row(name=name, verdict="CRASH", reason=short(error))
    return Row(**(vars(row) | {"seconds": round(time.perf_counter() - started, 1)}))


def _row_without_model(name: str, cause: str) -> Row:
    """The line of a model of which transformers makes no small one that runs."""
    try:
        reason = refusal(name)
    except NotBuilt:
        reason = ""
    if reason:
        return Row(name=name, verdict="refused", reason=reason)
    return Row(name=name, verdict="not built", reason=cause)


def markdown(rows: list[KnownModel]) -> str:
    """The page ``docs/models.md``."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    groups = {verdict: [row for row in rows if row.verdict == verdict] for verdict in _HEADINGS}
    plain = [row for row in rows if row.name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    others = [row for row in rows if row.name in WRAPPERS and row not in plain]
    num_others = sum(row.verdict == "equal" for row in others)
    built = [row for row in plain if row.verdict != "not built"]
    num_equal = sum(row.verdict == "equal" for row in plain)
    version = transformers.__version__
    lines = [
        "# Models",
        "",
        f"transformers {version} has {len(plain)} causal language models; {len(built)} of them could be",
        f"examined. **{num_equal}** of these compute the same in treeshare as in transformers. The others",
        f"are rejected at loading, with the reason below. {num_others} kinds of multimodal models work",
        "as text models: prompts with images are rejected. `treeshare models MODEL` says whether a folder, a",
        "GGUF file or a hub id is supported, without reading its weights. This page is written by",
        "`scripts/model_table.py`.",
        "",
        *_MEANING,
    ]
    for verdict, heading in _HEADINGS.items():
        if groups[verdict]:
            column = "features" if verdict == "equal" else "reason"
            lines += ["", f"## {heading}", "", f"| model | {column} |", "|---|---|"]
            lines += [f"| {row.name} | {row.reason or row.features} |" for row in groups[verdict]]
    lines += ["", *_GGUF]
    return "\n".join(lines) + "\n"


def write(rows: list[Row]) -> None:
    """Replace the lines of ``rows`` in the list and on the page."""
    from dataclasses import asdict

    from treeshare.models.known import KnownModel, known_models

    known = {row.name: row for row in known_models()}
    for row in rows:
        known[row.name] = KnownModel(
            name=row.name, verdict=row.verdict, reason=row.reason, features=row.features
        )
    ordered = [known[name] for name in names() if name in known]
    KNOWN.write_text(json.dumps([asdict(row) for row in ordered], indent=1) + "\n", encoding="utf-8")
    TABLE.write_text(markdown(ordered), encoding="utf-8")


def main() -> int:
    """Examine what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help="patterns of names; all by default")
    parser.add_argument("--backend", default="auto", help="of attention")
    parser.add_argument("--write", action="store_true", help="write docs/models.md")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    patterns = arguments.names or ["*"]
    rows = []
    for name in names():
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            rows.append(examine(name, arguments.backend))
            print(json.dumps(vars(rows[-1])), flush=True)
            if arguments.write:
                write(rows[-1:])
    bad = [row.name for row in rows if row.verdict in ("DIFFERENT", "CRASH")]
    print(f"{sum(row.verdict == 'equal' for row in rows)} equal of {len(rows)}; {bad}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
