"""Options of the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treeshare.integrations.openai.schema import MAX_N
from treeshare.integrations.openai.upload import Upload

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a server answers.

    Attributes:
        names: Names of the model; the first stands in answers to requests that give none.
        api_key: What ``/v1`` asks of its clients; None for nothing.
        hosts: Names beside the loopback ones that ``Host`` may have where there is no key; ``*`` for all. By
            default the one that Starlette's ``TestClient`` gives, which no page can have.
        is_local: Whether only this machine can reach the server; see ``Access``.
        max_n: Most completions of a prompt.
        max_body_bytes: A longer body is refused with 413.
        max_queue: Requests held at once, uploads that are not complete among them; beyond, 429.
        max_held_bytes: Bodies of the requests held, together; beyond, 429.
        body_timeout_s: Longest time in which a body comes; beyond, 408.
        max_unread_bytes: Of a streamed answer, what is kept for a client that does not read it; beyond, it is
            hung up on.
        chat_template: Instead of the model's own.
        chat_template_kwargs: What its chat template is given, where a request does not say otherwise.
    """

    names: tuple[str, ...]
    api_key: str | None = None
    hosts: tuple[str, ...] = ("testserver",)
    is_local: bool = True
    max_n: int = MAX_N
    max_body_bytes: int = 4 << 20
    max_queue: int = 1024
    max_held_bytes: int = 256 << 20
    body_timeout_s: float = 60.0
    max_unread_bytes: int = 16 << 20
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    def upload(self, request: Any) -> Upload:  # noqa: ANN401
        """A request's body, within the limits."""
        return Upload(
            request.receive,
            request.headers,
            max_bytes=self.max_body_bytes,
            timeout_s=self.body_timeout_s,
        )
