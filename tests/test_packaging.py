"""What ``pip install`` brings: built from the source distribution, as an index would."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.evals.tiny_text import save_text_model

ROOT = Path(__file__).parents[1]

HEAVY = ("torch", "transformers", "numpy", "networkx", "datasets", "fastapi", "ray", "lm_eval", "inspect_ai")

LOOKUP = """
import treeshare, treeshare.tasks
from treeshare.tasks.registry import get_task, task_names
assert all(get_task(name).name == name for name in task_names())
print(*task_names())
print(treeshare.__file__)
print(treeshare.tasks.__file__)
"""


@pytest.fixture
def folder_with_tasks_py(tmp_path):
    """The folder of a user who has a ``tasks.py``."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "tasks.py").write_text("raise RuntimeError('the tasks.py of the user was imported')\n")
    return folder


def test_importing_treeshare_loads_nothing_heavy():
    code = f"import sys, treeshare, treeshare.tasks; print(sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def run_beside(folder_with_tasks_py, *words):
    """What Python prints there: it finds ``tasks.py`` of that folder before anything that is installed."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder_with_tasks_py,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_users_own_tasks_py_is_left_alone(folder_with_tasks_py):
    assert "Usage" in run_beside(folder_with_tasks_py, "-m", "treeshare.cli", "--help")
    names, *_ = run_beside(folder_with_tasks_py, "-c", LOOKUP).splitlines()
    assert {"humaneval", "gsm8k", "apps"} <= set(names.split())


@pytest.mark.slow
def test_a_users_own_tasks_py_is_left_alone_by_a_run(folder_with_tasks_py, tmp_path):
    record = {
        "task_id": "T/0",
        "prompt": "def f():\n",
        "entry_point": "f",
        "test": "",
        "canonical_solution": "",
    }
    (folder_with_tasks_py / "data.jsonl").write_text(json.dumps(record) + "\n")
    model = save_text_model(tmp_path / "model")
    command = ["sample", "--task", "humaneval", "--data", "data.jsonl", "--limit", "1", "--model", model]
    command += ["-n", "1", "--max-tokens", "2", "--threads", "1", "--out", "run"]
    run_beside(folder_with_tasks_py, "-m", "treeshare.cli", *command)
    assert len((folder_with_tasks_py / "run" / "samples.jsonl").read_text().splitlines()) == 1


def test_every_package_is_listed():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in ROOT.glob("treeshare/**/__init__.py")}
    assert set(options["packages"]) == found | {"treeshare.tasks"}
    assert (ROOT / options["package-dir"]["treeshare.tasks"] / "__init__.py").exists()


def test_nothing_imports_the_folder_at_the_top():
    """From the repository ``import tasks`` works too, and would load every module a second time."""
    importing = re.compile(r"^\s*(from|import) tasks\b", re.MULTILINE)
    assert importing.search("    from tasks.registry import get_task")
    folders = ("docs", "scripts", "tasks", "tests", "treeshare")
    files = [file for name in folders for file in (ROOT / name).rglob("*") if file.suffix in (".py", ".md")]
    assert len(files) > 300
    assert [file for file in files if importing.search(file.read_text(encoding="utf-8"))] == []


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """A source distribution of the checkout, and a wheel of the source distribution."""
    folder = tmp_path_factory.mktemp("distributions")
    build = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    tools = folder / "tools"
    subprocess.run([*pip, "install", "-q", "--target", tools, "setuptools>=77"], check=True)
    environment = {"PYTHONPATH": str(tools)}
    subprocess.run([sys.executable, "-c", build, folder], cwd=ROOT, check=True, env=environment)
    (sdist,) = folder.glob("*.tar.gz")
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", folder, sdist], check=True)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def installed_name(tracked):
    return f"treeshare/{tracked}" if tracked.startswith("tasks/") else tracked


@pytest.mark.slow
def test_a_wheel_from_the_source_distribution_holds_everything(distributions):
    sdist, wheel = distributions
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "treeshare/native/common.h", "tasks/apps.py"} <= names

    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        entries = archive.read(next(name for name in held if name.endswith("entry_points.txt"))).decode()
    tracked = subprocess.run(
        ["git", "ls-files", "treeshare", "tasks"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    wanted = {installed_name(name) for name in tracked if name.endswith((".py", ".css", ".js", ".typed"))}
    assert len(wanted) > 100
    assert "treeshare/tasks/humaneval.py" in wanted
    assert wanted <= held
    top_level = {name.split("/")[0] for name in held}
    assert {name.split("-")[0] for name in top_level} == {"treeshare"}
    assert "treeshare = treeshare.cli:main" in entries


@pytest.fixture
def fresh_environment(folder_with_tasks_py, tmp_path):
    """Installs into an environment of its own, which only borrows what treeshare depends on.

    Gives its folder of packages, and what runs a command of it beside the user's ``tasks.py``.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv" / "bin"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables["CC"] = variables["CXX"] = "false"  # without a compiler the kernels are left out

    def run(program, *words):
        command = [programs / program, *words]
        options = {"cwd": folder_with_tasks_py, "env": variables, "capture_output": True, "text": True}
        return subprocess.run(command, check=False, **options)

    def install(*words):
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", programs / "python"]
        subprocess.run([*pip, "install", "-q", "--no-deps", *words], check=True, env=variables)
        place = run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
        (Path(place) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        return Path(place), run

    return install


def check_lookups(run, package, tasks):
    """All tasks are found in the expected folders, and the user's ``tasks.py`` is the only ``tasks``."""
    found = run("python", "-c", LOOKUP)
    assert found.returncode == 0, found.stderr
    names, *files = found.stdout.splitlines()
    assert {"humaneval", "gsm8k", "apps"} <= set(names.split())
    assert files == [str(package / "__init__.py"), str(tasks / "__init__.py")]
    unknown = run("treeshare", "tree", "--task", "nope", "--model", "smollm2-135m")
    assert unknown.returncode == 2
    assert "--task: got 'nope', expected one of apps, " in unknown.stderr
    assert run("python", "-c", "import tasks").stderr.endswith("the tasks.py of the user was imported\n")
    assert "No module named 'tasks'" in run("python", "-P", "-c", "import tasks").stderr


@pytest.mark.slow
def test_an_installed_wheel_finds_its_tasks(distributions, fresh_environment):
    place, run = fresh_environment(distributions[1])
    check_lookups(run, place / "treeshare", place / "treeshare" / "tasks")


@pytest.mark.slow
@pytest.mark.parametrize("link", [True, False], ids=["link", "no link"])
def test_an_editable_install_finds_its_tasks(fresh_environment, tmp_path, link):
    """Also of a checkout or an archive that was unpacked without symbolic links."""
    checkout = tmp_path / "checkout"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, tracked.stdout.split("\0")):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name, follow_symlinks=False)
    place = checkout / "treeshare" / "tasks"
    assert place.is_symlink()
    if not link:
        place.unlink()
        place.write_text("../tasks")  # as git writes it where there are no links
    _, run = fresh_environment("--editable", checkout)
    check_lookups(run, checkout / "treeshare", place if link else checkout / "tasks")
