"""The notebooks of the documentation run whole, from an empty kernel, and are kept without outputs."""

from __future__ import annotations

import ast

import pytest

from tests.scripts.loading import ROOT

nbformat = pytest.importorskip("nbformat")
NOTEBOOKS = sorted((ROOT / "docs" / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    for cell in cells:
        ast.parse(cell.source)
    assert f"examples/{path.name}" in (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:.*(zmq|asyncio|event loop|Proactor):")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_runs(path, tmp_path):
    """Each asserts what it shows; a cell that raises ends the run."""
    client = pytest.importorskip("nbclient").NotebookClient(
        nbformat.read(path, as_version=4),
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    printed = [output for cell in client.nb.cells for output in cell.get("outputs", ())]
    assert printed
    assert not any(output.output_type == "error" for output in printed)
