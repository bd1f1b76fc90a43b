"""``treeshare serve``."""

import contextlib
import ipaddress
import sys
from typing import Annotated

import typer

from treeshare.cli import openai_options, options
from treeshare.cli.inputs import load_llm
from treeshare.errors import ConfigError, one_line


def serve(
    model: Annotated[
        str | None, typer.Argument(help="Embedded model's name, directory, .gguf file or hub id.")
    ] = None,
    model_option: options.SameModel = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free port.")
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar="TREESHARE_API_KEY", help="Key that clients must send for /v1."),
    ] = None,
    no_api_key: Annotated[
        bool, typer.Option("--no-api-key", help="Allow everybody who can reach --host to use the model.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="Name that clients without a key may use for the server; repeatable, * for all.",
        ),
    ] = None,
    name: openai_options.ServedNames = None,
    chat_template: openai_options.ChatTemplate = None,
    chat_template_kwargs: openai_options.ChatTemplateKwargs = None,
    reasoning_parser: options.ReasoningParser = "auto",
    dtype: options.Dtype = "auto",
    quantization: options.Quantization = None,
    max_model_len: options.MaxModelLen = None,
    lora: options.Lora = None,
    revision: options.Revision = None,
    generation_config: options.GenerationConfig = "auto",
    threads: options.Threads = None,
    max_num_seqs: options.MaxNumSeqs = 256,
    kv_budget: options.KvBudget = None,
    max_n: Annotated[
        int,
        typer.Option("--max-n", min=1, max=1 << 20, help="Maximum completions of a prompt."),
    ] = 1024,
    max_queue: Annotated[
        int,
        typer.Option(
            "--max-queue",
            min=1,
            max=100_000,
            help="Maximum number of requests in progress; others get status 429.",
        ),
    ] = 1024,
    max_body: Annotated[
        str,
        typer.Option(
            "--max-body", metavar="BYTES", help="Maximum size of a request; larger ones get status 413."
        ),
    ] = "4MiB",
    max_held: Annotated[
        str,
        typer.Option(
            "--max-held",
            metavar="BYTES",
            help="Maximum total size of the requests in progress, uploads too; others get status 429.",
        ),
    ] = "256MiB",
    max_unread: Annotated[
        str,
        typer.Option(
            "--max-unread",
            metavar="BYTES",
            help="Maximum size of a stream's unread part; a slower client is disconnected.",
        ),
    ] = "16MiB",
    max_connections: Annotated[
        int,
        typer.Option(
            "--max-connections",
            min=1,
            max=1_000_000,
            help="Maximum number of connections; then idle ones are closed, or new ones get status 503.",
        ),
    ] = 1000,
    idle_timeout: Annotated[
        float,
        typer.Option(
            "--idle-timeout",
            min=0.1,
            max=86400,
            help="Seconds within which a request's head must arrive; else the connection is closed.",
        ),
    ] = 30,
    transfer_timeout: Annotated[
        float,
        typer.Option(
            "--transfer-timeout",
            min=0.1,
            max=86400,
            help="Seconds within which a body must arrive, and each 64 KiB of an answer be received.",
        ),
    ] = 60,
    grace: Annotated[
        int,
        typer.Option(
            "--grace", min=0, max=86400, help="Seconds that running requests get to finish on shutdown."
        ),
    ] = 30,
) -> None:
    """Serve a model to OpenAI's clients: completions and chat, streamed or not.

    Prefixes that requests share are computed once. After Ctrl-C or SIGTERM, running requests may finish.
    """
    model = options.one_model("serve", model, model_option)
    if model is None:
        raise ConfigError("MODEL: got none; give a model, e.g. treeshare serve smollm2-135m")
    _check_exposure(host, api_key, no_api_key)
    max_body_bytes, max_held_bytes, max_unread_bytes = (
        options.parse_bytes(option, size) or 0
        for option, size in (("--max-body", max_body), ("--max-held", max_held), ("--max-unread", max_unread))
    )
    kv_budget_bytes = options.parse_bytes("--kv-budget", kv_budget)
    chat = openai_options.chat_options(chat_template, chat_template_kwargs)
    openai_options.require_libraries("fastapi", "uvicorn", "prometheus_client")
    from treeshare.engine.async_llm import AsyncLLM
    from treeshare.integrations.openai.connection import ConnectionLimits
    from treeshare.integrations.openai.serve import bind
    from treeshare.integrations.openai.serve import serve as run_server
    from treeshare.integrations.openai.server_options import ServerOptions

    bound = bind(host, port)
    with bound:
        llm = load_llm(
            model,
            reasoning_parser=reasoning_parser,
            dtype=dtype,
            quantization=quantization,
            max_model_len=max_model_len,
            lora=lora,
            revision=revision,
            generation_config=generation_config,
            threads=threads,
            max_num_seqs=max_num_seqs,
            kv_budget_bytes=kv_budget_bytes,
            keep_nodes=True,
        )
        server_options = ServerOptions(
            names=tuple(name or [model]),
            api_key=api_key,
            hosts=(host, *(allow_host or ())),
            is_local=_is_local(host),
            max_n=max_n,
            max_body_bytes=max_body_bytes,
            max_queue=max_queue,
            max_held_bytes=max_held_bytes,
            body_timeout_s=transfer_timeout,
            max_unread_bytes=max_unread_bytes,
            chat_template=chat.chat_template,
            chat_template_kwargs=chat.chat_template_kwargs,
        )
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{bound.getsockname()[1]}/v1"

        def announce() -> None:
            print(f"serving {one_line(server_options.names[0])} at {url}", file=sys.stderr, flush=True)

        run_server(
            AsyncLLM(llm),
            bound,
            server_options,
            grace_s=grace,
            connection_limits=ConnectionLimits(
                max_connections=max_connections,
                idle_timeout_s=idle_timeout,
                transfer_timeout_s=transfer_timeout,
            ),
            on_start=announce,
        )


def _check_exposure(host: str, api_key: str | None, no_api_key: bool) -> None:
    """Refuse an invalid key, and a host that other machines can reach without a key unless asked for."""
    if api_key is not None and no_api_key:
        raise ConfigError("--no-api-key: got a key too, from --api-key or TREESHARE_API_KEY; remove either")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip()):
        raise ConfigError("--api-key: expected printable ASCII characters, at least one of them not a space")
    if api_key is None and not no_api_key and not _is_local(host):
        raise ConfigError(
            f"--host: got {host}, which other machines may reach, but no key; "
            "set TREESHARE_API_KEY, or give --api-key or --no-api-key"
        )


def _is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
