"""Clients that are slow, rude or strange: each kind ends within its time, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import struct
import threading
import time

import pytest
from starlette.datastructures import Headers

from tests.integrations.openai.serving import serving, wait_until
from treeshare.errors import ConfigError
from treeshare.integrations.openai import connection
from treeshare.integrations.openai.access import Access
from treeshare.integrations.openai.connection import ConnectionLimits
from treeshare.integrations.openai.lanes import BOUNDS, Lanes
from treeshare.integrations.openai.log_limit import MAX_RECORDS, PERIOD_S, LogLimit
from treeshare.integrations.openai.schema import ApiError

QUICK = ConnectionLimits(idle_timeout_s=0.4, transfer_timeout_s=0.4)
HEAD = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
LONG = {"prompt": "Once", "n": 64, "max_tokens": 500, "logprobs": 20, "ignore_eos": True}


def connected(served, content=b"", *, small=False):
    client = socket.socket()
    if small:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.settimeout(30)
    client.connect(("127.0.0.1", served.http.base_url.port))
    client.sendall(content.encode() if isinstance(content, str) else content)
    return client


def post(values, extra=""):
    body = json.dumps(values)
    return f"{HEAD}{extra}content-length: {len(body)}\r\n\r\n{body}"


def received(client):
    """All that comes until the server hangs up."""
    content = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(65536):
            content += part
    return content


@pytest.fixture(scope="module")
def quick(async_llm):
    with serving(async_llm, QUICK, send_bytes=4096, body_timeout_s=0.4, max_unread_bytes=1 << 20) as served:
        yield served


# -- connections on which nothing comes --


@pytest.mark.parametrize(
    "content",
    [
        "",
        "GET /he",
        HEAD + "x-a: ",
        "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\nGET /he",
        "GET /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{",
        "POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{",
        "POST /health HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
        HEAD + "content-length: 100\r\n\r\n{",
        HEAD + "transfer-encoding: chunked\r\n\r\n5\r\nab",
    ],
)
@pytest.mark.parametrize("drips", [False, True])
def test_what_never_comes_whole_ends_the_connection(quick, content, drips):
    with connected(quick, content) as client:
        is_over = threading.Event()

        def drip():
            with contextlib.suppress(OSError):
                while not is_over.wait(0.05):
                    client.sendall(b"a")

        thread = threading.Thread(target=drip) if drips else None
        if thread:
            thread.start()
        began = time.monotonic()
        received(client)
        is_over.set()
        if thread:
            thread.join()
        assert time.monotonic() - began < 10


def test_too_many_connections(async_llm, monkeypatch):
    monkeypatch.setattr(connection, "_PATIENCE_S", 0.3)
    limits = ConnectionLimits(max_connections=3)
    with serving(async_llm, limits) as served, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connected(served)) for _ in range(8)]
        wait_until(lambda: served.http.get("/health").status_code == 200)
        assert received(idle[0]) == b""  # the one that waited longest gave way
        time.sleep(0.4)
        busy = [stack.enter_context(connected(served, HEAD + "content-length: 9\r\n\r\n{")) for _ in range(3)]
        with connected(served) as client:
            assert received(client).startswith(b"HTTP/1.1 503 ")
        for client in busy:
            client.close()
        wait_until(lambda: served.http.get("/health").status_code == 200)


def test_no_descriptors_for_clients(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (20, 20))
    with pytest.raises(ConfigError, match="open files: the limit is 20, which leaves none for clients"):
        _ = ConnectionLimits().max_clients


# -- answers that are not read --


def test_a_stream_that_is_not_read_is_bounded_and_ends(quick):
    """Whether by its bytes or by its time, without holding up the others."""
    before = quick.llm.num_tokens
    with connected(quick, post(LONG | {"stream": True}), small=True):
        wait_until(lambda: quick.llm.num_tokens > before)
        wait_until(lambda: quick.llm.num_unfinished == 0)
        assert quick.llm.num_tokens - before < 64 * 500
    wait_until(lambda: "treeshare_requests_in_flight 0.0" in quick.http.get("/metrics").text)


def test_a_stream_that_is_dropped_unread_costs_nothing(async_llm):
    with serving(async_llm) as served:
        before = served.llm.num_tokens
        with connected(served, post(LONG | {"stream": True}), small=True) as client:
            wait_until(lambda: served.llm.num_tokens - before > 64 * 20)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(lambda: served.llm.num_unfinished == 0)
        assert served.llm.num_tokens - before < 64 * 500


def test_a_slow_reader_gets_all_of_its_stream(quick):
    """Slower than the answer is made, but not by more than is kept for it."""
    values = LONG | {"n": 4, "max_tokens": 40, "logprobs": 5, "stream": True, "seed": 1}
    whole = quick.post("/v1/completions", values).text
    with connected(quick, post(values, "connection: close\r\n"), small=True) as client:
        content = b""
        while part := client.recv(2000):
            content += part
            time.sleep(0.002)
    events = [line for line in content.decode().splitlines() if line.startswith("data: ")]
    assert len(events) == sum(line.startswith("data: ") for line in whole.splitlines())
    assert events[-1] == "data: [DONE]"


def test_a_whole_answer_that_is_not_read(quick):
    with connected(quick, post(LONG | {"n": 16, "max_tokens": 60}), small=True):
        wait_until(lambda: "treeshare_requests_in_flight 1.0" in quick.http.get("/metrics").text)
        wait_until(lambda: "treeshare_requests_in_flight 0.0" in quick.http.get("/metrics").text)


# -- bodies --


def test_unfinished_uploads_are_held_requests(async_llm):
    with serving(async_llm, max_queue=2, max_held_bytes=6000) as served, contextlib.ExitStack() as stack:
        part = "content-length: 9000\r\n\r\n{" + " " * 2500

        def upload():
            return stack.enter_context(connected(served, HEAD + part))

        clients = [upload(), upload()]
        wait_until(lambda: "treeshare_requests_in_flight 2.0" in served.http.get("/metrics").text)
        refused = served.post("/v1/completions", {"prompt": "Once"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert "2 requests are in progress" in refused.text
        clients.pop().close()
        wait_until(lambda: served.post("/v1/completions", {"prompt": "Once"}).status_code == 200)
        refused = served.post("/v1/completions", {"prompt": "Once", "user": "x" * 3900})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert "the requests in progress have" in refused.text
        clients.pop().close()
        wait_until(lambda: "treeshare_request_bytes 0.0" in served.http.get("/metrics").text)
        assert served.post("/v1/completions", {"prompt": "Once", "user": "x" * 3900}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("content-type", "application/json")], 200),
        ([("Content-Type", "Application/JSON ; Charset=UTF-8")], 200),
        ([("content-type", 'application/json; charset="utf-8"')], 200),
        ([("content-type", "application/json"), ("content-encoding", "identity")], 200),
        ([], 415),
        ([("content-type", "application/jsonx")], 415),
        ([("content-type", "application/json/x")], 415),
        ([("content-type", "application/x+json")], 415),
        ([("content-type", "text/plain; a=application/json")], 415),
        ([("content-type", "application/json; charset=utf-16")], 415),
        ([("content-type", "application/json"), ("content-type", "text/plain")], 415),
        ([("content-type", "application/json"), ("content-encoding", "gzip")], 415),
    ],
)
def test_content_types(served, headers, status):
    answer = served.http.post("/v1/completions", content=b'{"prompt": "a", "max_tokens": 1}', headers=headers)
    assert answer.status_code == status


def test_who_waits_to_be_told_to_send_is_refused_at_once(served):
    head = (
        HEAD.replace("application/json", "text/plain") + "expect: 100-continue\r\ncontent-length: 9\r\n\r\n"
    )
    with connected(served, head) as client:
        assert received(client).startswith(b"HTTP/1.1 415 ")
    with connected(
        served, HEAD + "expect: 100-continue\r\nconnection: close\r\ncontent-length: 2\r\n\r\n"
    ) as client:
        assert client.recv(4096).startswith(b"HTTP/1.1 100 ")
        client.sendall(b"{}")
        assert received(client).startswith(b"HTTP/1.1 400 ")


def test_a_long_prompt_is_refused_before_it_is_tokenised(served, monkeypatch):
    def tokenised(*_, **__):
        raise AssertionError("it was tokenised")

    text = "x" * 100_000
    with monkeypatch.context() as patch:
        patch.setattr(type(served.llm.llm.get_tokenizer()), "__call__", tokenised)
        for url, values in (
            ("/v1/completions", {"prompt": ["a", text][1:]}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
        ):
            answer = served.post(url, values)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
            assert "characters" in answer.text


def test_tokenising_delays_no_shorter_text_and_is_left_out_for_who_has_gone():
    """A long text at work, others behind it: a short one passes, and one that is given up is never begun."""

    async def run():
        lanes, is_over, begun = Lanes(), threading.Event(), []
        sizes = [BOUNDS[-1] + 1, BOUNDS[0] + 1]
        blocked = [asyncio.ensure_future(lanes.run(size, is_over.wait)) for size in sizes]
        given_up = asyncio.ensure_future(lanes.run(sizes[0], lambda: begun.append(1)))
        assert await asyncio.wait_for(lanes.run(100, lambda: "short"), 20) == "short"
        given_up.cancel()
        await asyncio.wait([given_up])
        is_over.set()
        await asyncio.gather(*blocked)
        await lanes.run(sizes[0], lambda: None)
        assert begun == []

    asyncio.run(run())


def test_clients_that_go_while_prompts_are_tokenised(served, monkeypatch):
    """What was not begun is left out, and nothing is generated for either."""
    is_over, begun = threading.Event(), []

    def encode(*_, **__):
        begun.append(1)
        is_over.wait(30)
        return [5]

    def wait_for_requests(n):
        wait_until(lambda: f"treeshare_requests_in_flight {n}.0" in served.http.get("/metrics").text)

    lose, lost = connection.Connection.connection_lost, []

    def connection_lost(self, reason):
        lost.append(self.transport.get_extra_info("peername"))
        lose(self, reason)

    wait_for_requests(0)
    wait_until(lambda: served.llm.num_unfinished == 0)
    monkeypatch.setattr(connection.Connection, "connection_lost", connection_lost)
    monkeypatch.setattr(type(served.llm.llm), "encode", encode)
    before = served.llm.num_finished
    with (
        connected(served, post({"prompt": "Once"})) as one,
        connected(served, post({"prompt": "Once"})) as other,
    ):
        names = {one.getsockname(), other.getsockname()}
        wait_for_requests(2)
        wait_until(lambda: begun)
    wait_until(lambda: names <= set(lost))
    is_over.set()
    wait_for_requests(0)
    assert len(begun) == 1
    assert served.llm.num_finished == before


# -- heads --

LOCAL = ["localhost", "LOCALHOST:80", "localhost.", "127.0.0.1:8000", "127.8.8.8", "[::1]", "[::1]:80"]
REMOTE = ["192.0.2.7:80", "[2001:db8::1]", "0.0.0.0", "model-server:8000"]
STRANGE = [
    "attacker.example", "attacker.example:80", "localhost.attacker.example", "127.0.0.1.attacker.example", "",
    "localhost:80@attacker.example", "attacker.example@localhost", "[::1].attacker.example", "localhost/x",
    "[::1", "::1", "local host", "localhost:8o",
]  # fmt: skip


def is_answered(host, *arguments, **options):
    access, headers = Access(*arguments, **options), Headers({"host": host})
    try:
        access.check_host(headers)
    except ApiError as error:
        return error.status != 421
    return True


@pytest.mark.parametrize("host", [*LOCAL, *REMOTE, *STRANGE])
def test_the_name_that_is_asked_for(host):
    assert is_answered(host, None) == (host in LOCAL)
    assert is_answered(host, None, is_local=False) == (host in [*LOCAL, *REMOTE])
    assert is_answered(host, "key")
    assert is_answered(host, None, ["*"])
    name = host.partition(":")[0]
    assert is_answered(host, None, ["Attacker.Example."]) == (host in LOCAL or name == "attacker.example")


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/metrics", "/nowhere"])
def test_names_are_looked_at_everywhere(served, path):
    answer = served.http.get(path, headers={"host": "attacker.example"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (421, "misdirected_request")
    assert "Host: got 'attacker.example'; without a key" in answer.text


@pytest.mark.parametrize("version", ["0.9", "1.0", "1.1", "1.2", "2.0", "3.0", "9.9", "1.10", "11"])
def test_versions(served, version):
    with connected(
        served, f"GET /health HTTP/{version}\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    ) as client:
        status = received(client).split()[1]
    assert (status == b"200") == (version in ("1.0", "1.1", "1.2"))
    assert status in (b"200", b"505", b"400")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR", "Bearer "])
def test_a_scheme_has_no_case(async_llm, scheme):
    with serving(async_llm, api_key="Sesame") as served:
        for key, status in (("Sesame", 200), ("sesame", 401), ("Sesame x", 401)):
            answer = served.http.get("/v1/models", headers={"authorization": f"{scheme} {key}"})
            assert answer.status_code == status


# -- the log --


def test_the_log_does_not_grow_with_what_clients_do():
    seconds, written = [0.0], []
    handler = logging.Handler()
    handler.emit = lambda record: written.append(record.getMessage())
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(handler)
    filters = list(logger.filters)  # other libraries leave theirs
    try:
        with LogLimit(clock=lambda: seconds[0]):
            for _ in range(1000):
                logger.warning("invalid: %s", "x")
                logger.error("another place")
            assert written.count("invalid: x") == written.count("another place") == MAX_RECORDS
            seconds[0] = PERIOD_S
            logger.warning("a third place")
        logger.warning("after it: %s", "y")
        assert written[-2:] == ["a third place", "after it: y"]
        assert logger.filters == filters
    finally:
        logger.removeHandler(handler)


def test_what_was_left_out_of_the_log_is_told():
    seconds = [0.0]
    limit = LogLimit(clock=lambda: seconds[0])

    def record():
        return logging.LogRecord("uvicorn.error", logging.WARNING, "file", 1, "from %s", ("x",), None)

    assert sum(limit.filter(record()) for _ in range(100)) == MAX_RECORDS
    seconds[0] = PERIOD_S
    last = record()
    assert limit.filter(last)
    assert last.getMessage() == f"from x ({100 - MAX_RECORDS} records like this were left out before)"
