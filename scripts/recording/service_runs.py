"""The recorded runs of what is built around the engine: arrivals, harnesses, the server, batch files."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from recording.items import (
    THREADS,
    cli,
    completion_item,
    fold_cost,
    generated,
    lasting,
    make_llm,
    sampling,
    stats_item,
)
from recording.models import forest, text_model, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from recording.items import Items, Place

_TURNS = 100
"""Turns of the loop after which no coroutine has anything left to do."""

_LONGEST_WAIT_S = 60.0


class LockstepLoop(asyncio.SelectorEventLoop):
    """A loop that another thread waits for after each call that it hands over.

    So the engine's thread goes on only when the coroutines have seen a step's outputs and made their next
    requests: the step at which a request arrives does not depend on the machine. Without ``is_lockstep`` it
    is an ordinary loop.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_lockstep = True
        self._maker = threading.get_ident()

    def call_soon_threadsafe(
        self,
        callback: Callable[..., object],
        *args: Any,  # noqa: ANN401
        context: Any = None,  # noqa: ANN401
    ) -> asyncio.Handle:
        """As the base class, but from another thread it returns when the loop has nothing left to do."""
        handle = super().call_soon_threadsafe(callback, *args, context=context)
        if self.is_lockstep and threading.get_ident() != self._maker:
            settled = threading.Event()
            super().call_soon_threadsafe(self._settle, _TURNS, settled)
            settled.wait(_LONGEST_WAIT_S)
        return handle

    def _settle(self, turns: int, settled: threading.Event) -> None:
        """Set ``settled`` after ``turns`` more turns of the loop."""
        if turns:
            self.call_soon(self._settle, turns - 1, settled)
        else:
            settled.set()


def arrivals(place: Place) -> Items:
    """Requests that arrive while others run, each after 25 outputs; one is cancelled.

    Nodes cost what ``FoldCost`` has by default: arrivals were always grafted by these costs.
    """
    model, prompts = tiny_model(place.work, "llama"), forest(preamble=400, num_prompts=8)
    items: Items = {}
    for dtype in ("float32", "bfloat16"):
        items |= _arriving(f"llama/{dtype}", model, prompts, dtype=dtype, fold_cost=fold_cost())
    return items


def measured_arrivals(place: Place) -> Items:
    """The same on the real model, with costs measured on this machine."""
    workload = json.loads(place.workload.read_text())
    prompts = [ids[:400] + ids[-80:] for ids in (problem["prompt_ids"] for problem in workload["problems"])]
    return _arriving("smollm2-135m", "smollm2-135m", prompts, dtype="bfloat16")


def _arriving(name: str, model: Path | str, prompts: list[list[int]], **options: Any) -> Items:  # noqa: ANN401
    """The items of requests that follow one another, 25 outputs apart."""
    from treeshare import AsyncLLM

    items: Items = {}
    order: list[list[Any]] = []

    async def follow(llm: Any, number: int) -> None:  # noqa: ANN401
        params = sampling(n=2 + number % 3, max_tokens=40 - 3 * number, ignore_eos=True, logprobs=0)
        prompt = {"prompt_token_ids": prompts[number]}
        async with contextlib.aclosing(llm.generate(prompt, params, tokens=True)) as outputs:
            async for output in outputs:
                if hasattr(output, "completion"):
                    where = f"{name}/request {number}/{output.completion.index}"
                    items[where] = completion_item(output.completion)
                    continue
                order.append([number, output.index, output.position, output.token_id, output.text])
                if len(order) % 25 == 0 and len(followers) < len(prompts):
                    followers.append(asyncio.create_task(follow(llm, len(followers))))
                if number == 2 and output.position == 20:
                    return

    followers: list[Any] = []

    async def drive() -> None:
        async with AsyncLLM(make_llm(model, keep_nodes=True, **options)) as llm:
            followers.append(asyncio.create_task(follow(llm, 0)))
            done = 0
            while done < len(followers):
                await followers[done]
                done += 1
            items[f"{name}/stats"] = stats_item(llm)
            loop.is_lockstep = False  # at the end the loop joins a thread, which must not wait for the loop
        if done < len(prompts):
            raise RuntimeError(f"{name}: {done} of {len(prompts)} requests arrived")

    loop = LockstepLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(drive())
    return items | {f"{name}/order of tokens": order}


def lm_eval(place: Place) -> Items:
    """Tasks of lm-eval: choices, greedy and sampled answers, rolling windows."""
    import lm_eval as harness
    from lm_eval.tasks import TaskManager

    place.module_with('@register_model("treeshare")')
    found = harness.simple_evaluate(
        model="treeshare",
        model_args={"pretrained": str(text_model(place.work)), "dtype": "float32", "threads": THREADS},
        tasks=_lm_eval_tasks(place),
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    items: Items = {f"{task}/results": values for task, values in found["results"].items()}
    for task, samples in found["samples"].items():
        for sample in samples:
            values = {name: sample[name] for name in ("resps", "filtered_resps")}
            items[f"{task}/{sample['doc_id']}/{sample['filter']}"] = values
    return items


def _lm_eval_tasks(place: Place) -> list[Items]:
    """Configurations of small lm-eval tasks, whose data files are written below ``place.work``."""
    words = ("stone", "river", "lamp", "green", "seven", "bird", "window", "paper", "salt", "iron")

    def task(name: str, rows: list[Items], **options: Any) -> Items:  # noqa: ANN401
        path = place.work / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {"data_files": {"test": str(path)}, "cache_dir": str(place.work / "datasets")}
        return {"task": name, "test_split": "test", "dataset_path": "json", "dataset_kwargs": files} | options

    choices = [
        {
            "question": f"Which is a {words[i]} beside the {words[(i * 3 + 1) % 10]}?",
            "choices": [" ".join(words[(i + j + k) % 10] for k in range(j + 1)) for j in range(4)],
            "answer": i % 4,
        }
        for i in range(5)
    ]
    sums = [{"question": f"{words[i]} {i} + {i * 7}?", "answer": f"#### {i * 8}"} for i in range(5)]
    texts = [{"text": " ".join(words[(i * k) % 10] for k in range(1, 300 * i + 3))} for i in range(3)]
    asked: Items = {"doc_to_text": "Q: {{question}}\nA:", "doc_to_target": "{{answer}}"}
    answered: Items = {"output_type": "generate_until", "metric_list": [{"metric": "exact_match"}]}
    stops: Items = {"until": ["\n", "7"], "max_gen_toks": 24}
    sampled: Items = {"do_sample": True, "temperature": 0.8, "top_p": 0.9}
    return [
        task(
            "choices",
            choices,
            output_type="multiple_choice",
            doc_to_text="Question: {{question}}\nAnswer:",
            doc_to_choice="{{choices}}",
            doc_to_target="answer",
            fewshot_split="test",
            num_fewshot=1,
            metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
        ),
        task("sums", sums, **asked, **answered, generation_kwargs=stops | {"do_sample": False}),
        task("sampled", sums, **asked, **answered, generation_kwargs=stops | sampled, repeats=3),
        task(
            "texts",
            texts,
            output_type="loglikelihood_rolling",
            doc_to_text="",
            doc_to_target="{{text}}",
            metric_list=[{"metric": "word_perplexity"}],
        ),
    ]


def inspect(place: Place) -> Items:
    """A small evaluation by Inspect: calls one after the other, then all at once.

    Of the calls at once only the answers are kept, because the harness decides in which order they arrive.
    """
    settings = tomllib.loads((place.checkout / "pyproject.toml").read_text())
    importlib.import_module(settings["project"]["entry-points"]["inspect_ai"]["treeshare"])
    import inspect_ai
    from inspect_ai.dataset import Sample
    from inspect_ai.model import get_model
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate

    questions = ["a b c", "d e", "f g h i"]
    model_args = {"model_path": str(text_model(place.work)), "dtype": "float32", "threads": THREADS}
    items: Items = {}
    for num_calls in (1, 64):
        model = get_model("treeshare/tiny", memoize=False, **model_args)
        task = inspect_ai.Task(
            dataset=[Sample(id=i, input=text, target="e") for i, text in enumerate(questions)],
            solver=generate(),
            scorer=includes(),
        )
        (log,) = inspect_ai.eval(
            task,
            model=model,
            log_dir=str(place.work / "logs"),
            display="none",
            epochs=4,
            max_connections=num_calls,
            max_tokens=12,
            temperature=1.0,
            seed=7,
            logprobs=num_calls == 1,
        )
        model.api.close()
        if log.status != "success":
            raise RuntimeError(f"inspect: {log.error}")
        for i in range(len(questions)):
            choices = [sample.output.choices[0] for sample in log.samples if sample.id == i]
            answers = [
                [
                    answer.message.text,
                    answer.stop_reason,
                    answer.logprobs and answer.logprobs.model_dump(mode="json"),
                ]
                for answer in choices
            ]
            items[f"{num_calls} at once/question {i}"] = sorted(answers, key=json.dumps)
    return items


def server(place: Place) -> Items:
    """Answers of ``treeshare serve``, whole and streamed, one request after the other."""
    text = {"prompt": "Once upon a time", "max_tokens": 20, "seed": 4, "n": 3, "temperature": 0.9}
    chat = {"messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 16, "n": 2}
    chat |= {"seed": 5, "temperature": 0.7}
    asked = {
        "text": ("completions", text | {"logprobs": 2}),
        "text, two prompts": ("completions", text | {"prompt": ["Once upon", "Once more"], "stop": ["e"]}),
        "text, tokens": ("completions", text | {"prompt": [5, 6, 7, 8], "top_p": 0.9, "echo": True}),
        "chat": ("chat/completions", chat | {"logprobs": True, "top_logprobs": 2}),
        "chat, greedy": ("chat/completions", chat | {"temperature": 0, "n": 1, "frequency_penalty": 0.5}),
        "bad": ("completions", text | {"n": -1}),
    }
    items: Items = {}
    with _serving(place) as url:
        items["models"] = lasting(json.loads(_fetch(f"{url}/models")[1]))
        for name, (path, body) in asked.items():
            status, content = _fetch(f"{url}/{path}", {"model": "tiny", **body})
            items[name] = {"status": status, "answer": lasting(json.loads(content)) if status == 200 else ""}
            if status == 200 and "echo" not in body:
                _, content = _fetch(f"{url}/{path}", {"model": "tiny", "stream": True, **body})
                items[f"{name}, streamed"] = _joined(content)
    return items


@contextlib.contextmanager
def _serving(place: Place) -> Iterator[str]:
    """The address of a server in a process of its own."""
    options = ("--port", "0", "--name", "tiny", "--dtype", "float32", "--kv-budget", "1GiB")
    words = [sys.executable, "-m", "treeshare.cli", "serve", str(text_model(place.work)), *options]
    words += ["--threads", str(THREADS)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stderr is not None
        try:
            printed = ""
            for line in process.stderr:
                printed += line
                if found := re.search(r"http://[\d.]+:\d+/v1", line):
                    break
            else:
                raise RuntimeError(f"treeshare serve: {printed.strip()[-500:]}")
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield found[0]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_LONGEST_WAIT_S)


def _fetch(url: str, body: Items | None = None) -> tuple[int, str]:
    """Status and text of an answer: of GET, or of POST with ``body`` as JSON."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_LONGEST_WAIT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def _joined(stream: str) -> Items:
    """A streamed answer by choices: text, finish reason, log-probabilities; not how events cut it."""
    choices: Items = {}
    for line in stream.splitlines():
        if not line.startswith("data: {"):
            continue
        for piece in json.loads(line[len("data: ") :])["choices"]:
            choice = choices.setdefault(
                str(piece["index"]), {"text": "", "finish_reason": None, "logprobs": []}
            )
            choice["text"] += piece.get("text") or piece.get("delta", {}).get("content") or ""
            choice["finish_reason"] = piece.get("finish_reason") or choice["finish_reason"]
            choice["logprobs"] += [piece["logprobs"]] if piece.get("logprobs") else []
    return choices


def batch(place: Place) -> Items:
    """Answers of ``treeshare batch``."""
    source, out = place.work / "requests.jsonl", place.work / "answers.jsonl"
    common, lines = "You are a poet of few words. ", []
    for i in range(9):
        body: Items = {"model": "tiny", "max_tokens": 10 + i % 7, "n": 1 + i % 3}
        body |= {"seed": i} if i % 5 == 0 else {}
        url, asked = "/v1/completions", {"prompt": [f"{common}{i}", common]}
        if i % 2:
            messages = [{"role": "user", "content": f"{common}Number {i}"}]
            url, asked = "/v1/chat/completions", {"messages": messages, "logprobs": True, "top_logprobs": 1}
        lines.append({"custom_id": f"line {i}", "method": "POST", "url": url, "body": body | asked})
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--name", "tiny", "--dtype", "float32", "--threads", str(THREADS), "--kv-budget", "1GiB")
    cli("batch", str(source), str(out), "--model", str(text_model(place.work)), "--seed", "3", *options)
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    return {answer["custom_id"]: lasting(answer) for answer in answers}


def chat(place: Place) -> Items:
    """``LLM.chat``."""
    llm = make_llm(text_model(place.work), dtype="float32")
    conversations = [[{"role": "user", "content": text}] for text in ("Good morning", "Good night")]
    items: Items = {}
    for output in llm.chat(conversations, sampling(n=3), use_tqdm=False):
        for completion in output.outputs:
            items[f"conversation {output.request_id}/{completion.index}"] = completion_item(completion)
    return items | generated("generate afterwards", llm, ["Good morning"], sampling())
