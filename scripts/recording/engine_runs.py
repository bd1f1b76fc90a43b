"""The recorded runs of the engine: the real model, tiny ones, every option, scores and search."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from recording.items import (
    THREADS,
    cli,
    completion_item,
    fold_cost,
    generated,
    lasting,
    make_llm,
    make_tiny,
    sampling,
)
from recording.models import CONFIGS, forest, random_model, text_model, tiny_model

if TYPE_CHECKING:
    from recording.items import Items, Place


def w1s(place: Place, dtype: str) -> Items:
    """The workload W1s on the real model."""
    workload = json.loads(place.workload.read_text())
    problems = workload["problems"]
    params = [
        sampling(
            n=problem["samples"],
            max_tokens=workload["new_tokens"],
            ignore_eos=workload["ignore_eos"],
            temperature=workload["temperature"],
            top_p=workload["top_p"],
        )
        for problem in problems
    ]
    llm = make_llm("smollm2-135m", dtype=dtype)
    return generated("W1s", llm, [problem["prompt_ids"] for problem in problems], params)


def humaneval(place: Place) -> Items:
    """A run folder of ``treeshare sample``, what ``evaluate`` finds in it, and the prompts' tree."""
    folder, task = place.work / "run", ("--task", "humaneval", "--limit", "8", "-n", "8")
    cli("tree", *task, "--json", str(place.work / "tree.json"))
    length = ("--temperature", "0.8", "--max-tokens", "96", "--logprobs", "1", "--seed", "3")
    engine = ("--dtype", "bfloat16", "--threads", str(THREADS), "--kv-budget", "1GiB")
    cli("sample", *task, *length, *engine, "--out", str(folder))
    journal = (folder / "samples.jsonl").read_bytes()
    lines = [json.loads(line) for line in journal.splitlines()]
    items: Items = {f"{line['task_id']}/{line['completion_index']}": line for line in lines}
    items["manifest"] = lasting(json.loads((folder / "manifest.json").read_text()))
    items["journal's bytes"] = hashlib.sha256(journal).hexdigest()
    items["tree"] = json.loads((place.work / "tree.json").read_text())
    return items


def architectures(place: Place) -> Items:
    """All tiny architectures, in both dtypes."""
    items: Items = {}
    for name in CONFIGS:
        for dtype in ("float32", "bfloat16"):
            llm = make_tiny(tiny_model(place.work, name), dtype=dtype)
            items |= generated(f"{name}/{dtype}", llm, forest(), sampling(n=4, logprobs=2))
    return items


def sampling_parameters(place: Place) -> Items:
    """Every parameter, alone and with others, on tokens and on text."""
    cases: dict[str, Items] = {
        "greedy": {"temperature": 0, "n": 2},
        "plain": {"temperature": 1.0},
        "top_k": {"top_k": 7},
        "top_p": {"top_p": 0.8},
        "min_p": {"min_p": 0.1},
        "presence_penalty": {"presence_penalty": 0.9},
        "frequency_penalty": {"frequency_penalty": 0.7},
        "repetition_penalty": {"repetition_penalty": 1.4},
        "greedy with penalties": {"temperature": 0, "n": 2, "repetition_penalty": 1.3},
        "all filters": {"top_k": 40, "top_p": 0.9, "min_p": 0.02, "presence_penalty": 0.5, "logprobs": 3},
        "logprobs": {"logprobs": 5},
        "logprobs 0": {"logprobs": 0},
        "stop tokens": {"stop_token_ids": list(range(3, 33)), "temperature": 1.2},
        "minimum": {"stop_token_ids": list(range(3, 33)), "min_tokens": 10, "temperature": 1.2},
        "ignore_eos": {"ignore_eos": True, "temperature": 2.0, "max_tokens": 70},
        "run's seed": {"seed": None},
    }
    items: Items = {}
    for dtype in ("float32", "bfloat16"):
        llm = make_tiny(tiny_model(place.work, "llama"), dtype=dtype, seed=5)
        for name, options in cases.items():
            items |= generated(f"{dtype}/{name}", llm, forest(), sampling(**options))
        mixed = [sampling(**cases[name]) for name in ("greedy", "top_k", "logprobs", "all filters")]
        items |= generated(f"{dtype}/one for each prompt", llm, forest(), mixed)
    llm = make_llm(text_model(place.work), dtype="float32")
    texts = ["Once upon a time there was a tree.", "Once upon a time there was a house."]
    for name, options in {
        "stop": {"stop": ["a", "e", "th"], "temperature": 1.1},
        "stop included": {"stop": ["a", "e"], "include_stop_str_in_output": True, "min_tokens": 4},
        "special tokens": {"skip_special_tokens": False, "ignore_eos": True, "temperature": 1.5},
    }.items():
        items |= generated(f"text/{name}", llm, texts, sampling(**options))
    return items


def engine_options(place: Place) -> Items:
    """The engine's options, among them a budget that preempts and a prompt's KV kept for the next call."""
    folder, items, prompts = tiny_model(place.work, "llama"), {}, forest()
    cases: dict[str, Items] = {
        "no sharing": {"sharing": "none"},
        "one level": {"sharing": "one-level"},
        "attention off": {"attention": "off"},
        "no lazy divergence": {"lazy_divergence": False},
        "few rows": {"max_num_seqs": 7},
        "profile": {"profile": True},
        "costly nodes": {"fold_cost": fold_cost(launch_cost=2048, merge_cost=16)},
    }
    for dtype, budget in (("float32", 2_500_000), ("bfloat16", 1_250_000)):
        for name, options in cases.items():
            llm = make_tiny(folder, dtype=dtype, **options)
            items |= generated(f"{dtype}/{name}", llm, prompts, sampling(n=6, max_tokens=70))
        llm = make_tiny(folder, dtype=dtype, kv_budget_bytes=budget)
        late = sampling(n=16, temperature=0.2, max_tokens=70, ignore_eos=True)
        items |= generated(f"{dtype}/small budget", llm, prompts[:2], late)
        if getattr(llm.stats, "num_preemptions", 1) == 0:
            raise RuntimeError("the small budget preempted nothing: change it")
        llm = make_tiny(folder, dtype=dtype, keep_nodes=True)
        for number, asked in enumerate([prompts[:2], prompts[1:], prompts]):
            items |= generated(f"{dtype}/kept nodes, call {number}", llm, asked, sampling(logprobs=1))
    return items


def backends(place: Place) -> Items:
    """Each backend of the CPU, on grouped heads and on plain ones."""
    items: Items = {}
    for architecture in ("llama", "gpt2"):
        for backend in ("native", "cpu", "reference"):
            for dtype in ("bfloat16",) if backend == "native" else ("float32", "bfloat16"):
                llm = make_tiny(tiny_model(place.work, architecture), dtype=dtype, backend=backend)
                name = f"{architecture}/{backend}/{dtype}"
                items |= generated(name, llm, forest(), sampling(n=4, logprobs=1))
    return items


def triton(place: Place) -> Items:
    """The Triton backend, interpreted: few tokens, for it is slow."""
    llm = make_tiny(tiny_model(place.work, "llama"), dtype="float32", backend="triton")
    prompts = forest(preamble=40, branch=20, own=6)
    return generated("llama", llm, prompts, sampling(n=2, max_tokens=3, logprobs=1))


def scores(place: Place) -> Items:
    """``LLM.score`` on tokens, and after a call of ``generate``."""
    prompts, items = forest(num_prompts=6), {}
    pairs = [(prompt[:cut], prompt[cut:]) for prompt in prompts for cut in (1, 90, 150)]
    pairs += [(prompts[0], [5]), (prompts[0], []), (prompts[0][:40], prompts[1][:30])]
    for architecture in CONFIGS:
        for dtype in ("float32", "bfloat16"):
            llm = make_tiny(tiny_model(place.work, architecture), dtype=dtype)
            found = llm.score(pairs, use_tqdm=False)
            for number, score in enumerate(found):
                where = f"{architecture}/{dtype}/pair {number}"
                items[where] = {
                    "logprobs": score.logprobs,
                    "is_greedy": score.is_greedy,
                    "total": score.total,
                }
    return items | generated("generate afterwards", llm, prompts, sampling())


def search(place: Place) -> Items:
    """Branches that are forked, extended and dropped by hand, and beam search."""
    beam_search = place.module_with("def beam_search(\n    search: TokenSearch").beam_search
    items: Items = {}
    for architecture, dtype in (("llama", "float32"), ("qwen3", "bfloat16"), ("gpt2", "float32")):
        llm, where = make_tiny(tiny_model(place.work, architecture), dtype=dtype), f"{architecture}/{dtype}"
        with llm.search({"prompt_token_ids": forest()[0]}, max_tokens=70) as tree:
            branches = [tree.root]
            for depth in range(66):  # beyond a page
                wanted = [(branch, int(t)) for branch in branches for t in branch.logprobs.argsort()[-2:]]
                extended = tree.extend(wanted)
                tree.drop(branches)
                branches = sorted(extended, key=lambda branch: -branch.cumulative_logprob)[:3]
                tree.drop([branch for branch in extended if branch not in branches])
                if depth == 30:
                    branches += tree.fork(branches[0], 2)
            for number, branch in enumerate(branches):
                values = {"token_ids": branch.token_ids, "cumulative_logprob": branch.cumulative_logprob}
                items[f"{where}/branch {number}"] = values | {"logprobs": branch.logprobs}
        for penalty in (1.0, 0.0):
            with llm.search({"prompt_token_ids": forest()[1]}, max_tokens=24) as tree:
                found = beam_search(
                    tree, num_beams=4, eos_token_ids=frozenset({1, 5}), length_penalty=penalty
                )
            for number, beam in enumerate(found):
                values = {"token_ids": beam.token_ids, "cumulative_logprob": beam.cumulative_logprob}
                items[f"{where}/beam {penalty}/{number}"] = values | {"score": beam.score}
    return items


def weights(place: Place) -> Items:
    """``update_weights`` between calls and in the middle of a stream: all weights, then the head alone."""
    others = dict(random_model(CONFIGS["qwen2"](), seed=1).state_dict())
    head = {name: value for name, value in others.items() if name.startswith("lm_head")}
    items: Items = {}
    for dtype in ("float32", "bfloat16"):
        llm = make_tiny(tiny_model(place.work, "qwen2"), dtype=dtype, keep_nodes=True)
        prompts = [{"prompt_token_ids": ids} for ids in forest()]
        stream = llm.stream(prompts, sampling(n=4, max_tokens=40, ignore_eos=True, logprobs=1), tokens=True)
        for number, output in enumerate(stream):
            if number in (100, 300):
                llm.update_weights(others if number == 100 else head)
            if hasattr(output, "completion"):
                name = f"{dtype}/stream/{output.request_id}/{output.completion.index}"
                items[name] = completion_item(output.completion)
        items |= generated(f"{dtype}/afterwards", llm, forest(), sampling())
    return items
