"""``treeshare serve`` in a process: it begins, ends cleanly, and refuses what is unsafe."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest
from typer.main import get_command

from tests.cli.conftest import cli, finished, forked  # noqa: F401
from tests.integrations.openai.serving import NAME, wait_until
from treeshare.cli.app import app
from treeshare.installation import how_to_add


@contextlib.contextmanager
def started(chat_model, folder, *options):
    """The process, and a client of it."""
    err = folder / "err"
    words = ["serve", chat_model, "--name", NAME, "--port", 0, "--threads", 1, *options]
    child = forked(*words, stderr=err)
    try:
        wait_until(lambda: (err.exists() and "serving" in err.read_text()) or not child.is_alive())
        (url,) = re.findall(r"^serving tiny at (\S+)/v1$", err.read_text(), re.M)
        with httpx.Client(base_url=url, timeout=120) as client:
            yield child, client
    finally:
        child.kill()
        child.join()
    assert "Traceback" not in err.read_text()


LONG = {"prompt": "Once", "max_tokens": 150, "ignore_eos": True, "seed": 1}
LONG |= {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_may_finish(chat_model, tmp_path, number):
    with started(chat_model, tmp_path) as (child, client):
        assert client.get("/health").status_code == 200
        with client.stream("POST", "/v1/completions", json=LONG) as running:
            lines = running.iter_lines()
            next(lines)
            os.kill(child.pid, number)
            wait_until(lambda: not accepts(client.base_url.port))
            assert child.is_alive()
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 150
        assert finished(child) == 0


def accepts(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_the_grace_ends(chat_model, tmp_path):
    with started(chat_model, tmp_path, "--grace", 0) as (child, client):
        with client.stream("POST", "/v1/completions", json=LONG | {"n": 100}) as running:
            pieces = running.iter_bytes()
            next(pieces)
            os.kill(child.pid, signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                list(pieces)
        assert finished(child) == 0


def test_the_key_of_the_environment(chat_model, tmp_path, monkeypatch, cli):  # noqa: F811
    template = tmp_path / "template"
    template.write_text("{{ messages[0].content }}")
    options = ["--api-key", "sesame", "--max-body", "2KiB", "--chat-template", template]
    with started(chat_model, tmp_path, *options) as (_, client):
        assert client.get("/v1/models").status_code == 401
        client.headers["authorization"] = "Bearer sesame"
        body = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 1}
        assert client.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"] == 3
        body["user"] = "x" * 2048
        assert client.post("/v1/chat/completions", json=body).status_code == 413
    monkeypatch.setenv("TREESHARE_API_KEY", "sesame")
    assert "--no-api-key: got a key too" in cli("serve", chat_model, "--no-api-key").refusal


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--host", "0.0.0.0"], "--host: got 0.0.0.0, which other machines may reach, but no key"),
        (["--host", "::"], "--host: got ::, which other machines may reach"),
        (["--host", "example.org"], "--host: got example.org"),
        (["--host", "no such host", "--no-api-key"], "cannot listen there"),
        (
            ["--api-key", ""],
            "--api-key: expected printable ASCII characters, at least one of them not a space",
        ),
        (["--api-key", "caf\xe9"], "--api-key: expected printable ASCII"),
        (["--port", -1], "--port"),
        (["--port", 65536], "--port"),
        (["--max-body", "x"], "--max-body: got 'x'"),
        (["--kv-budget", "x"], "--kv-budget: got 'x'"),
        (["--max-queue", 0], "--max-queue"),
        (["--max-held", "x"], "--max-held: got 'x'"),
        (["--max-unread", "x"], "--max-unread: got 'x'"),
        (["--max-connections", 0], "--max-connections"),
        (["--idle-timeout", 0], "--idle-timeout"),
        (["--transfer-timeout", "nan"], "--transfer-timeout"),
        (["--chat-template", "."], "--chat-template: cannot read ."),
    ],
)
def test_mistakes(cli, chat_model, arguments, named):  # noqa: F811
    assert named in cli("serve", chat_model, *arguments).refusal


def test_the_limits_are_those_of_the_document():
    text = (Path(__file__).parents[3] / "docs" / "server.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| `(--[a-z-]+)` \| (\d+)(?: (MiB|s))? \|$", text, re.M)
    parameters = {name: one for one in get_command(app).commands["serve"].params for name in one.opts}
    assert len(rows) >= 8
    for option, number, unit in rows:
        assert str(parameters[option].default) == number + (unit if unit == "MiB" else ""), option
    assert {option for option, *_ in rows} == {
        option for option in parameters if re.match("--max-(?!num|model)|.*-timeout", option)
    }


def test_a_port_in_use_is_refused_before_the_model_is_loaded(cli):  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refusal = cli("serve", "./none", "--port", taken.getsockname()[1]).refusal
    assert "cannot listen there: Address already in use" in refusal


def test_a_port_taken_while_the_model_was_loaded(cli, chat_model, monkeypatch):  # noqa: F811
    from treeshare.integrations.openai import serve

    taken = []

    def bind_and_lose(host, port, bind=serve.bind):
        bound = bind(host, port)
        taken.append(bind(host, bound.getsockname()[1]))
        taken[0].listen()
        return bound

    monkeypatch.setattr(serve, "bind", bind_and_lose)
    refusal = cli("serve", chat_model, "--port", 0, "--threads", 1).refusal
    taken[0].close()
    assert "cannot listen there: Address already in use" in refusal


def test_without_the_libraries(cli, chat_model, monkeypatch):  # noqa: F811
    monkeypatch.setattr("treeshare.cli.openai_options.find_spec", lambda name: None)
    expected = f"fastapi, uvicorn, prometheus_client: not installed; {how_to_add('serve')}"
    assert expected in cli("serve", chat_model).refusal


def test_help_needs_no_server(cli):  # noqa: F811
    before = set(sys.modules)
    assert cli("serve", "--help").status == 0
    assert not {"fastapi", "uvicorn"} & (set(sys.modules) - before)
