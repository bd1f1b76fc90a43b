"""Hostile programs by name, and the verdicts that are right for them.

Where a loop swallows every error, the program ends by the clock; the verdict is then a timeout.
"""

# ruff: noqa: E501  (a program reads better on one line)

from __future__ import annotations

from treeshare.evals.sandbox import Verdict as V

CALL_LIBC = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def syscall(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
"""

FAST: dict[str, tuple[str, set[V]]] = {
    # processes
    "fork bomb": ("import os\nwhile True: os.fork()", {V.PROCESS_LIMIT}),
    "daemon": ("import os\nif os.fork() == 0:\n os.setsid()\n while True: pass", {V.PROCESS_LIMIT}),
    "subprocess": ("import subprocess\nsubprocess.run(['/bin/sh', '-c', 'sleep 100 &'])", {V.PROCESS_LIMIT}),
    "spawn": ("import os\nos.posix_spawn('/bin/sh', ['sh', '-c', 'sleep 100'], {})", {V.PROCESS_LIMIT}),
    "multiprocessing": (
        "import multiprocessing as m\nm.get_context('fork').Process(target=print).start()",
        {V.PROCESS_LIMIT},
    ),
    "vfork": (CALL_LIBC + "syscall(58)", {V.PROCESS_LIMIT}),
    "clone3": (CALL_LIBC + "a = ctypes.create_string_buffer(88)\nsyscall(435, a, 88)", {V.RUNTIME_ERROR}),
    "thread bomb": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        {V.PROCESS_LIMIT},
    ),
    # memory
    "one block": ("x = bytearray(1 << 40)", {V.MEMORY}),
    "a list that grows": ("x = []\nwhile True: x.append(bytearray(1 << 24))", {V.MEMORY}),
    "a string that doubles": ("x = 'x'\nwhile True: x += x", {V.MEMORY}),
    "a big number": ("x = 1 << (1 << 36)", {V.MEMORY}),
    "memory in every thread": (
        "import threading\ndef f():\n x = bytearray(3 << 28)\nfor _ in range(8):\n"
        " threading.Thread(target=f).start()\nx = [bytearray(1 << 26) for _ in range(99)]",
        {V.MEMORY, V.PROCESS_LIMIT},
    ),
    "shared memory segment": (CALL_LIBC + "syscall(29, 0, 1 << 30, 0o1600)", {V.FORBIDDEN}),
    "memfd": ("import os\nos.memfd_create('x')", {V.FORBIDDEN}),
    "key ring": (CALL_LIBC + "syscall(248, b'user', b'a', b'x' * 9999, 9999, -3)", {V.FORBIDDEN}),
    "asynchronous reads": (CALL_LIBC + "syscall(206, 65536, ctypes.byref(ctypes.c_ulong()))", {V.FORBIDDEN}),
    "extended attributes": (
        "import os\nopen('/tmp/x', 'w').close()\nos.setxattr('/tmp/x', 'user.x', b'x' * 65536)",
        {V.FILE_ACCESS},
    ),
    "Landlock rules": (CALL_LIBC + "syscall(444, bytes(8), 8, 0)", {V.FORBIDDEN}),
    "timers": (CALL_LIBC + "syscall(222, 0, 0, ctypes.byref(ctypes.c_int()))", {V.FORBIDDEN}),
    "a bigger pipe": ("import fcntl, os\nfcntl.fcntl(os.pipe()[0], 1031, 1 << 20)", {V.FORBIDDEN}),
    # objects of the host
    "a segment of another": (CALL_LIBC + "syscall(30, 0, 0, 0)", {V.FORBIDDEN}),
    "a semaphore of another": (CALL_LIBC + "syscall(65, 0, 0, 0)", {V.FORBIDDEN}),
    "a message to another": (CALL_LIBC + "syscall(69, 0, 0, 0, 0)", {V.FORBIDDEN}),
    "a message queue": (CALL_LIBC + "syscall(240, b'x', 64, 0o600, 0)", {V.FORBIDDEN}),
    "removing a message queue": (CALL_LIBC + "syscall(241, b'x')", {V.FORBIDDEN}),
    "mounts of the host": (CALL_LIBC + "syscall(458, 0, 0, 0, 0)", {V.FORBIDDEN}),
    "a lock": ("import fcntl, os\nfcntl.flock(open(os.__file__), fcntl.LOCK_SH)", {V.FORBIDDEN}),
    "a lock on a range": ("import fcntl, os\nfcntl.lockf(open(os.__file__), fcntl.LOCK_SH)", {V.FORBIDDEN}),
    "a lease": ("import fcntl, os\nfcntl.fcntl(open(os.__file__), 1024, fcntl.F_RDLCK)", {V.FORBIDDEN}),
    "a call from the future": (CALL_LIBC + "syscall(900)", {V.RUNTIME_ERROR}),
    # output
    "stdout flood": ("while True: print('x' * 100000)", {V.OUTPUT_LIMIT}),
    "stderr flood": (
        "import sys\nwhile True: sys.stderr.write('x' * 100000)",
        {V.OUTPUT_LIMIT},
    ),
    "stdout flood below Python": ("import os\nwhile True: os.write(1, b'x' * 99999)", {V.OUTPUT_LIMIT}),
    "a sparse flood": ("import os\nos.ftruncate(1, 15 << 20)", {V.OUTPUT_LIMIT}),
    # network
    "tcp": ("import socket\nsocket.create_connection(('127.0.0.1', 22))", {V.NETWORK}),
    "udp": (
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('1.1.1.1', 53))",
        {V.NETWORK},
    ),
    "ipv6": ("import socket\nsocket.socket(socket.AF_INET6)", {V.NETWORK}),
    "vsock": ("import socket\nsocket.socket(socket.AF_VSOCK).connect((2, 1))", {V.NETWORK}),
    "netlink": ("import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", {V.NETWORK}),
    "dns": ("import socket\nsocket.getaddrinfo('example.org', 80)", {V.NETWORK}),
    "http": ("import urllib.request as r\nr.urlopen('http://example.org', timeout=1)", {V.NETWORK}),
    "connecting a pair": ("import socket\nsocket.socketpair(1, 2)[0].connect('\\0x')", {V.NETWORK}),
    "sending from a pair": ("import socket\nsocket.socketpair(1, 2)[0].sendto(b'x', '\\0x')", {V.NETWORK}),
    "a message from a pair": (
        "import socket\nsocket.socketpair(1, 2)[0].sendmsg([b'x'], [], 0, '\\0x')",
        {V.NETWORK},
    ),
    "naming a pair": ("import socket\nsocket.socketpair(1, 2)[0].bind('\\0x')", {V.NETWORK}),
    "listening": ("import socket\nsocket.create_server(('', 0))", {V.NETWORK}),
    "io_uring": (CALL_LIBC + "syscall(425, 8, ctypes.create_string_buffer(120))", {V.FORBIDDEN}),
    # files
    "other packages": ("import pydantic", {V.RUNTIME_ERROR}),
    "packages beside those it may import": (
        "import os, numpy\nprint(os.listdir(os.path.dirname(os.path.dirname(numpy.__file__)) + '/pydantic'))",
        {V.FILE_ACCESS},
    ),
    "home folder": ("import os\nos.listdir('/root')", {V.FILE_ACCESS}),
    "writing to /etc": ("open('/etc/passwd', 'a')", {V.FILE_ACCESS}),
    "writing to /usr": ("open('/usr/lib/x', 'w')", {V.FILE_ACCESS}),
    "writing to /dev": ("open('/dev/shm/x', 'w')", {V.FILE_ACCESS}),
    "writing beside the library": ("import os\nopen(os.__file__ + '.x', 'w')", {V.FILE_ACCESS}),
    "removing the library": ("import os\nos.remove(os.__file__)", {V.FILE_ACCESS}),
    "changing the library's mode": ("import os\nos.chmod(os.__file__, 0o777)", {V.FILE_ACCESS}),
    "changing the library's time": ("import os\nos.utime(os.__file__)", {V.FILE_ACCESS, V.FORBIDDEN}),
    "truncating the library": ("import os\nos.truncate(os.__file__, 0)", {V.FILE_ACCESS}),
    "filling the scratch folder": (
        "n = 0\nwhile True:\n with open(f'/tmp/{n}', 'wb') as f: f.write(bytes(1 << 20))\n n += 1",
        {V.FILE_ACCESS},
    ),
    "one big file": (
        "with open('/tmp/treeshare-attack', 'wb') as f:\n while True: f.write(bytes(1 << 20))",
        {V.FILE_ACCESS},
    ),
    "hard link": ("import os\nos.link(os.__file__, '/tmp/treeshare-attack')", {V.FILE_ACCESS}),
    "symbolic link": (
        "import os\nos.symlink('/etc/shadow', '/tmp/treeshare-attack')\nopen('/tmp/treeshare-attack')",
        {V.FILE_ACCESS},
    ),
    "links through itself": ("open('/proc/self/root/etc/shadow')", {V.FILE_ACCESS}),
    "links through the parent": ("import os\nopen(f'/proc/{os.getppid()}/root/etc/shadow')", {V.FILE_ACCESS}),
    "memory of the parent": ("import os\nopen(f'/proc/{os.getppid()}/mem', 'rb')", {V.FILE_ACCESS}),
    "block device": (
        "import os\nos.mknod(f'/tmp/treeshare-attack-{os.getpid()}', 0o60600, os.makedev(254, 0))",
        {V.FILE_ACCESS, V.FORBIDDEN},
    ),
    "raw memory": ("open('/dev/mem', 'rb')", {V.FILE_ACCESS}),
    "terminal": ("open('/dev/tty', 'w')", {V.FILE_ACCESS, V.RUNTIME_ERROR}),
    # other processes and the kernel
    "killing its parent": ("import os\nos.kill(os.getppid(), 9)", {V.FORBIDDEN}),
    "killing everything": ("import os\nos.kill(-1, 9)", {V.FORBIDDEN}),
    "killing the first process": ("import os\nos.kill(1, 9)", {V.FORBIDDEN}),
    "killing its group": ("import os\nos.killpg(os.getpgid(os.getppid()), 9)", {V.FORBIDDEN}),
    "a signal by pidfd": ("import os\nos.pidfd_open(os.getppid())", {V.FORBIDDEN}),
    "ptrace": (CALL_LIBC + "syscall(101, 16, os.getppid(), 0, 0)", {V.FORBIDDEN}),
    "reading another's memory": (CALL_LIBC + "syscall(310, 1, 0, 0, 0, 0, 0)", {V.FORBIDDEN}),
    "limits of its parent": (
        "import os, resource as r\nr.prlimit(os.getppid(), r.RLIMIT_CPU, (1, 1))",
        {V.FORBIDDEN},
    ),
    "surviving its parent": (CALL_LIBC + "syscall(157, 1, 0, 0, 0, 0)", {V.FORBIDDEN}),
    "signals by file owner": (
        "import fcntl, os\nfcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())",
        {V.FORBIDDEN},
    ),
    "signals by ioctl": (
        "import array, fcntl, os\nfcntl.ioctl(os.pipe()[0], 0x8901, array.array('i', [os.getppid()]))",
        {V.FORBIDDEN},
    ),
    "typing into a terminal": ("import fcntl, os\nfcntl.ioctl(os.pipe()[0], 0x5412, b'x')", {V.FORBIDDEN}),
    "mount": (CALL_LIBC + "syscall(165, b'none', b'/tmp', b'tmpfs', 0, 0)", {V.FORBIDDEN}),
    "user namespace": (CALL_LIBC + "syscall(272, 0x10000000)", {V.FORBIDDEN}),
    "clone into a namespace": (CALL_LIBC + "syscall(56, 0x10000011, 0, 0, 0, 0)", {V.FORBIDDEN}),
    "bpf": (CALL_LIBC + "syscall(321, 0, 0, 0)", {V.FORBIDDEN}),
    "userfaultfd": (CALL_LIBC + "syscall(323, 0)", {V.FORBIDDEN}),
    "becoming root": (
        "import os\nos.setuid(0)\nassert os.getuid() == 0 and not open('/etc/shadow')",
        {V.FORBIDDEN, V.FILE_ACCESS, V.RUNTIME_ERROR},
    ),
    "raising a limit": (
        "import resource as r\nr.setrlimit(r.RLIMIT_AS, (1 << 40, 1 << 40))",
        {V.RUNTIME_ERROR},
    ),
    "calls of 32-bit programs": (CALL_LIBC + "syscall(0x40000000 | 39)", {V.FORBIDDEN}),
    "segmentation fault": ("import ctypes\nctypes.string_at(1)", {V.RUNTIME_ERROR}),
    "endless recursion": ("def f(): f()\nf()", {V.RUNTIME_ERROR}),
    "endless recursion in C": (
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n def __repr__(self): return repr(self)\nrepr(A())",
        {V.RUNTIME_ERROR, V.MEMORY},
    ),
    # leaving early
    "sys.exit": ("import sys\nsys.exit(0)", {V.RUNTIME_ERROR}),
    "exit": ("exit()", {V.RUNTIME_ERROR}),
    "SystemExit in a function": ("def f():\n try: raise SystemExit\n finally: pass\nf()", {V.RUNTIME_ERROR}),
    "os._exit": ("import os\nos._exit(0)", {V.RUNTIME_ERROR}),
    "exit system call": (CALL_LIBC + "syscall(231, 0)", {V.RUNTIME_ERROR}),
    "os._exit in a thread": (
        "import os, threading, time\nthreading.Thread(target=os._exit, args=(0,)).start()\ntime.sleep(9)",
        {V.RUNTIME_ERROR},
    ),
    "another program": ("import os\nos.execv('/bin/true', ['true'])", {V.RUNTIME_ERROR, V.FORBIDDEN}),
    "a signal to itself": ("import os\nos.kill(os.getpid(), 9)", {V.RUNTIME_ERROR}),
    "abort": ("import os\nos.abort()", {V.RUNTIME_ERROR}),
    "closing everything": ("import os\nos.closerange(0, 64)\nos._exit(0)", {V.RUNTIME_ERROR}),
    "looking like bubblewrap's failure": (
        "import os\nos.write(2, b'bwrap: no\\n')\nos._exit(1)",
        {V.RUNTIME_ERROR},
    ),
    "a forged report": (
        "import os\nfor fd in range(3, 64):\n try: os.write(fd, b'0' * 32 + b'passed\\n\\n')\n"
        " except OSError: pass\nos._exit(0)",
        {V.RUNTIME_ERROR},
    ),
    "a report of nonsense": (
        "import os\nfor fd in range(3, 64):\n try: nonce = os.pread(fd, 32, 0)\n except OSError: continue\n"
        " for out in range(3, 64):\n  try: os.pwrite(out, nonce + b'hacked', 0)\n  except OSError: pass\n"
        "os._exit(0)",
        {V.RUNTIME_ERROR},
    ),
    "a replaced report": (
        "import os\nfor fd in range(3, 64):\n try: os.ftruncate(fd, 0)\n except OSError: pass\n"
        " try: os.pwrite(fd, b'passed\\n\\n', 0)\n except OSError: pass\nos._exit(0)",
        {V.RUNTIME_ERROR},
    ),
    "an exception from a handler": (
        "import sys\nsys.excepthook = lambda *a: sys.exit(0)\nraise ValueError",
        {V.RUNTIME_ERROR},
    ),
    "leaving in an exit handler": (
        "import atexit, os\natexit.register(os._exit, 0)\nassert False",
        {V.WRONG_ANSWER},
    ),
    "code with its own name": ("import __main__, sys\n__main__.main()", {V.RUNTIME_ERROR}),
    # exceptions that bite
    "hostile text": (
        "class E(Exception):\n def __str__(self): raise SystemExit(0)\nraise E",
        {V.RUNTIME_ERROR},
    ),
    "hostile attributes": (
        "class E(OSError):\n errno = property(lambda s: 1 / 0)\n __eq__ = lambda s, o: 1 / 0\n"
        " filename = errno\nraise E",
        {V.RUNTIME_ERROR},
    ),
    "hostile class": (
        "class M(type):\n __name__ = property(lambda s: 1 / 0)\n def __getattribute__(s, n): raise ValueError\n"
        "class E(Exception, metaclass=M):\n __class__ = property(lambda s: 1 / 0)\nraise E",
        {V.RUNTIME_ERROR},
    ),
    "many lines": ("raise ValueError('passed\\n\\n\\n' * 9999)", {V.RUNTIME_ERROR}),
    "text that is no text": ("raise ValueError('\\udcff\\x00\\n')", {V.RUNTIME_ERROR}),
    "text that writes to the terminal": ("raise ValueError('\\x1b]0;title\\x07\\x1b[2J')", {V.RUNTIME_ERROR}),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", {V.RUNTIME_ERROR}),
    "GeneratorExit": ("raise GeneratorExit", {V.RUNTIME_ERROR}),
    "a group of exceptions": (
        "raise ExceptionGroup('x', [AssertionError(), MemoryError()])",
        {V.RUNTIME_ERROR},
    ),
    # sources that are none
    "zero bytes": ("x = 1\x00", {V.RUNTIME_ERROR}),
    "half a surrogate": ("x = '\udcff'", {V.RUNTIME_ERROR}),
    "deep nesting": ("x = " + "(" * 100_000 + ")" * 100_000, {V.RUNTIME_ERROR, V.MEMORY}),
    "deep operators": ("x = " + "-" * 200_000 + "1", {V.RUNTIME_ERROR, V.MEMORY}),
    "no program": ("def f(:", {V.RUNTIME_ERROR}),
}
"""These end by themselves."""

SLOW: dict[str, str] = {
    "infinite loop": "while True: pass",
    "sleep": "import time\ntime.sleep(1000)",
    "catching everything": "while True:\n try:\n  while True: pass\n except BaseException: pass",
    "ignoring signals": (
        "import signal\nfor s in range(1, 32):\n try: signal.signal(s, signal.SIG_IGN)\n"
        " except (OSError, ValueError): pass\nwhile True: pass"
    ),
    "a text that takes for ever": "class E(Exception):\n def __str__(self):\n  while True: pass\nraise E",
    "a thread that holds on": "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()",
    "an exit handler that holds on": "import atexit, time\natexit.register(time.sleep, 99)",
    "a fork bomb that goes on": "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
    "stopping itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "a main thread that ends": (
        "import ctypes, threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)"
    ),
    "a memory hog that goes on": (
        "x = []\nwhile True:\n try: x.append(bytearray(1 << 24))\n except MemoryError: pass"
    ),
    "one long call in C": "sum(range(10 ** 12))",
}
"""These would never end."""
