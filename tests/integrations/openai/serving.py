"""A tiny model behind a real server on a free port, and OpenAI's own client in front of it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import transformers

from tests.cli.text_model import saved_text_model
from treeshare import LLM, AsyncLLM
from treeshare.integrations.openai.connection import ConnectionLimits, Waiting
from treeshare.integrations.openai.serve import Server, bind, server_config
from treeshare.integrations.openai.server import create_app
from treeshare.integrations.openai.server_options import ServerOptions

NAME = "tiny"
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


def saved_chat_model(folder):
    """A model of bytes, with a chat template."""
    path = saved_text_model(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    return path


@dataclass(frozen=True)
class Served:
    """A running server."""

    llm: Any
    url: str
    client: openai.OpenAI
    http: httpx.Client

    def post(self, url, values=None, **options):
        return self.http.post(url, json=values, **options)


@contextlib.contextmanager
def serving_folder_of(llm):
    """Serve the model of ``llm`` by an engine of its own, which keeps nodes."""
    running = AsyncLLM(LLM(llm.model_id, dtype=llm.dtype, keep_nodes=True))
    with serving(running) as server:
        yield server
    running.close()


@contextlib.contextmanager
def serving(llm, limits=None, send_bytes=None, **options):
    """Serve ``llm`` in a thread; the model stays open. ``send_bytes`` are kept by the system for a client."""
    app = create_app(llm, ServerOptions(**{"names": (NAME, "other name"), **options}))
    bound = bind("127.0.0.1", 0)
    if send_bytes:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
    bound.listen(512)
    server = Server(server_config(app, Waiting(limits or ConnectionLimits())))
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    try:
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=120) as client,
            httpx.Client(base_url=url, timeout=120) as http,
        ):
            yield Served(llm, url, client, http)
    finally:
        server.should_exit = True
        thread.join()


def wait_until(condition, seconds=60.0):
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
