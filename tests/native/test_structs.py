"""The structs in Python and those that the library was built with: a library that differs is not used."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import treeshare.native
from tests.kernel_levels import LEVELS
from tests.turns import by_turns
from treeshare.native import library, structs

SOURCES = Path(treeshare.native.__file__).parent
STRUCTS = [name for name in structs.STRUCTS if name not in ("Piece", "Slice")]

needs_library = pytest.mark.skipif(not LEVELS, reason="no kernels, or none for this CPU")


@pytest.fixture
def reason(monkeypatch):
    """``reason(name, struct)``: why the library is not used where ``struct`` is the mirror of ``name``."""

    def reload(name, struct):
        monkeypatch.setitem(structs.STRUCTS, name, struct)
        loaded = library._load.__wrapped__()
        assert (loaded.library is None) == (loaded.reason is not None)
        return loaded.reason

    return reload


def with_fields(name, change):
    """A struct whose fields are those of ``name`` after ``change``."""
    fields = change(list(structs.STRUCTS[name]._fields_))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


@needs_library
@pytest.mark.parametrize("name", structs.STRUCTS)
def test_the_library_has_these_structs(name, reason):
    assert reason(name, structs.STRUCTS[name]) is None


@needs_library
@pytest.mark.parametrize("name", STRUCTS)
def test_a_field_more_is_found(name, reason):
    more = with_fields(name, lambda fields: [*fields, ("new", ctypes.c_int64)])
    size = ctypes.sizeof(structs.STRUCTS[name])
    expected = f"built from other sources: {name} has {size} bytes there and {size + 8} here"
    assert reason(name, more) == expected


@needs_library
@pytest.mark.parametrize("name", STRUCTS)
def test_a_field_less_is_found(name, reason):
    assert f"{name} has" in reason(name, with_fields(name, lambda fields: fields[:-1]))


@needs_library
@pytest.mark.parametrize("name", STRUCTS)
def test_fields_in_another_order_are_found(name, reason):
    assert f"{name}." in reason(name, with_fields(name, lambda fields: fields[::-1]))


@needs_library
@pytest.mark.parametrize("name", STRUCTS)
def test_a_renamed_field_is_found(name, reason):
    def rename(fields):
        return [*fields[:-1], ("renamed", fields[-1][1])]

    assert f"{name}.renamed lies elsewhere" in reason(name, with_fields(name, rename))


SLICE_FIELDS = structs.SLICE.names


@needs_library
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([*SLICE_FIELDS, "new"], "Slice has 64 bytes there and 72 here"),
        (SLICE_FIELDS[:-1], "Slice has 64 bytes there and 56 here"),
        (SLICE_FIELDS[::-1], "Slice.causal lies elsewhere there"),
        ([*SLICE_FIELDS[:-1], "flag"], "Slice.flag lies elsewhere there"),
    ],
    ids=["a field more", "a field less", "another order", "another name"],
)
def test_a_changed_slice_is_found(fields, expected, reason):
    assert expected in reason("Slice", np.dtype([(name, np.int64) for name in fields]))


@needs_library
def test_a_narrower_field_is_found(reason):
    narrow = np.dtype(
        {"names": SLICE_FIELDS, "formats": [np.int32] * 8, "offsets": range(0, 64, 8), "itemsize": 64}
    )
    assert "Slice.first_row lies elsewhere there, or is of another size" in reason("Slice", narrow)


@needs_library
@pytest.mark.parametrize("arguments", [(), ("more",), ("p", "f")])
def test_other_arguments_are_found(arguments, monkeypatch):
    kinds = {"p": ctypes.c_void_p, "f": ctypes.c_float, "more": ctypes.c_int64}
    monkeypatch.setitem(library._ARGUMENTS, "draw", tuple(kinds[kind] for kind in arguments))
    assert library._load.__wrapped__().reason == "built from other sources: draw takes other arguments there"


@needs_library
def test_a_library_of_an_older_kind_is_found(monkeypatch):
    """One that says nothing of its structs, as those with a version number."""
    load = ctypes.CDLL
    monkeypatch.setattr(
        ctypes, "CDLL", lambda path, **options: load(None) if "_kernels" in path else load(path, **options)
    )
    assert library._load.__wrapped__().reason.startswith("built from other sources: it lacks a function")


def test_every_struct_of_the_header_has_its_mirror():
    named = re.findall(r"^struct (\w+) {", (SOURCES / "structs.h").read_text(), re.MULTILINE)
    assert named == list(structs.STRUCTS)


def test_every_kernel_of_the_header_has_its_arguments_here():
    exported = re.findall(r"EXPORT\((\w+)\)\(", (SOURCES / "exports.h").read_text())
    assert sorted(exported) == sorted(library._ARGUMENTS | library._INT8_ARGUMENTS)


def test_mirrors_of_structs_are_in_one_file():
    """But for the operating system's, which the sandbox has."""
    files = [path for path in SOURCES.parent.rglob("*.py") if "evals" not in path.parts]
    holders = [path for path in files if "(ctypes.Structure)" in path.read_text()]
    assert holders == [SOURCES / "structs.py"]


@needs_library
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm to list symbols")
def test_levels_share_no_function_but_the_standard_librarys():
    """A name that two levels define would be one level's code, run by both."""
    path = library._load().library._name
    lines = subprocess.run(
        ["nm", "-C", "--defined-only", "-D", path], capture_output=True, text=True, check=True
    )
    symbols = [line.split(" ", 2)[1:] for line in lines.stdout.splitlines()]
    own = {name for kind, name in symbols if kind == "T"}
    ends = tuple(
        f"_{level}" for level in {code for level in library.LEVELS for code in (level.code, *level.int8)}
    )
    assert {name for name in own if not name.startswith("treeshare_")} == set()
    common = {name for name in own if not name.endswith(ends)}
    assert common == {
        "treeshare_has_level",
        "treeshare_is_slow_level",
        "treeshare_cpu_has_level",
        "treeshare_level_features",
        "treeshare_struct_size",
        "treeshare_field_offset",
        "treeshare_field_size",
        "treeshare_arguments",
        "treeshare_key_block",
        *(f"treeshare_{name}" for name in library._FUNCTIONS),
        "treeshare_number",
    }
    others = [name for kind, name in symbols if kind in "WVuBD"]
    assert [name for name in others if "std::" not in name] == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
@pytest.mark.parametrize(
    ("level", "element"), by_turns(["avx2", "avx512", "avx512f"], ["bfloat16", "float32"], every=3)
)
def test_a_level_that_lacks_a_name_does_not_compile(level, element, tmp_path):
    """And one that lacks none does; ``level.h`` is what says so, by an error for each name."""

    def compile_with(header):
        (tmp_path / "changed.h").write_text(header)
        includes = [tmp_path / "changed.h", SOURCES / f"{element}.h", SOURCES / "level.h"]
        (tmp_path / "level.cpp").write_text("".join(f'#include "{path}"\n' for path in includes))
        words = ["g++", "-w", "-fsyntax-only", f"-I{SOURCES}", str(tmp_path / "level.cpp")]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    header = re.sub(  # with what 512 bits have in common
        r'#include "floats512.h"',
        lambda _: (SOURCES / "floats512.h").read_text(),
        (SOURCES / f"{level}.h").read_text(),
    )
    assert compile_with(header).returncode == 0
    names = ("round_whole", "load_first", "LINEAR_ROWS", "transpose_words")
    done = compile_with(re.sub(rf"\b({'|'.join(names)})\b", r"other_\1", header))
    assert done.returncode != 0
    for name in names:
        assert re.search(rf"level\.h:\d+:\d+: error: .*\b{name}\b", done.stderr), name
