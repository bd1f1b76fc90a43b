"""Nothing that an answer holds takes the judge down, or makes it slow."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from tests.growth import MAX_GROWTH, growth
from treeshare.errors import ConfigError
from treeshare.evals.helper_process import HelperLimits
from treeshare.evals.math_judge import MathJudge
from treeshare.evals.math_judge.symbols import SympySymbols, missing
from treeshare.evals.pattern_search import PatternSearch

POWERS = [
    "10^{10^{10}}",
    "9^{9^{9^9}}",
    "2^{2^{2^{\\sqrt2}}}",
    "(((10!)!)!)!",
    "x^{x^{x^{x^x}}}",
    "1e9999",
    "1000!" * 400,
]
DEEP = [
    "(",
    "\\frac{",
    "\\sqrt",
    "sqrt ",
    "\\sin",
    "-",
    "x^",
    "x!",
    "!",
    "'",
    "|",
    "f(",
    "1,",
    "\\pm",
    "{",
    "\\{",
    "[",
]
DEEP += [
    "\\text{",
    "\\begin{pmatrix}",
    "a=b=",
    "x<",
    "\\cup",
    "1 or ",
    "_",
    "²",
    "½",
    "\\left(",
    "1_",
    "5\\text{cm}",
    "$",
]
CODE = [
    '__import__("os").system("touch {mark}")',
    "lambda: 1",
    "().__class__",
    "open('/etc/passwd')",
    "exit()",
    "\\input{x}",
]


@pytest.mark.parametrize("text", POWERS)
def test_powers_are_not_computed(judge, text):
    began = time.process_time()
    assert judge.judge(text, text).right
    assert not judge.judge(text, f"{text}+1").right
    assert not judge.judge(text, "5").right
    assert time.process_time() - began < 1


@pytest.mark.parametrize("piece", DEEP)
def test_depth_ends(judge, piece):
    for text in (piece * 40, piece * 300, "x" + piece * 200, piece * 30 + "1", piece * 300_000):
        judge.judge("5", text)
        judge.judge(text, text[:-1])


@pytest.mark.parametrize("piece", ["x", "1", "{", "(", "\\frac{", "1,", "a ", "\\text{a}", "\\", "$"])
def test_time_grows_with_the_text(judge, piece):
    def read(text):
        MathJudge().judge("5", text)

    assert growth(read, "", piece, size=60_000) < MAX_GROWTH


def test_code_is_text(judge, tmp_path):
    mark = tmp_path / "mark"
    for code in CODE:
        judge.judge("5", code.replace("{mark}", str(mark)))
        judge.judge("\\sum_{k=1}^{2} " + code.replace("{mark}", str(mark)), "5")
    assert not mark.exists()
    assert judge.judge("2", "2").right


def test_the_judge_does_not_import_sympy(judge):
    judge.judge("(x+1)^2", "x^2+2x+1")
    assert "latex2sympy2_extended" not in sys.modules


def test_a_comparison_that_takes_too_long_is_wrong_and_the_next_one_works():
    with MathJudge(HelperLimits(cpu_s=0.3)) as judge:
        found = judge.judge("\\prod_{k=1}^{10^9} \\sin k", "5")
        assert not found.right
        assert "more than 0.3 s of processor time" in found.reason
        assert judge.judge("(x+1)^2", "x^2+2x+1").right
        assert judge.symbols.helper.num_started == 2


def test_a_process_that_dies_is_replaced():
    with MathJudge() as judge:
        assert judge.judge("(x+1)^2", "x^2+2x+1").right
        os.kill(judge.symbols.helper._process.pid, signal.SIGKILL)
        assert judge.judge("(x+2)^2", "x^2+4x+4").right
        assert judge.symbols.helper.num_started == 2


def test_memory_has_a_limit(tmp_path):
    """A helper that takes what it can get: its death is said, and it is started again."""
    from treeshare.evals.helper_process import HelperError, HelperProcess

    module = tmp_path / "greedy.py"
    module.write_text(
        "def prepare(): pass\ndef answer(request):\n    return {'size': len(bytearray(request['size']))}\n"
    )
    helper = HelperProcess(module, HelperLimits(memory_bytes=256 << 20))
    assert helper.ask({"size": 1000}) == {"size": 1000}
    with pytest.raises(HelperError, match="256 MiB of memory"):
        helper.ask({"size": 1 << 30})
    assert helper.ask({"size": 7}) == {"size": 7}
    helper.close()
    with pytest.raises(ConfigError, match="cpu_s"):
        HelperLimits(cpu_s=0)


def test_without_sympy_the_layer_says_so(tmp_path, monkeypatch):
    """Undecided, by its name; the other layers go on."""
    (tmp_path / "sympy.py").write_text("raise ImportError('no sympy')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    judge = MathJudge()
    found = judge.judge("(x+1)^2", "x^2+2x+1")
    assert (found.right, found.is_decided, found.layer, found.reason) == (False, False, "symbols", missing())
    assert "math-verify>=" in missing()
    assert judge.judge("\\frac12", "0.5").right
    assert judge.symbols.helper.num_started == 1
    judge.judge("(x+2)^2", "x^2+4x+4")
    assert judge.symbols.helper.num_started == 1, "asked once is enough"


def test_a_pattern_that_takes_for_ever_is_not_found():
    search = PatternSearch(HelperLimits(cpu_s=0.3, memory_bytes=256 << 20))
    found, reason = search.search("(a+)+b", "a" * 5000)
    assert not found
    assert "0.3 s of processor time" in reason
    assert search.search("b$", "ab") == (True, "")
    assert search.search("^b", "ab") == (False, "the pattern is not found")
    search.close()


def test_many_threads_share_one_process(judge):
    from concurrent.futures import ThreadPoolExecutor

    symbols = SympySymbols()
    shared = MathJudge()
    shared.symbols = symbols
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda k: shared.judge(f"(x+{k})^2", f"x^2+{2 * k}x+{k * k}").right, range(24)))
    assert all(said)
    assert symbols.helper.num_started == 1
    shared.close()
