"""The former place of :mod:`treeshare.integrations.openai.server`, for programs that import it from here."""

from treeshare.integrations.openai.server import create_app
from treeshare.integrations.openai.server_options import ServerOptions

__all__ = ["ServerOptions", "create_app"]
