"""Runs inside the sandbox, before and around the program; standard library only, never imported by treeshare.

``roles.py`` says which files run together, and calls the main function of one. Arguments are ``name=value``.
The file ``source`` holds a nonce, the program and, where there is a function to call, the module ``values``
and what to call. The report of a program begins with the nonce, which is read when the program has ended: it
is not to be had by accident or by leaving early. A program that goes looking for it can find it: that is
cheating at a test, not an escape; tests that are to be safe from it run apart from the program
(``examiner.py``).

Modules that are not needed are not imported: importing is most of a short program's time.
"""

import errno
import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NONCE_BYTES = 32


def limit(spec: dict[str, str]) -> None:
    """Lower every limit for good; those of a user count from the next user id on."""
    cpu_s, file_bytes, memory = int(spec["cpu_s"]), int(spec["file_bytes"]), int(spec["memory_bytes"])
    stack = resource.getrlimit(resource.RLIMIT_STACK)[1]
    for kind, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_FSIZE, file_bytes, file_bytes),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        # Recursion in C is common in solutions; the default of 8 MiB ends it early.
        (resource.RLIMIT_STACK, 64 << 20 if stack < 0 else min(64 << 20, stack), stack),
        (resource.RLIMIT_AS, memory, memory),
    ):
        resource.setrlimit(kind, (soft, hard))
    if cpu_s:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    if "threads" in spec:
        resource.setrlimit(resource.RLIMIT_NPROC, (int(spec["threads"]),) * 2)


def become(uid: int) -> None:
    """Give up root."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def classify(error: BaseException, text: str) -> str:
    """The verdict that an exception at the end of a program stands for."""
    if isinstance(error, AssertionError):
        return "wrong answer"
    if isinstance(error, MemoryError):
        return "memory limit"
    if isinstance(error, BlockingIOError) or "can't start new thread" in text:
        return "process limit"
    if isinstance(error, OSError):
        return classify_os_error(error)
    return "runtime error"


def classify_os_error(error: OSError) -> str:
    """The same for what the operating system refused."""
    if type(error).__name__ in ("gaierror", "herror", "URLError"):
        return "network"
    if error.errno in (errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED):
        return "network"
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.ENOENT, errno.EXDEV):
        return "file access"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "file access" if error.filename else "forbidden"
    return "runtime error"


def judge(error: BaseException) -> tuple[str, str]:
    """Verdict and one line on an exception, whatever its methods do."""
    name = type.__dict__["__name__"].__get__(type(error))
    try:
        text = " ".join(f"{name}: {error}".split()).removesuffix(":")[:300]
    except BaseException:
        text = f"{name}, whose text cannot be had"
    try:
        return classify(error, text), text
    except BaseException:
        return "runtime error", text


def call(namespace: dict[str, object], codec: bytes, request: bytes) -> tuple[str, str]:
    """Call the function that ``request`` names; what it returns, as text, or why it cannot be told.

    ``codec`` is the module ``values``, compiled, which reads the one and writes the other.
    """
    import marshal

    values: dict[str, Any] = {"__name__": "values"}
    exec(marshal.loads(codec), values)
    entry_point, args = values["decode"](request.decode())
    name, _, method = entry_point.partition(".")
    if name not in namespace:
        raise NameError(f"the program defines no {name}")
    function: Any = namespace[name]
    if method:
        function = getattr(function(), method)
    value = function(*args)
    try:
        return values["encode"](value), ""
    except MemoryError:
        raise
    except values["NoValueError"] as error:
        return "", f"returned {error}, which is no JSON value"
    except Exception:
        kind = type.__dict__["__name__"].__get__(type(value))
        return "", f"returned a {kind}, whose value cannot be had"


class Packages:
    """Finds the third-party packages that programs may import, and no other in their folders."""

    def __init__(self, text: str) -> None:
        self.folders = dict(pair.split("=", 1) for pair in text.split(":") if pair)

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        """Where a package is, if it is one of those."""
        if name not in self.folders:
            return None
        from _frozen_importlib_external import spec_from_file_location  # importlib.util would cost 5 ms

        folder = self.folders[name]
        start = f"{folder}/__init__.py"
        return spec_from_file_location(name, start, submodule_search_locations=[folder])


def namespace_for(as_main: bool) -> dict[str, object]:
    """A fresh namespace; the module ``__main__`` is the program's in any case, not this one."""
    import builtins

    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    if not as_main:
        return {}
    for name in ("exit", "quit"):  # the module site's, which is not imported
        setattr(builtins, name, sys.exit)
    module.__dict__["__builtins__"] = builtins
    return module.__dict__


def prepared() -> tuple[dict[str, str], bytes, bytes]:
    """Limit this process; what it was told, the program, and what stands after the program."""
    spec = dict(argument.split("=", 1) for argument in sys.argv[1:])
    with open(int(spec["source"]), "rb", closefd=False) as file:
        content = file.read()
    end = NONCE_BYTES + int(spec["program_bytes"])
    limit(spec)
    if "landlock" in spec:
        confine(spec)  # type: ignore[name-defined]  # noqa: F821  # in the text before this one
    elif int(spec["uid"]):
        become(int(spec["uid"]))
    started = int(spec["started"])
    os.write(started, b"1")
    os.close(started)
    sys.argv[:] = ["program.py"]
    sys.meta_path.append(Packages(spec["packages"]))  # type: ignore[arg-type]
    return spec, content[NONCE_BYTES:end], content[end:]


def program_main() -> None:
    """Limit, run, report."""
    spec, program, request = prepared()
    source, report, as_main = int(spec["source"]), int(spec["report"]), spec["as_main"] == "1"
    value, verdict, detail, failure = "", "passed", "", None
    try:
        namespace = namespace_for(as_main)
        text = program.decode("utf-8", "surrogatepass").removeprefix("\ufeff")
        exec(compile(text, "program.py", "exec", dont_inherit=True), namespace)
        if request:
            codec_bytes = int(spec["codec_bytes"])
            value, detail = call(namespace, request[:codec_bytes], request[codec_bytes:])
    except SystemExit:
        raise
    except BaseException as error:
        failure = error
        verdict, detail = judge(error)
    nonce = os.pread(source, NONCE_BYTES, 0)
    lines = f"{verdict}\n{detail}\n{value}".encode("utf-8", "backslashreplace")
    os.pwrite(report, nonce + lines, 0)
    if not as_main:
        os._exit(failure is not None)
    if failure is not None:
        try:
            sys.excepthook(type(failure), failure, failure.__traceback__)
        finally:
            sys.exit(1)
