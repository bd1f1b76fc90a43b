"""Runs inside the sandbox, after the harness: a program whose test is in another process and calls it."""

import marshal
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Value: TypeAlias = Any

if "Peer" not in globals():  # in the sandbox, all files of a role are one namespace
    from treeshare.evals.sandbox.encoder import as_json
    from treeshare.evals.sandbox.harness import judge, namespace_for, prepared
    from treeshare.evals.sandbox.proxies import Peer


def read_exactly(descriptor: int, count: int) -> bytes:
    """That many bytes; the end of the process where there are no more."""
    content = os.read(descriptor, count)
    while len(content) < count:
        more = os.read(descriptor, min(count - len(content), 1 << 20))
        if not more:
            os._exit(3)
        content += more
    return content


def read_frame(descriptor: int) -> bytes:
    """A message of the host's: its length in four bytes, then its content."""
    return read_exactly(descriptor, int.from_bytes(read_exactly(descriptor, 4), "big"))


def write_frame(descriptor: int, content: bytes) -> None:
    """Send a message to the host."""
    content = len(content).to_bytes(4, "big") + content
    while content:
        content = content[os.write(descriptor, content) :]


def candidate_main() -> None:
    """Limit, run the program, then answer what is asked of it, until the process is killed."""
    spec, program, _ = prepared()
    incoming, outgoing = int(spec["incoming"]), int(spec["outgoing"])
    peer = Peer(
        lambda: marshal.loads(read_frame(incoming)),
        lambda message: write_frame(outgoing, as_json(message)),
    )
    namespace = namespace_for(False)
    try:
        text = program.decode("utf-8", "surrogatepass").removeprefix("\ufeff")
        exec(compile(text, "program.py", "exec", dont_inherit=True), namespace)
    except SystemExit:
        raise
    except BaseException as error:
        write_frame(outgoing, "\n".join(judge(error)).encode("utf-8", "backslashreplace"))
        os._exit(1)
    write_frame(outgoing, b"ready")
    while True:
        known: list[Value] = []
        message = peer.receive()
        try:
            operation, values, named, known = peer.opened(message)
            # A call is made here: a program may recurse as deep as if its test stood beside it.
            if operation == "call":
                value = values[0](*values[1:], **named)
            elif operation == "names":
                value = {name: namespace[name] for name in values if name in namespace}
            else:
                value = peer.do(operation, values, named)
            answer = as_json(peer.returned(value, known, message[4]))
        except BaseException as error:
            answer = as_json(peer.raised(error, known, message[4]))
        write_frame(outgoing, answer)
