"""The program in a reply: shapes by construction, and kinds of replies that people read without trouble."""

from __future__ import annotations

import re
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeshare.evals.replies import Wanted, as_body, free_names, program_in, without_future_imports

F = Wanted(names=frozenset({"f"}))
READS = Wanted(reads_stdin=True)
RIGHT = "def f(x):\n    return 1\n"
DRAFT = "def f(x):\n    return 0\n"
HARNESS = "import io, sys\nsys.stdin = io.StringIO('1')\nn = int(input())\nprint(n)\n"
BRANCHES = "n = int(input())\nif n:\n    print(1)\nelse:\n    print(2)\n"
TEXT = 'text = """\nmany\nwords here\n"""\nprint(text)\n'
PROGRAM = "n = int(input())\nprint(n + 1)\n"


def block(code, info="python", fence="```"):
    return f"{fence}{info}\n{code}{fence}\n"


# --- fences ---

BODY = st.lists(
    st.sampled_from(
        [
            "a = '```'",
            "b = '~~~~'",
            "# > x",
            "- 1",
            "",
            "if x:\n        return 2",
            "\tc = 3",
            "'''\n    ```\n    '''",
        ]
    ),
    max_size=5,
)


@st.composite
def fenced(draw):
    """Code, and a reply in which it stands in a fence, inside of lists and quotes."""
    lines = [line for part in draw(BODY) for line in part.split("\n")]
    code = "def f(x):\n" + "".join(f"    {line}\n" if line else "\n" for line in lines if "\t" not in line)
    code += "    return 1\n"
    character = draw(st.sampled_from("`~"))
    longest = max([2, *map(len, re.findall(f"(?m)^ {{0,3}}({character}+)[ \t]*$", code))])
    fence = character * draw(st.integers(max(3, longest + 1), longest + 4))
    info = draw(st.sampled_from(["python", "py", "Python3", "", 'python title="a.py"', "{.python}", "a.py"]))
    close = draw(st.sampled_from([fence, fence + character, f"{fence}  ", None]))
    text = [f"{fence}{info}", *code.split("\n")[:-1], *([] if close is None else [close])]
    indent = " " * draw(st.integers(0, 3))
    containers = draw(st.lists(st.sampled_from(["> ", ">", "- ", "1. ", "10) "]), max_size=3))
    indented = bool(containers) or draw(st.booleans())
    text = [
        f"{indent}{line}" if line and (indented or i == 0 or (close and i == len(text) - 1)) else line
        for i, line in enumerate(text)
    ]
    for container in containers:
        if container.startswith(">"):
            text = [
                container + (line if container == "> " or not line.startswith(" ") else f" {line}")
                for line in text
            ]
        else:
            first, *rest = text
            text = [container + first, *(" " * len(container) + line if line else line for line in rest)]
    last = "" if close is None else draw(st.sampled_from(["", "\nThat is all.\n"]))
    return code, draw(st.sampled_from(["", "So:\n\n"])) + "\n".join(text) + "\n" + last


@given(fenced())
def test_the_code_in_a_fence_is_found_as_it_was_put_in(made):
    code, reply = made
    assert program_in(reply, F).rstrip("\n") == code.rstrip("\n")
    assert program_in(reply.replace("\n", "\r\n"), F).rstrip("\n") == code.rstrip("\n")


@pytest.mark.parametrize(
    "reply",
    [
        f"Here it is: ```python\n{RIGHT}```\n",
        f"```python\n{RIGHT.rstrip()}```\nThat is all.",
        f"```python\n{DRAFT.rstrip()}```\nBetter:\n```python\n{RIGHT}```\n",
        f"````markdown\n# Answer\n{block(RIGHT)}````\n",
        f"<details>\n<summary>Code</summary>\n{block(RIGHT)}</details>\n",
        f"\ufeff{block(RIGHT)}",
        "Here:\n\n    ```python\n    def f(x):\n        return 1\n    ```\n",
        "Here:\n\n    def f(x):\n        return 1\n\nDone",
        f"- Code:\n  ```python\n{RIGHT}  ```\nbye",
        '<pre><code class="language-python">def f(x):\n    return 1\n</code></pre>',
        f"[PYTHON]\n{RIGHT}[/PYTHON]",
        f"```python\n{RIGHT}",
        block(">>> def f(x):\n...     return 1\n...\n>>> f(2)\n1\n", "pycon"),
    ],
)
def test_fences_as_models_write_them(reply):
    assert program_in(reply, F).strip().removesuffix("f(2)").strip() == RIGHT.strip()


@pytest.mark.parametrize("behind", ["\nThis function gives one.\n", "~~~\n", "\nIt's 1.\n\nNote: (as asked"])
def test_words_behind_a_fence_that_never_closes(behind):
    assert program_in(f"```python\n{RIGHT}{behind}", F).strip() == RIGHT.strip()
    cut = f"```python\n{RIGHT}\ndef g(x):\n    return (1\n"  # cut off: nothing of it is left out
    assert program_in(cut, F) == cut.removeprefix("```python\n")
    closed = block(f"{RIGHT}It is one.\n")  # what a fence holds is all meant
    assert "It is one" in program_in(closed, F)


def test_a_backtick_in_the_info_string_is_no_fence():
    reply = f"```py`thon\n\n{RIGHT}\n{block(DRAFT)}"
    assert program_in(reply, F) == DRAFT


@pytest.mark.parametrize("language", ["bash", "json", "js", "c++", "output", "diff", "java", "console"])
def test_another_language_is_never_taken(language):
    assert program_in(block("f = 1\n", language) + block(RIGHT) + block("f = 2\n", language), F) == RIGHT
    assert program_in(block("f = 1\n", language), F) == ""


# --- which version ---


@pytest.mark.parametrize(
    "later",
    [
        block("print(f(1))\n"),
        block("from answer import f\nassert f(1) == 1\n"),
        block("def test_f():\n    assert f(1) == 1\n"),
        block('def f(x):\n    """F."""\n    ...\n'),
        block("def f(x):\n    ...\n    return 0  # here\n"),
        "where\n\nf = 0\n\nhad been tried.\n",
        block("def f(x):\n    raise NotImplementedError\n"),
        block("1\n", ""),
        block("f(1) -> 1\n", "text"),
        "Better would be: def f(x): return 0, you may think.\n",
        block("const f = x => 1\n", "js"),
    ],
)
def test_what_only_shows_or_tests_is_left_out(later):
    assert program_in(block(RIGHT) + "Then\n" + later, F) == RIGHT
    assert program_in(block(DRAFT) + "Or rather\n" + block(RIGHT) + later, F) == RIGHT


@pytest.mark.parametrize(
    "later",
    [
        block(RIGHT),
        block(RIGHT, ""),
        block(RIGHT, fence="~~~~"),
        RIGHT,
        f"So:\n\n{RIGHT}\nThat is it.",
        block("f = lambda x: 1\n"),
        block("def f(x):\n    return (1\n"),  # a final answer that does not parse is still the final answer
        block("class Solution:\n    def f(self, x):\n        return 1\n"),
    ],
)
def test_the_last_version_is_taken(later):
    found = program_in(f"{block(DRAFT)}That fails. Corrected:\n{later}", F)
    assert "return 0" not in found
    assert "1" in found


def test_helpers_come_from_where_they_are():
    helper, user = "def g(x):\n    return 1\n", "def f(x):\n    return g(x)\n"
    assert program_in(block(helper) + block(user), F) == helper + user
    assert program_in(block(user) + "where g is\n" + block(helper), F) == helper + user
    assert (
        program_in(block("def g(x):\n    return 0\n") + "Better\n" + block(helper) + block(user), F)
        == helper + user
    )
    assert program_in(
        block("import math\nM = 7\nprint(M)\n") + block("def f(x):\n    return math.gcd(x, M)\n"), F
    ) == ("import math\nM = 7\ndef f(x):\n    return math.gcd(x, M)\n")
    table = "t = [0]\nfor i in range(5):\n    t.append(i)\n"
    assert program_in(block(table + "print(t)\n") + block("def f(x):\n    return t[x]\n"), F).startswith(
        table + "def f"
    )
    star = block("from math import *\n") + block("def f(x):\n    return floor(x)\n")
    assert program_in(star, F) == "from math import *\ndef f(x):\n    return floor(x)\n"
    used = block("word = 'ada'\n") + block("def f(x):\n    return [word for word in x]\n")
    assert "ada" not in program_in(used, F)  # a name of its own


def test_a_corrected_helper_takes_its_place():
    both = "def g(x):\n    return 0\n\ndef f(x):\n    return g(x)\n"
    assert program_in(block(both) + "Fix g:\n" + block("def g(x):\n    return 1\n"), F) == both.replace(
        "0", "1"
    )


@pytest.mark.parametrize("imports", ["from m import g, h\n", "from m import (\n    g,\n    h,\n)\n"])
def test_functions_take_the_place_of_one_import_of_them(imports):
    user = "def f(x):\n    return g(x) + h(x)\n"
    g, h = "def g(x):\n    return 1\n", "def h(x):\n    return 2\n"
    assert program_in(block(imports + user) + "where\n" + block(g + "\n" + h), F) == g + h + user
    assert program_in(block(imports + user) + "where\n" + block(h), F) == imports + h + user


def test_future_imports_stay_first():
    reply = block("from __future__ import annotations\nimport re\ndef g(x: List): return 1\n") + block(
        "# f\nfrom __future__ import annotations\ndef f(x):\n    return g(x)\n"
    )
    found = program_in(reply, F)
    assert found.startswith("from __future__ import annotations\ndef g")
    compile(found, "found", "exec")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (block(PROGRAM), PROGRAM),
        (block("2\n5\n", "") + block(PROGRAM) + block("3\n", ""), PROGRAM),
        (block(PROGRAM) + "Test it:\n" + block(HARNESS), PROGRAM),
        (block(PROGRAM) + "The key is\n" + block("print(n + 1)\n"), PROGRAM),
        (
            block(PROGRAM) + "Generate tests with\n" + block("import random\nprint(random.random())\n"),
            PROGRAM,
        ),
        (block(PROGRAM) + "Final answer:\n" + block("print(0)\n"), "print(0)\n"),
        (
            block("def main():\n    print(input())\n") + block("main()\n"),
            "def main():\n    print(input())\nmain()\n",
        ),
        (block("n = int(input())\n") + "and\n" + block("print(n)\n"), "n = int(input())\nprint(n)\n"),
        (
            block("def g(n):\n    return 0\nprint(g(int(input())))\n")
            + "Fixed:\n"
            + block("def g(n):\n    return 1\n"),
            "def g(n):\n    return 1\nprint(g(int(input())))\n",
        ),
        (f"Add.\n{BRANCHES}It adds.", BRANCHES),
        (
            "## Idea\n\nn = int(input())\n# the rest\nprint(n)\n\n## Why\n\nO(n)\nNote: fast\n",
            "n = int(input())\n# the rest\nprint(n)\n\n",
        ),
        ("grid = [\n[1, 2],\n[3, 4],\n]\nprint(grid)\nDone.", "grid = [\n[1, 2],\n[3, 4],\n]\nprint(grid)\n"),
        (f"{TEXT}Done it is.", TEXT),
    ],
)
def test_programs_that_read(reply, expected):
    assert program_in(reply, READS) == expected


def test_without_known_names_it_is_the_last_that_defines():
    anything = Wanted()
    assert (
        program_in(block(DRAFT) + "Better\n" + block(RIGHT) + "Use:\n" + block("print(f(1))\n"), anything)
        == RIGHT
    )


@pytest.mark.parametrize(
    "reply", ["", "No.", "I am sorry, I cannot.", "1", "<think>", f"<think>{block(RIGHT)}"]
)
def test_no_program(reply):
    assert program_in(reply, F) == ("" if "<" in reply else reply)


@given(st.text(alphabet="`~>-1. \n\tdefx():\"'#=[]<", max_size=80))
def test_any_text_gives_something(reply):
    for wanted in (F, READS, Wanted()):
        assert isinstance(program_in(reply, wanted), str)


def test_escapes_in_strings_are_the_programs_affair():
    """Warnings are errors in tests; for users each would be a line on the terminal."""
    helper, user = "def g(x):\n    return '\\d'\n", "def f(x):\n    return g('\\w')\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert program_in(block(helper) + block(user), F) == helper + user
        assert free_names("x = y + '\\d'\n") == {"y"}


# --- what stands behind a prompt ---


def test_annotations_without_the_future_import():
    text = (
        "from __future__ import annotations\nx: Later = 1\nclass \u00e9:\n    y: int\n"
        "def f(a: List[int], *b: 'c', d: (\n  int) = 2, **e: g) -> é | None:\n"
        "    z: Never = a\n    return z\n"
    )
    found = without_future_imports(text)
    spaces: tuple[dict, dict] = ({}, {})
    exec(compile(text, "a", "exec", dont_inherit=True), spaces[0])
    exec(compile(found, "b", "exec", dont_inherit=True), spaces[1])
    for name in ("f", "\u00e9"):
        assert spaces[0][name].__annotations__ == spaces[1][name].__annotations__
    assert spaces[0]["__annotations__"] == spaces[1]["__annotations__"]
    assert "__future__" not in found
    assert without_future_imports(RIGHT) == RIGHT


@pytest.mark.parametrize(
    "body", ["    return x\n", "return x\n", "if x:\n        return x\n    return 1\n", "\treturn x\n"]
)
def test_a_body_is_indented_as_its_prompt_asks(body):
    compile("def f(x):\n" + as_body("def f(x):\n", body), "f", "exec")
