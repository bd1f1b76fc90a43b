"""``--verbose``: what treeshare logs, on stderr."""

import logging

import typer


def write_logs(context: typer.Context, wanted: bool) -> bool:
    """Until the command ends, write what the logger ``treeshare`` gets from level INFO on to stderr."""
    log = logging.getLogger("treeshare")
    if wanted and log.level != logging.INFO:
        before = log.level
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)

        def end() -> None:
            log.removeHandler(handler)
            log.setLevel(before)

        context.call_on_close(end)
    return wanted
