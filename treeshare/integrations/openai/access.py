"""Access control: the API key, the name that ``Host`` gives, and the protocol."""

from __future__ import annotations

import hmac
import ipaddress
import re
from typing import TYPE_CHECKING

from treeshare.errors import one_line
from treeshare.integrations.openai.schema import ApiError

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.datastructures import Headers

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/\s]+)(:[0-9]*)?")


class Access:
    """What a request must have in its head.

    A browser sends what any page asks it to, also to addresses that only its machine can reach, if the page's
    own name resolves to one (DNS rebinding). The page has no key; where there is none, the name tells it.

    Args:
        api_key: What ``/v1`` asks of its clients; None for nothing.
        hosts: Names that ``Host`` may have beside the loopback ones where there is no key; ``*`` for all.
        is_local: Whether only this machine can reach the server. If others can, ``Host`` may also be any IP
            address, or a name without a dot: neither can be a page's.
    """

    def __init__(self, api_key: str | None, hosts: Collection[str] = (), *, is_local: bool = True) -> None:
        self._key = None if api_key is None else api_key.strip().encode()
        self._hosts = {name.lower().rstrip(".") for name in hosts}
        self._is_local = is_local

    def check_key(self, headers: Headers) -> None:
        """Refuse a client without the key; the time that takes does not depend on what it guessed.

        Raises:
            ApiError: Status 401.
        """
        if self._key is None:
            return
        scheme, _, given = headers.get("authorization", "").encode("latin-1").partition(b" ")
        is_right = hmac.compare_digest(given.strip(b" "), self._key)
        if scheme.lower() != b"bearer" or not is_right:  # a scheme has no case: RFC 9110, 11.1
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    def check_protocol(self, version: str) -> None:
        """Refuse a major version of HTTP that does not exist, or that ours is not.

        Args:
            version: As ASGI gives it.

        Raises:
            ApiError: Status 505.
        """
        if not re.fullmatch(r"1\.[0-9]|2|3", version):
            raise ApiError(505, f"HTTP/{one_line(version, 10)}: expected HTTP/1.1")

    def check_host(self, headers: Headers) -> None:
        """Refuse a ``Host`` under which nobody who means this server asks for it.

        Raises:
            ApiError: Status 421.
        """
        if self._key is not None or "*" in self._hosts:
            return
        for host in headers.getlist("host"):
            if not self._is_ours(host):
                raise ApiError(
                    421,
                    f"Host: got {one_line(repr(host), 80)}; without a key the server accepts "
                    "localhost, loopback addresses, and names given by --allow-host",
                    code="misdirected_request",
                )

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].strip("[]").lower().removesuffix(".")
        if name == "localhost" or name in self._hosts:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return not self._is_local and "." not in name
        mapped = getattr(address, "ipv4_mapped", None)
        return not self._is_local or (mapped or address).is_loopback
