"""Run directories made by hand, for reports, comparisons and exports."""

from __future__ import annotations

import json
import math

import numpy as np

from treeshare.runs import Manifest, Record, RunDirectory, prompts_sha256
from treeshare.runs.stats_log import StatsLine
from treeshare.runs.tree_file import TreeFile

VERDICTS = ("wrong answer", "runtime error", "timeout", "memory limit", "forbidden")


def make_manifest(task_ids, n, **changes):
    values = {
        "task": "humaneval",
        "data": "",
        "task_ids": list(task_ids),
        "prompts_sha256": prompts_sha256([[1]] * len(task_ids)),
        "model": "tiny",
        "model_sha256": "a" * 64,
        "dtype": "float32",
        "sampling": {"temperature": 0.8, "top_p": 1.0},
        "n": n,
        "seed": 0,
        "versions": {"python": "3.11"},
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Manifest(**(values | changes))


def write_run(path, completions, *, results=(), manifest=None, tree=None, stats=()):
    """``completions``: per task id the texts, or records' fields; ``results``: lines of results.jsonl."""
    n = max(map(len, completions.values()))
    with RunDirectory(path, manifest or make_manifest(completions, n)) as directory:
        for task_id, texts in completions.items():
            for index, text in enumerate(texts):
                fields = {"token_ids": [1, 2], "finish_reason": "stop", "cumulative_logprob": -1.0}
                fields |= text if isinstance(text, dict) else {"completion": text}
                directory.append(Record(task_id=task_id, completion_index=index, **fields))
    if results:
        lines = "".join(json.dumps(result) + "\n" for result in results)
        (path / "results.jsonl").write_text(lines, encoding="utf-8")
    if tree is not None:
        tree.write(path / "tree.json")
    if stats:
        lines = b"".join(line.model_dump_json().encode() + b"\n" for line in stats)
        (path / "stats.jsonl").write_bytes(lines)
    return path


def result(task_id, index, passed, **fields):
    verdict = "passed" if passed else VERDICTS[index % len(VERDICTS)]
    values = {
        "task_id": task_id,
        "completion_index": index,
        "passed": passed,
        "verdict": verdict,
        "detail": "",
    }
    return values | fields


def large_run(path, *, num_problems=24, n=16, logprobs=True, answers=True):
    """A run with all that a report can show: known chances, few-shot tree, two sessions."""
    rng = np.random.default_rng(0)
    completions, results = {}, []
    for number in range(num_problems):
        task_id = f"Made/{number}"
        chance = rng.beta(0.6, 1.0)
        completions[task_id] = []
        for index in range(n):
            num_tokens = int(rng.integers(4, 60))
            log_tokens = np.log(np.clip(rng.beta(8 * chance + 1, 1.2, size=num_tokens), 1e-6, 1)).tolist()
            right = bool(rng.random() < chance)
            fields = {
                "completion": f"    # attempt {rng.integers(12)}\n    return {number} + {index % 5}\n",
                "token_ids": list(range(num_tokens)),
                "finish_reason": "stop" if index % 4 else "length",
                "cumulative_logprob": math.fsum(log_tokens),
            }
            if logprobs:
                fields["logprobs"] = [[[i, logprob, 1]] for i, logprob in enumerate(log_tokens)]
            completions[task_id].append(fields)
            made = result(task_id, index, right, detail="" if right else "AssertionError: 3 != 4")
            if answers:
                made["answer"] = "right" if right else f"wrong {rng.integers(3)}"
                made["passed_public"] = bool(right or rng.random() < 0.5)
                made["signature"] = made["answer"]
            results.append(made)
    shared, families = list(range(100, 180)), [list(range(1000 * i, 1000 * i + 40)) for i in range(1, 5)]
    prompts = [
        shared + families[number % 4] + list(range(9000 + 50 * number, 9000 + 50 * number + 12 + 3 * number))
        for number in range(num_problems)
    ]
    tree = TreeFile.of_prompts(prompts, lambda ids: "".join(f"w{i} " for i in ids))
    return write_run(path, completions, results=results, tree=tree, stats=made_stats())


def made_stats():
    lines = []
    for session, length in enumerate((90, 40)):
        for second in range(length + 1):
            tokens = int(400 * second * (1 - 0.3 * second / length)) if second > 4 else 0
            lines.append(
                StatsLine(
                    session=session,
                    t_s=float(second),
                    num_finished=tokens // 40,
                    num_tokens=tokens,
                    num_steps=tokens // 64,
                    num_rows=tokens,
                    prefilled_tokens=2000,
                    prefill_s=min(second, 4.0),
                    decode_s=max(0.8 * second - 4, 0.0),
                    sampling_s=0.1 * second,
                    peak_kv_bytes=(30 + min(2 * second, 60)) << 20,
                    rss_bytes=(900 + min(3 * second, 90)) << 20,
                )
            )
    return lines
