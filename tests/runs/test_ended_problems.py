"""A problem that a completion ended: its line says why, and nobody asks for more of it."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest

from treeshare import LLM, SamplingParams
from treeshare.engine.sequence import Request
from treeshare.engine.stats import EngineStats
from treeshare.evals.early_end import AnswerMargin
from treeshare.runs import RunDirectory, make_manifest, make_requests, read_run, sample_into
from treeshare.sampling import problem_key

PROMPTS = [[5, 6, 7], [5, 6, 8, 9]]
PARAMS = SamplingParams(n=12, temperature=1.0, max_tokens=30, seed=3)


@pytest.fixture(scope="module")
def llm(model_dir):
    return LLM(model_dir("llama"), dtype="float32", max_num_seqs=6)


def sample(llm, out, ends=None):
    manifest = make_manifest(llm, task="t", data="", task_ids=["a", "b"], prompts=PROMPTS, params=PARAMS)
    with RunDirectory(out, manifest) as directory:
        requests = make_requests(["a", "b"], PROMPTS, PARAMS, directory)
        sample_into(directory, llm, ["a", "b"], requests, ends_problem=ends)
    return {record.key: record for record in read_run(out)[1]}


class Shuffled:
    """Gives an engine's completions in another order, as faster rows or other workers would.

    Args:
        completions: All of the run, which are made once.
        order: Of each completion, by which they finish.
    """

    stats = EngineStats()

    def __init__(self, completions, order):
        self._completions, self._order = completions, order
        self._cancelled = set()

    def run(self, requests):
        wanted = {(i, index) for i, request in enumerate(requests) for index in request.completion_indices}
        for key in sorted(wanted, key=self._order.__getitem__):
            if key[0] not in self._cancelled or self._order[key] % 3 == 0:  # some are on their way already
                yield self._completions[key]

    def cancel(self, index):
        self._cancelled.add(index)
        return 0


class KilledError(Exception):
    """A run that ends in the middle."""


@pytest.fixture(scope="module")
def completions(llm):
    """Every completion of the run, by request and index."""
    requests = [
        Request(
            prompt_token_ids=prompt,
            params=PARAMS,
            problem_key=problem_key(task),
            seed=3,
            completion_indices=range(12),
        )
        for task, prompt in zip("ab", PROMPTS, strict=True)
    ]
    return {(c.request_index, c.completion_index): c for c in llm.engine.run(requests)}


def shuffled_run(llm, out, completions, seed, margin, kill_after=None):
    """A session of a run whose completions finish in a random order; its lines, problem by problem."""
    order = dict(zip(completions, np.random.default_rng(seed).permutation(24).tolist(), strict=True))
    manifest = make_manifest(llm, task="t", data="", task_ids=["a", "b"], prompts=PROMPTS, params=PARAMS)
    rule = AnswerMargin(lambda _, answer: answer, margin)
    written = []

    def ends(record):
        return rule.reason(record.task_id, str(sum(record.token_ids) % 3))

    def on_completion(completion):
        written.append(completion)
        if len(written) == kill_after:
            raise KilledError

    with RunDirectory(out, manifest) as directory:
        for record in directory.records():
            rule.note(record.task_id, str(sum(record.token_ids) % 3))
        requests = make_requests(["a", "b"], PROMPTS, PARAMS, directory)
        source = Shuffled(completions, order)
        with contextlib.suppress(KilledError):
            sample_into(directory, llm, ["a", "b"], requests, on_completion, source=source, ends_problem=ends)
    lines = (out / "samples.jsonl").read_bytes().splitlines()
    return [[line for line in lines if json.loads(line)["task_id"] == task] for task in "ab"]


@pytest.mark.parametrize("margin", [1, 3, 99])
def test_lines_do_not_depend_on_who_is_faster_nor_on_kills(llm, tmp_path, completions, margin):
    """The rule sees index after index: an undisturbed run's lines, to the byte, after any number of kills."""
    expected = shuffled_run(llm, tmp_path / "whole", completions, 0, margin)
    for lines in expected:
        assert [json.loads(line)["completion_index"] for line in lines] == list(range(len(lines)))
        assert ["ended_problem" in json.loads(line) for line in lines[:-1]] == [False] * (len(lines) - 1)
    assert margin == 99 or any(b"ended_problem" in lines[-1] and len(lines) < 12 for lines in expected)
    for seed in range(1, 6):
        out = tmp_path / f"{seed}"
        for kill in range(1, 8):
            shuffled_run(llm, out, completions, 100 * seed + kill, margin, kill_after=kill)
        assert shuffled_run(llm, out, completions, seed, margin) == expected


def test_without_a_rule_nothing_is_held_back(llm, tmp_path, completions):
    """What has finished is written at once, in whatever order."""
    manifest = make_manifest(llm, task="t", data="", task_ids=["a", "b"], prompts=PROMPTS, params=PARAMS)
    order = {key: 24 - place for place, key in enumerate(completions)}
    with RunDirectory(tmp_path / "run", manifest) as directory:
        requests = make_requests(["a", "b"], PROMPTS, PARAMS, directory)
        seen = []
        sample_into(
            directory, llm, ["a", "b"], requests, lambda completion: seen.append(completion),
            source=Shuffled(completions, order),
        )  # fmt: skip
    assert [(c.request_index, c.completion_index) for c in seen] == sorted(order, key=order.__getitem__)


def agreeing(number):
    """Answers in a row that agree (BatchPrompt's early stopping); here an answer is how one ended."""
    last = []

    def ends(record):
        if record.task_id != "a":
            return None
        last.append(record.finish_reason)
        agrees = len(last) >= number and len(set(last[-number:])) == 1
        return f"{number} answers agree" if agrees else None

    return ends


@pytest.mark.parametrize(
    ("answers", "ends_at"),
    [("AAA", 2), ("ABABBCBB", 7), ("ABCABC", None), ("--A-A-A", 6), ("BAAAA", 4)],
)
def test_an_answer_ahead_by_three(answers, ends_at):
    rule = AnswerMargin(lambda _, text: None if text == "-" else text, 3)
    reasons = []
    for answer in answers:
        rule.reason("other problem", "A")
        reasons.append(rule.reason("a", answer))
    assert next((i for i, reason in enumerate(reasons) if reason), None) == ends_at
    if ends_at is not None:
        assert reasons[ends_at] == f"answer {answers[ends_at]} is ahead by 3"


def test_a_resumed_run_counts_what_is_there():
    rule = AnswerMargin(lambda _, text: text, 2)
    rule.note("a", "A")
    assert rule.reason("a", "A") == "answer A is ahead by 2"


def test_a_batch_of_questions_ends_when_its_answers_are_confident(llm, tmp_path):
    """BatchPrompt's SEAS as an end rule: easy items take few completions, hard ones go on to n."""
    rule = AnswerMargin(lambda _, text: text[:1] or None, 4)
    answers = {"a": lambda record: "same", "b": lambda record: str(record.completion_index)}
    ended = sample(
        llm, tmp_path / "run", lambda record: rule.reason(record.task_id, answers[record.task_id](record))
    )
    by_problem = {task: [r for r in ended.values() if r.task_id == task] for task in "ab"}
    reasons = {task: [r.model_extra.get("ended_problem") for r in by_problem[task]] for task in "ab"}
    assert reasons["a"].count("answer s is ahead by 4") == 1
    assert reasons["a"].index("answer s is ahead by 4") == 3
    assert len(by_problem["b"]) == 12 or any(reasons["b"])


def test_first_success(llm, tmp_path):
    whole = sample(llm, tmp_path / "whole")
    ended = sample(llm, tmp_path / "ended", lambda r: "first success" if r.task_id == "a" else None)
    reasons = [record.model_extra.get("ended_problem") for record in ended.values()]
    assert "first success" in reasons
    assert sum(task == "b" for task, _ in ended) == 12
    assert 1 <= sum(task == "a" for task, _ in ended) < 12
    for key, record in ended.items():
        assert record.token_ids == whole[key].token_ids
    lines = (tmp_path / "ended" / "samples.jsonl").read_bytes()
    assert sample(llm, tmp_path / "ended").keys() == ended.keys()
    assert (tmp_path / "ended" / "samples.jsonl").read_bytes() == lines
    assert any(json.loads(line).get("ended_problem") for line in lines.splitlines())


def test_answers_that_agree(llm, tmp_path):
    ended = sample(llm, tmp_path / "run", agreeing(2))
    own = [record for record in ended.values() if record.task_id == "a"]
    reasons = [record.model_extra.get("ended_problem") for record in own]
    place = reasons.index("2 answers agree")
    assert own[place].finish_reason == own[place - 1].finish_reason
    assert llm.stats.num_finished + llm.stats.num_cancelled == 24
    assert len(ended) <= llm.stats.num_finished < 24  # what finished out of turn is dropped
