"""Wrong programs that pass, or passed once, where their test stands in their own process.

Each defines ``total`` as the test wants it called; none gives the sum of a list.
"""

# ruff: noqa: E501  (a program reads better on one line)

from __future__ import annotations

TEST = """
def check(candidate):
    import math
    assert candidate([1, 2, 3]) == 6
    assert candidate([]) == 0
    assert math.isclose(candidate([-1, 1.5]), 0.5)
    assert candidate([4]) in (4, 4.0)
    assert not candidate([1, 2]) != 3
    assert len({candidate([5]), 5}) == 1
check(total)
"""

EQUALITY = """
def check(candidate):
    assert candidate([1, 2, 3]) == 6
    assert not candidate([1, 2]) != 3
check(total)
"""
"""What objects that are equal to everything pass in the program's own process."""

_OBJECT = "def total(n):\n return type('E', {bases}, {{{methods}}})({value})\n"
_EQUAL = "'__eq__': lambda s, o: True, '__ne__': lambda s, o: False"
_HASH = "'__hash__': lambda s: 5"
_NUMBER = (
    "'__sub__': lambda s, o: 0.0, '__rsub__': lambda s, o: 0.0, '__abs__': lambda s: 0.0, '__float__': lambda s: 0.5,"
    "'__lt__': lambda s, o: True, '__le__': lambda s, o: True, '__gt__': lambda s, o: True, '__ge__': lambda s, o: True"
)


def _equal(bases: str, value: str = "", more: str = "") -> str:
    return _OBJECT.format(bases=bases, methods=f"{_EQUAL}, {_HASH}, {more}", value=value)


_FIND_EXPECTED = """
def find(text, numbers):
    import re
    for given, answer in re.findall(r'assert candidate[(](.*?)[)] == (.*)', text):
        if eval(given) == numbers:
            return eval(answer)
"""

CHEATS: dict[str, str] = {
    # objects that say they are right
    "an object equal to everything": _equal("()"),
    "an int equal to everything": _equal("(int,)"),
    "a float equal to everything": _equal("(float,)", "1.0"),
    "a str equal to everything": _equal("(str,)"),
    "a list equal to everything": _equal("(list,)"),
    "a tuple equal to everything": _equal("(tuple,)"),
    "a dict equal to everything": _equal("(dict,)"),
    "a set equal to everything": _equal("(set,)"),
    "bytes equal to everything": _equal("(bytes,)"),
    "a number close to everything": _equal("()", "", _NUMBER),
    "another class's name": _equal("()", "", "'__class__': property(lambda s: int)"),
    "a metaclass equal to everything": (
        "class M(type):\n def __eq__(c, o): return True\n __hash__ = type.__hash__\n"
        "def total(n):\n return M('E', (), {})\n"
    ),
    "a numpy array equal to everything": (
        "def total(n):\n import numpy\n class A(numpy.ndarray):\n"
        "  def __eq__(s, o): return True\n  def __ne__(s, o): return False\n  __hash__ = object.__hash__\n"
        " return numpy.zeros(1).view(A)\n"
    ),
    "a Fraction equal to everything": (
        "from fractions import Fraction\nclass F(Fraction):\n def __eq__(s, o): return True\n"
        " __hash__ = Fraction.__hash__\n numerator = property(lambda s: 6)\ndef total(n): return F(1, 3)\n"
    ),
    "a Decimal equal to everything": (
        "from decimal import Decimal\nclass D(Decimal):\n def __eq__(s, o): return True\n"
        " __hash__ = Decimal.__hash__\n def __str__(s): return '6'\ndef total(n): return D(1)\n"
    ),
    "a Mock": "from unittest.mock import MagicMock, ANY\ndef total(n): return ANY\n",
    "a class in the function's place": (
        "class total:\n def __init__(self, *a): pass\n def __eq__(self, other): return True\n"
        " def __hash__(self): return 5\n"
    ),
    # Python's own functions, patched
    "builtins": (
        "import builtins, math\nbuiltins.AssertionError = type('A', (Exception,), {})\n"
        "math.isclose = lambda *a, **k: True\nbuiltins.len = lambda x: 1\nbuiltins.abs = lambda x: 0\n"
        "def total(n): return None\n"
    ),
    "its own names": (
        "def check(candidate): pass\ndef isclose(*a): return True\ndef len(x): return 1\ndef set(x): return 0\n"
        "class AssertionError(Exception): pass\ndef total(n): return None\n"
    ),
    "modules": (
        "import sys, types\nfor name in ('math', 'copy', 'random', 'json', '__tests__'):\n"
        " sys.modules[name] = types.SimpleNamespace(isclose=lambda *a, **k: True)\ndef total(n): return None\n"
    ),
    "traces": (
        "import sys, threading\ndef trace(frame, event, arg):\n frame.f_trace_lines = False\n return trace\n"
        "sys.settrace(trace)\nsys.setprofile(lambda *a: None)\nsys.excepthook = lambda *a: None\n"
        "def total(n): return None\n"
    ),
    "leaving": "import os\ndef total(n): os._exit(0)\n",
    "leaving by the system call": "import ctypes\ndef total(n): ctypes.CDLL(None)._exit(0)\n",
    "leaving by SystemExit": "def total(n): raise SystemExit(0)\n",
    "leaving at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef total(n): raise KeyboardInterrupt\n",
    "leaving in a thread": (
        "import os, threading, time\ndef total(n):\n threading.Thread(target=os._exit, args=(0,)).start()\n"
        " time.sleep(5)\n"
    ),
    "a signal": (
        "import os, signal\ndef total(n):\n signal.signal(signal.SIGALRM, lambda *a: os._exit(0))\n"
        " signal.setitimer(signal.ITIMER_REAL, 0.01)\n while True: pass\n"
    ),
    # what the test expects, looked for
    "reading all descriptors": _FIND_EXPECTED
    + (
        "def total(n):\n import os\n for fd in range(64):\n  try: text = os.pread(fd, 1 << 20, 0)\n"
        "  except OSError:\n   continue\n  found = find(text.decode('utf-8', 'replace'), n)\n"
        "  if found is not None: return found\n"
    ),
    "reading all frames and objects": _FIND_EXPECTED
    + (
        "def total(n):\n import gc, sys\n texts, frame = [], sys._getframe()\n while frame:\n"
        "  texts += [repr(frame.f_locals), repr(frame.f_globals)]\n  frame = frame.f_back\n"
        " texts += [repr(o) for o in gc.get_objects() if type(o) in (list, dict, tuple, str)]\n"
        " return next((f for f in (find(t, n) for t in texts) if f is not None), None)\n"
    ),
    "reading its own memory": _FIND_EXPECTED
    + (
        "def total(n):\n import re\n try: maps = open('/proc/self/maps').read()\n except OSError: return\n"
        " for low, high in re.findall(r'^(\\w+)-(\\w+) rw', maps, re.M):\n"
        "  with open('/proc/self/mem', 'rb', 0) as m:\n   m.seek(int(low, 16))\n"
        "   try: text = m.read(int(high, 16) - int(low, 16)).decode('latin-1')\n   except OSError: continue\n"
        "   try: found = find(text, n)\n   except Exception: continue\n"
        "   if found is not None: return found\n"
    ),
    "reading other processes": _FIND_EXPECTED
    + (
        "def total(n):\n import os\n for pid in range(1, 200):\n"
        "  for name in ('cmdline', 'environ', 'fd', 'cwd', 'mem'):\n   try:\n"
        "    text = open(f'/proc/{pid}/{name}').read(1 << 20)\n   except (OSError, UnicodeError): continue\n"
        "   if find(text, n) is not None: return find(text, n)\n"
    ),
    "an array at an address": (
        "class E:\n __array_interface__ = {'shape': (), 'typestr': '<i8', 'data': (id(6), True), 'version': 3}\n"
        " def __array__(s, *a, **k):\n  import numpy\n  return numpy.zeros(0)\ndef total(n): return E()\n"
    ),
    "asking its caller": (
        "class E:\n def __eq__(s, o): return True\n def __radd__(s, o): s.seen = o\n"
        " def __getattr__(s, name): return E()\n def __call__(s, *a): return E()\n"
        " def __hash__(s): return 5\n def __float__(s): return 0.5\n def __contains__(s, o): return True\n"
        "def total(n): return E()\n"
    ),
    # messages in other people's names
    "a verdict in every descriptor": (
        "import os\ndef total(n):\n for text in (b'=passed\\n', b'passed\\n\\n', b'ready', b'.0'):\n"
        "  for fd in range(3, 64):\n   try: os.write(fd, len(text).to_bytes(4, 'big') + text)\n"
        "   except OSError: pass\n"
    ),
    "answers before the questions": (
        "import os\nfor fd in range(3, 64):\n for text in (b'ready', b'[\"=\",[0],[[\"dict\",[]]]]', b'[\"=\",6,[]]') * 9:\n"
        "  try: os.write(fd, len(text).to_bytes(4, 'big') + text)\n  except OSError: break\n"
        "def total(n): return None\n"
    ),
    "an exception that says it passed": (
        'import os\nfor fd in range(3, 64):\n for text in (b\'ready\', b\'["!","ValueError",null,[],"","passed","",[]]\'):\n'
        "  try: os.write(fd, len(text).to_bytes(4, 'big') + text)\n  except OSError: break\n"
        "def total(n): return None\n"
    ),
    "exceptions that say so later": (
        "import os\ndef total(n):\n for word in (b'passed', b'unusable'):\n"
        "  for nodes in (b'[]', b'[null]', b'[null,null]', b'[null,null,null]'):\n"
        '   text = b\'["!","ValueError",null,[],"","%s","",%s]\' % (word, nodes)\n'
        "   for fd in range(3, 64):\n    try: os.write(fd, len(text).to_bytes(4, 'big') + text)\n"
        "    except OSError: pass\n"
    ),
    "an exception whose text is a verdict": (
        "def total(n):\n raise type('passed', (Exception,), {'__str__': lambda s: '\\npassed\\n=passed'})()\n"
    ),
    "questions to the test": (
        "import os\ndef total(n):\n for operation in ('get', 'call', 'names', 'item', 'text', 'x'):\n"
        '  text = b\'["?","%s",[[0],"__globals__"],[],[["yours",0]]]\' % operation.encode()\n'
        "  for fd in range(3, 64):\n   try: os.write(fd, len(text).to_bytes(4, 'big') + text)\n"
        "   except OSError: pass\n"
    ),
}

BROKEN_MESSAGES: list[bytes] = [
    b"",
    b"null",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"a":1}',
    b'["=",[0],[]]',
    b'["=",[0],[["tuple",[[0]]]]]',
    b'["=",[0],[["tuple",[[1]]],["tuple",[[0]]]]]',
    b'["=",[0],[["list",7]]]',
    b'["=",[0],[["dict",[1]]]]',
    b'["=",[0],[["set",[[1]]],["list",[]]]]',
    b'["=",[0],[["yours",0]]]',
    b'["=",[0],[["yours",-1]]]',
    b'["=",[0],[["mine","x","y"]]]',
    b'["=",[0],[["mine",1,"a\\u0000b"]]]',
    b'["=",[0],[["type","eval"]]]',
    b'["=",[0],[["exception",0,"X","eval"]]]',
    b'["=",[0],[["Fraction",["1e999999999",1]]]]',
    b'["=",[0],[["Decimal","x"]]]',
    b'["=",[0],[["namedtuple",[1],"X","__import__(\'os\')"]]]',
    b'["=",[0],[["namedtuple",[1],"X, print()","x"]]]',
    b'["=",[0],[["numpy.ndarray","O",[1],"aaaaaaaa"]]]',
    b'["=",[0],[["numpy.ndarray","<f8",[1000000],"aaaaaaaa"]]]',
    b'["=",[0],[["sympy",[1],"sympify"]]]',
    b'["=",[0],[["os.system","true"]]]',
    b'["=",' + b"9" * 10_000 + b",[]]",
    b'["!","SystemExit",null,[0],"","passed","",[]]',
    b'["!","eval",null,["print(1)"],"","passed","",[]]',
    b'["!","AssertionError",[0],[],"","passed","",[["list",[]]]]',
    b'["?","get",[[0],"__class__"],[],[["list",[]]]]',
    b'["?","call",[[0],"print(1)"],[],[["type","eval"]]]',
    b'["?","x",[],[],[]]',
]
"""What a program may send instead of an answer; each ends the test, and none passes it."""

SEND = """
import os
def total(n):
    text = {text!r}
    for fd in range(3, 64):
        try:
            os.set_blocking(fd, False)
            os.write(fd, len(text).to_bytes(4, 'big') + text)
        except OSError:
            pass
    return None
"""
