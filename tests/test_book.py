"""A page for every finished stage, and an index that hides nothing: of notebooks that hold one cell."""

import re
from pathlib import Path

import nbformat
import pytest

from fundus_lib import book, runs


@pytest.fixture
def first(tmp_path):
    """Ten notebooks, of which 01_data was executed and has a markup-like title."""
    (tmp_path / "notebooks").mkdir()
    for name in set(runs.STAGES) - {"base_model"}:
        title = nbformat.v4.new_markdown_cell(f"# {name[:2]} · <b>Title</b>\n*Question: why?*")
        made = nbformat.v4.new_notebook(cells=[title, nbformat.v4.new_code_cell("1 + 1")])
        nbformat.write(made, tmp_path / "notebooks" / f"{name}.ipynb")
    return runs.Stage("01_data", "smoke", seeds=1, root=tmp_path)


def test_finished_stages_have_a_page_and_the_others_say_what_they_are(first):
    first.folder.mkdir(parents=True)
    (first.folder / "notebook.ipynb").write_bytes((first.root / "notebooks/01_data.ipynb").read_bytes())
    runs.write(first.folder / "manifest.json", {
        "stage": "01_data", "seconds": 90, "device": "cpu", "commit": "abc", "key": first.key(), "reads": {},
        "wrote": {}, "figure_key": first.key(figures=True), "upstream": {}})
    text = Path(book.write(first)).read_text(encoding="utf-8")
    assert re.findall(r'href="(\S+)\.html"', text) == ["01_data"] and "1.5 minutes" in text and "missing" in text
    assert text.count("<li>") == len(runs.STAGES) and "<b>" not in text and "Question: why?" in text
    assert "1 + 1" in (first.folder.parent / "book/01_data.html").read_text().replace("</span>", "").replace(
        '<span class="mi">', "").replace('<span class="o">', "").replace('<span class="w">', "")


def test_without_a_finished_stage_the_next_command_is_named(first):
    with pytest.raises(runs.RunError, match="make reproduce PROFILE=smoke"):
        book.write(first)
    assert not (first.folder.parent / "book").exists()
