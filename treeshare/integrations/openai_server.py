"""The former place of :mod:`treeshare.integrations.openai.server`, for programs that import it from here."""

from treeshare.integrations.openai.server import ServerOptions, create_app

__all__ = ["ServerOptions", "create_app"]
