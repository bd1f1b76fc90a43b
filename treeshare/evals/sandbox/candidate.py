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


class Reader:
    """Messages of the host's: each is its length in four bytes, then its content."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.buffer = descriptor, bytearray()

    def message(self) -> bytes:
        """The next one; the end of the process where there is none."""
        return self.taken(int.from_bytes(self.taken(4), "big"))

    def taken(self, size: int) -> bytes:
        """That many bytes."""
        while len(self.buffer) < size:
            more = os.read(self.descriptor, 1 << 16 if size < 1 << 16 else 1 << 20)
            if not more:
                os._exit(3)
            self.buffer += more
        taken = bytes(self.buffer[:size])
        del self.buffer[:size]
        return taken


def write_frame(descriptor: int, content: bytes) -> None:
    """Send a message to the host."""
    content = len(content).to_bytes(4, "big") + content
    while content:
        content = content[os.write(descriptor, content) :]


def candidate_main() -> None:
    """Limit, run the program, then answer what is asked of it, until the process is killed."""
    spec, program, _ = prepared()
    reader, outgoing = Reader(int(spec["incoming"])), int(spec["outgoing"])
    peer = Peer(
        lambda: marshal.loads(reader.message()),
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
