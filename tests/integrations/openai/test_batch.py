"""Batch files: the same answers as the server's, bad lines answered too, nothing done twice after a kill."""

from __future__ import annotations

import json
import random
import signal
import time

import pytest

from tests.cli.conftest import cli, finished, forked  # noqa: F401
from tests.integrations.openai.serving import NAME
from treeshare.engine.chat import ChatOptions
from treeshare.errors import DataError
from treeshare.integrations.openai.batch import BatchRun, open_output, read_batch

COMMON = "You are a poet of few words. "


def line(custom_id, body, url="/v1/completions"):
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": NAME, **body}}


def request_lines(number):
    """Requests of both kinds, all but some without a seed."""
    lines = []
    for i in range(number):
        body = {"max_tokens": 10 + i % 7, "n": 1 + i % 3} | ({"seed": i} if i % 5 == 0 else {})
        if i % 2:
            messages = [{"role": "user", "content": f"{COMMON}Number {i}"}]
            lines.append(line(f"chat {i}", {"messages": messages, **body}, "/v1/chat/completions"))
        else:
            lines.append(line(f"text {i}", {"prompt": [f"{COMMON}{i}", COMMON], **body}))
    return lines


def write(path, lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def answers(path):
    """Answers by ``custom_id``, in all but the time at which they were made."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for answer in found:
        answer["response"]["body"].pop("created", None)
    by_id = {answer["custom_id"]: answer for answer in found}
    assert len(by_id) == len(found)
    return by_id


def run(llm, source, out, **options):
    output = open_output(out)
    try:
        batch = BatchRun(llm, read_batch(source, llm, names=(NAME,), **options), output)
        batch.run()
    finally:
        output.close()
    return batch


def test_answers_are_the_servers(served, llm, tmp_path):
    lines = request_lines(9)
    source = write(tmp_path / "in", lines)
    run(llm, source, tmp_path / "out")
    found = answers(tmp_path / "out")
    assert len(found) == 9
    for request in lines:
        answer = found[request["custom_id"]]
        assert answer["error"] is None
        assert answer["response"]["status_code"] == 200
        body = request["body"]
        if "seed" in body:
            served_one = served.post(request["url"], body).json()
            for name in ("choices", "usage", "object", "model"):
                assert answer["response"]["body"][name] == served_one[name]
    assert llm.stats.unique_tokens < llm.stats.logical_tokens / 3, "all lines are one tree"
    usage = found["text 0"]["response"]["body"]["usage"]  # its second prompt is the first one's beginning
    assert usage["prompt_tokens_details"] == {"cached_tokens": len(llm.encode(COMMON))}


def test_lines_without_a_seed_are_different_and_the_same_again(llm, tmp_path):
    body = {"prompt": "Once", "max_tokens": 16}
    source = write(tmp_path / "in", [line(f"{i}", body) for i in range(4)])
    found = []
    for name, options in (("a", {}), ("b", {}), ("c", {"seed": 1})):
        run(llm, source, tmp_path / name, **options)
        held = answers(tmp_path / name)
        found.append([held[f"{i}"]["response"]["body"]["choices"][0]["text"] for i in range(4)])
    assert found[0] == found[1]
    assert len({*found[0], *found[2]}) == 8


BAD = [
    ("not json\n", None, 400, None),
    ("[1]\n", None, 400, None),
    ("[" * 50_000 + "\n", None, 400, None),
    ('{"custom_id": "half", "body": "\\ud800"}\n', None, 400, None),
    (line(7, {}), None, 400, "custom_id"),
    (line("", {}), None, 400, "custom_id"),
    (line("url", {}, "/v1/embeddings"), "url", 400, "url"),
    (line("method", {}) | {"method": "GET"}, "method", 400, "method"),
    (line("n", {"prompt": "x", "n": -1}), "n", 400, "n"),
    (line("stream", {"prompt": "x", "stream": True}), "stream", 400, "stream"),
    (line("long", {"prompt": "x" * 600}), "long", 400, "prompt"),
    (line("model", {"prompt": "x", "model": "gpt"}), "model", 404, "model"),
    (line("body", {}) | {"body": "x"}, "body", 400, None),
]


def test_bad_lines_are_answered(llm, tmp_path):
    good = line("good", {"prompt": "Once", "max_tokens": 3})
    source = write(tmp_path / "in", [*(bad[0] for bad in BAD[:5]), "\n", good, *(bad[0] for bad in BAD[5:])])
    for _ in range(2):
        run(llm, source, tmp_path / "out")
        found = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
        assert len(found) == len(BAD) + 1
        errors = [answer for answer in found if answer["custom_id"] != "good"]
        assert [
            (
                answer["custom_id"],
                answer["response"]["status_code"],
                answer["response"]["body"]["error"]["param"],
            )
            for answer in errors
        ] == [bad[1:] for bad in BAD]
        assert len({answer["id"] for answer in found}) == len(found)


def test_what_is_answered_is_not_done_again(llm, tmp_path):
    """A file cut anywhere, inside a line too, is completed to that of an undisturbed run."""
    source = write(tmp_path / "in", request_lines(8))
    run(llm, source, tmp_path / "whole")
    whole, expected = (tmp_path / "whole").read_bytes(), answers(tmp_path / "whole")
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in (0, 5, ends[0], ends[2] - 1, ends[4] + 40, len(whole)):
        out = tmp_path / f"cut {cut}"
        out.write_bytes(whole[:cut])
        batch = run(llm, source, out)
        assert batch.num_held == sum(end <= cut for end in ends)
        assert out.read_bytes().startswith(whole[: max([0, *(end for end in ends if end <= cut)])])
        assert answers(out) == expected
        assert llm.stats.num_finished == sum(
            len(answer["response"]["body"]["choices"])
            for name, answer in expected.items()
            if name.encode() not in whole[:cut].rpartition(b"\n")[0]
        )


def change(lines):
    lines[1]["body"]["max_tokens"] += 1


@pytest.mark.parametrize("other", [change, lambda lines: lines.pop(), "seed", "journal"])
def test_answers_to_something_else(llm, tmp_path, other):
    lines = request_lines(4)
    source = write(tmp_path / "in", lines)
    run(llm, source, tmp_path / "out")
    options = {}
    if other == "seed":
        options = {"seed": 1}
    elif other == "journal":
        (tmp_path / "out").write_text('{"task_id": "T/0"}\n{}\n')
    else:
        other(lines)
        write(source, lines)
    message = "not a line that treeshare" if other == "journal" else "belongs to no line of the present input"
    held = (tmp_path / "out").read_bytes()
    with pytest.raises(ValueError, match=message) as caught:
        run(llm, source, tmp_path / "out", **options)
    assert str(caught.value).isprintable()
    assert (tmp_path / "out").read_bytes() == held


# -- the command --


def test_the_command(cli, chat_model, tmp_path):  # noqa: F811
    source = write(tmp_path / "in", [*request_lines(3), "nonsense\n"])
    arguments = ["batch", source, tmp_path / "out", "--model", chat_model, "--name", NAME, "--threads", 1]
    result = cli(*arguments)
    assert result.status == 0
    assert result.out == f"4 answers, 1 of them errors, in {tmp_path / 'out'}\n"
    held = (tmp_path / "out").read_bytes()
    (tmp_path / "out").write_bytes(held[:-3])
    again = cli(*arguments)
    assert "removed an incomplete last line of" in again.err
    assert "resuming: 3 answers already exist" in again.err
    assert answers(tmp_path / "out")["text 0"]["response"]["status_code"] == 200


def test_mistakes(cli, chat_model, tmp_path):  # noqa: F811
    lines = request_lines(2)
    source = write(tmp_path / "in", lines)

    def refusal(*arguments, model=chat_model):
        return cli("batch", *arguments, "--model", model, "--name", NAME, "--threads", 1).refusal

    out = tmp_path / "out"
    assert "it is the input" in refusal(source, source)
    assert "cannot read" in refusal(tmp_path / "none", out)
    assert "cannot write" in refusal(source, tmp_path / "none" / "out")
    assert "cannot write" in refusal(source, tmp_path)
    assert "cannot read" in refusal(source, out, "--chat-template", tmp_path / "none")
    assert "model: got" in refusal(source, out, model="./none")
    write(source, [*lines, "\n", line("text 0", {"prompt": "x"})])
    assert "line 4: custom_id 'text 0' is also in line 1" in refusal(source, out)
    assert not out.exists()
    write(source, lines)
    held = open_output(out)
    try:
        assert "is being written by another process" in refusal(source, out)
    finally:
        held.close()


def killed(arguments, folder, expected, *, num_kills, longest):
    """Kill and resume until the kills have hit; what comes to its end must be ``expected``."""
    rng, num_hits, num_runs = random.Random(num_kills), 0, 0
    while num_hits < num_kills:
        out = folder / f"killed {num_runs}"
        child = forked(*arguments(out))
        child.join(rng.uniform(0, longest))
        child.kill()
        if finished(child) == -signal.SIGKILL:
            num_hits += 1
        else:
            assert answers(out) == expected
            num_runs += 1
    assert finished(forked(*arguments(out))) == 0
    assert answers(out) == expected


def check_kills(chat_model, folder, *, num_lines, num_kills):
    source = write(folder / "in", request_lines(num_lines))

    def arguments(out):
        return [
            "batch",
            source,
            out,
            "--model",
            chat_model,
            "--name",
            NAME,
            "--threads",
            1,
            "--max-num-seqs",
            8,
        ]

    assert finished(forked("--version")) == 0  # the imports behind all others
    started = time.monotonic()
    assert finished(forked(*arguments(folder / "whole"))) == 0
    expected = answers(folder / "whole")
    assert len(expected) == num_lines
    killed(arguments, folder, expected, num_kills=num_kills, longest=time.monotonic() - started)


def test_kill_and_resume(chat_model, tmp_path):
    check_kills(chat_model, tmp_path, num_lines=10, num_kills=2)


@pytest.mark.slow
def test_kill_and_resume_often(chat_model, tmp_path):
    check_kills(chat_model, tmp_path, num_lines=60, num_kills=20)


def test_an_interrupt_keeps_what_is_finished(chat_model, tmp_path):
    source, out, err = write(tmp_path / "in", request_lines(50)), tmp_path / "out", tmp_path / "err"
    words = ["batch", source, out, "--model", chat_model, "--name", NAME, "--threads", 1, "--max-num-seqs", 4]
    child = forked(*words, stderr=err)
    deadline = time.monotonic() + 120
    while not (out.exists() and out.read_bytes().count(b"\n") > 2):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert child.is_alive()
    child.terminate()  # any signal with which a shell or a scheduler ends a job
    assert finished(child) == -signal.SIGTERM
    assert "Traceback" not in err.read_text()
    assert out.read_bytes().endswith(b"\n")


@pytest.mark.parametrize(
    "other", [ChatOptions(chat_template_kwargs={"a": 2}), ChatOptions(chat_template="x"), ChatOptions()]
)
def test_a_batch_of_other_chat_options_is_another(llm, tmp_path, other):
    """Its prompts may be others: nothing of it is taken for an answer of this one."""
    source = write(tmp_path / "in.jsonl", request_lines(2))
    run(llm, source, tmp_path / "out.jsonl", chat=ChatOptions(chat_template_kwargs={"a": 1}))
    assert (
        run(llm, source, tmp_path / "out.jsonl", chat=ChatOptions(chat_template_kwargs={"a": 1})).num_held
        == 2
    )
    with pytest.raises(DataError, match="--chat-template, --chat-template-kwargs or treeshare's arithmetic"):
        run(llm, source, tmp_path / "out.jsonl", chat=other)
