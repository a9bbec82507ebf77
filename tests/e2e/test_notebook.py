"""The cells of docs/notebook.md in a real Jupyter kernel."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CELLS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "notebook.md").read_text(), re.DOTALL)


def run_cells(cells, folder):
    """What each cell wrote to its streams, and the text of its value."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(
        notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    return [
        (
            "".join(out["text"] for out in cell.outputs if out.output_type == "stream"),
            "".join(
                out["data"]["text/plain"]
                for out in cell.outputs
                if out.output_type in ("execute_result", "display_data")
            ),
            len(cell.outputs),
        )
        for cell in notebook.cells
    ]


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_a_notebook_shows_a_run_in_lines(tmp_path):
    ((said, value, outputs),) = run_cells(CELLS[:1], tmp_path)
    assert value == "(2, 32)"
    assert "step 1/2" in said
    assert "step 2/2" in said
    assert "\x1b" not in said, "no bar that is drawn again and again"
    assert len(said.splitlines()) < 20, said
    assert outputs < 10, "lines of text, and not a display for each of them"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_cells_of_the_page_do_what_it_says(tmp_path):
    first, awaited, interrupted, resumed, verified = run_cells(CELLS, tmp_path)
    assert first[1] == "(2, 32)"
    assert awaited[1] == "2", "a second training in the same kernel, with an async reward"
    assert "after step 2 of 4; saved in notebook-run" in interrupted[0]
    assert "resumed from" in resumed[0]
    assert resumed[1] == "4"
    assert verified[1] == "'exact'"
    assert sorted(p.name for p in (tmp_path / "notebook-run").glob("checkpoint-*")) == [
        "checkpoint-000002"
    ]


def test_every_cell_of_the_page_is_run():
    assert len(CELLS) == 5
    assert all(compile(cell, "cell", "exec") for cell in CELLS)
