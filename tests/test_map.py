"""``docs/map.md`` names every file of the package as it is, and where each is tested."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.scripts.loading import ROOT, load_script

write_map = load_script(ROOT / "scripts", "write_map")
TEXT = write_map.MAP.read_text(encoding="utf-8")


def faults(text: str, root=write_map.ROOT) -> list[str]:
    """What the map says that is not so."""
    found = [] if write_map.written(text, root) == text else ["run scripts/write_map.py"]
    for file, tests in write_map.tests_by_file(text).items():
        paths = re.findall(r"`([^`]+)`", tests)
        found += [f"{file}: no test is named"] if not paths else []
        found += [f"{file}: no such test: {path}" for path in paths if not (root / "tests" / path).is_file()]
    return found


def test_the_map_is_true():
    assert len(write_map.tests_by_file(TEXT)) > 150
    assert faults(TEXT) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (r"\| `treeshare/kv/pages.py`.*\n", "", "write_map"),
        (r"(\| `treeshare/kv/pages.py` \|) .* \|", r"\1 Something else. | `kv/test_store.py` |", "write_map"),
        (r"kv/test_store", "kv/test_shop", "no such test: kv/test_shop.py"),
        (r"\| `kv/test_store.py` \|", "|  |", "no test is named"),
    ],
)
def test_what_is_not_so_is_found(old, new, expected):
    changed = re.sub(old, new, TEXT)
    assert changed != TEXT
    assert any(expected in fault for fault in faults(changed))


def test_a_new_file_and_a_changed_first_line_are_found(tmp_path):
    for folder in ("treeshare", "tasks", "tests"):
        shutil.copytree(
            write_map.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("_kernels*")
        )
    assert faults(TEXT, tmp_path) == []
    new = tmp_path / "treeshare" / "kv" / "new.py"
    new.write_text('"""What is new."""\n')
    assert faults(TEXT, tmp_path) == ["run scripts/write_map.py"]
    assert "`treeshare/kv/new.py` | What is new |" in write_map.written(TEXT, tmp_path)
    new.unlink()
    (tmp_path / "treeshare" / "kv" / "pages.py").write_text('"""Something else."""\n')
    assert faults(TEXT, tmp_path) == ["run scripts/write_map.py"]
