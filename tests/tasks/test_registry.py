from __future__ import annotations

from pathlib import Path

import pytest

from treeshare.errors import ConfigError
from treeshare.evals import Task
from treeshare.tasks.registry import canonical_name, get_task, task_names

PAGES = Path(__file__).parents[2] / "tasks"


@pytest.mark.parametrize("name", task_names())
def test_each_task_is_complete_and_has_its_page(name):
    task = get_task(name)
    assert isinstance(task, Task)
    assert task.name == name
    assert task.stop
    assert task.max_tokens > 0
    module = type(task).__module__.removeprefix("treeshare.tasks.")
    page = (PAGES / f"{module}.md").read_text()
    for part in (
        "**Variant**",
        "**Prompt**",
        "**Stop string",
        "## Pitfalls",
        "## Validity",
        "## Known scores",
        "arXiv",
    ):
        assert part.casefold() in page.casefold(), part
    assert all(f"`{string}`".replace("\n", "\\n") in page for string in task.stop if "`" not in string)
    assert str(task.max_tokens) in page
    assert f"`{name}`" in (PAGES / "README.md").read_text()


@pytest.mark.parametrize("name", ["nope", "", "HumanEval", "treeshare.tasks.gsm8k", ":X", "x:"])
def test_an_unknown_name_lists_what_there_is(name):
    with pytest.raises(ConfigError) as caught:
        get_task(name)
    message = str(caught.value)
    assert repr(name) in message or "cannot import" in message
    assert "\n" not in message
    if "cannot import" not in message:
        assert "humaneval, humaneval-plus, livecodebench" in message


OWN = """
from treeshare.evals import Task
class Own(Task):
    name, stop, max_tokens = "own", (), 8
    def load(self, data): return []
    def check(self, problem, completion, sandbox, limits): raise NotImplementedError
class Unfinished(Task):
    name, stop, max_tokens = "own", (), 8
class Nameless(Own):
    pass
del Own.name
Nameless.name = "nameless"
NotATask = dict
"""


def test_a_task_of_ones_own(tmp_path, monkeypatch):
    path = tmp_path / "my_task.py"
    path.write_text(OWN)
    assert get_task(f"{path}:Nameless").name == "nameless"
    monkeypatch.chdir(tmp_path)
    assert get_task("my_task.py:Nameless").name == "nameless"
    assert canonical_name("my_task.py:Nameless") == f"{path}:Nameless"
    assert canonical_name("gsm8k") == "gsm8k"
    assert get_task("treeshare.tasks.gsm8k:Gsm8k").name == "gsm8k"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Own", "does not define its name"),
        ("Unfinished", "cannot create .*abstract"),
        ("NotATask", "expected a subclass of treeshare.evals.Task called NotATask"),
        ("Missing", "expected a subclass of treeshare.evals.Task called Missing"),
    ],
)
def test_what_is_wrong_with_it_is_said(tmp_path, kind, message):
    path = tmp_path / "my_task.py"
    path.write_text(OWN)
    with pytest.raises(ConfigError, match=message):
        get_task(f"{path}:{kind}")


def test_files_that_cannot_be_imported(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot import .*missing\.py: FileNotFoundError"):
        get_task(f"{tmp_path / 'missing.py'}:X")
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(ConfigError, match=r"cannot import .*broken\.py: SyntaxError"):
        get_task(f"{tmp_path / 'broken.py'}:X")
    with pytest.raises(ConfigError, match=r"cannot import no\.such\.module: ModuleNotFoundError"):
        get_task("no.such.module:X")


def test_code_that_only_a_run_directory_names_is_not_run(tmp_path):
    path = tmp_path / "evil.py"
    path.write_text("open('ran', 'w')\n" + OWN)
    with pytest.raises(ConfigError, match=r"runs only if you name it; give --task .*evil\.py:Nameless"):
        get_task(f"{path}:Nameless", own_code=False)
    with pytest.raises(ConfigError, match="runs only if you name it"):
        get_task("treeshare.tasks.gsm8k:Gsm8k", own_code=False)
    assert not Path("ran").exists()
    assert get_task("gsm8k", own_code=False).name == "gsm8k"
