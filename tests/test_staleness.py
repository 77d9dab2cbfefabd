"""What makes a stage stale, and what does not: tiny notebooks and a tiny fundus_lib in a temporary folder."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundus_lib import settings, staleness

IMPORTS = "from fundus_lib import plots, voting"
COMPUTE = 'votes = voting.majority([1, 1, 0], stage.settings.voting)'
FIGURE = "plots.bars(votes)"
SMOKE = settings.load("smoke")


def cell(source, *tags, kind="code"):
    return {"cell_type": kind, "metadata": {"tags": list(tags)}, "source": source}


@pytest.fixture
def project(tmp_path):
    """project(cells, **files) writes a notebook and modules; returns the function that computes the stage's key."""
    library = {"plots": "def bars(x): return x", "lexicon": "TERMS = ['drusen']", "traces": "X = 1",
               "voting": 'from fundus_lib import lexicon\nPROMPT = "which findings?"\n'
                         'def majority(votes, s):\n    """Most common."""\n    return max(votes)'}
    (tmp_path / "fundus_lib" / "references").mkdir(parents=True)

    def build(*cells, stage="03_vf_voting", chosen=SMOKE, seeds=range(1), figures=False, **files):
        for name, source in {**library, **{k: v for k, v in files.items() if "/" not in k}}.items():
            (tmp_path / "fundus_lib" / f"{name}.py").write_text(source)
        for name, text in files.items():
            if "/" in name:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(text)
        notebook = tmp_path / "nb.ipynb"
        cells = cells or (cell(IMPORTS), cell(COMPUTE), cell(FIGURE, "figure"))
        notebook.write_text(json.dumps({"cells": [cell('SEED = 0', "parameters"), *cells]}))
        return staleness.code_key(notebook, stage, chosen, seeds, tmp_path, figures=figures)
    return build


def changed(old, new):
    return staleness.differences(old, new)


def test_markdown_comments_formatting_and_docstrings_change_nothing(project):
    before = project()
    after = project(cell("# Another title", kind="markdown"), cell(IMPORTS + "   # the library"),
                    cell("# three rollouts\nvotes = voting.majority(\n    [1, 1, 0],\n    stage.settings.voting)\n"),
                    cell(FIGURE, "figure"),
                    voting='"""Votes."""\nfrom fundus_lib import lexicon\n\nPROMPT = "which findings?"\n\n\n'
                           'def majority(votes, s):\n    """The most common."""\n    return max(votes)  # ties?')
    assert changed(before, after) == []


def test_a_changed_prompt_names_its_module(project):
    before = project()
    after = project(voting='from fundus_lib import lexicon\nPROMPT = "findings?"\n'
                           'def majority(votes, s):\n    return max(votes)')
    assert changed(before, after) == ["fundus_lib/voting.py"]


def test_a_changed_compute_cell_is_named(project):
    assert changed(project(), project(cell(IMPORTS), cell(COMPUTE.replace("0]", "1]")))) == ["notebook cells"]


def test_figure_cells_and_plots_count_only_for_the_figures(project):
    plots = {"plots": "def bars(x): return 2 * x"}
    other = (cell(IMPORTS), cell(COMPUTE), cell("plots.bars(votes + 1)", "figure"))
    assert changed(project(), project(*other)) == changed(project(), project(**plots)) == []
    assert changed(project(figures=True), project(*other, figures=True)) == ["notebook cells"]
    assert changed(project(figures=True), project(figures=True, **plots)) == ["fundus_lib/plots.py"]
    untagged = cell(IMPORTS), cell("plots.bars(3)")
    assert changed(project(*untagged), project(*untagged, **plots)) == [], "plots are never compute"


@pytest.mark.parametrize("reach", [
    "from fundus_lib import lexicon", "import fundus_lib.lexicon", "from fundus_lib.lexicon import TERMS",
    "from . import lexicon", "from .lexicon import TERMS", "def later():\n    from fundus_lib import lexicon",
    'COMMAND = ["python", "-m", "fundus_lib.lexicon"]'])
def test_modules_are_followed_however_they_are_reached(project, reach):
    voting = {"voting": reach}
    assert changed(project(**voting), project(**voting, lexicon="TERMS = ['cyst']")) == ["fundus_lib/lexicon.py"]
    assert changed(project(**voting), project(**voting, traces="X = 2")) == [], "nobody reaches traces"


def test_an_import_counts_only_where_its_name_is_used(project):
    """The first cell imports for figures as well; what no compute cell uses is no compute."""
    extra = (cell(IMPORTS + ", traces"), cell(COMPUTE), cell("plots.bars(traces.X)", "figure"))
    assert changed(project(), project(*extra)) == []
    assert changed(project(*extra), project(*extra, traces="X = 2")) == []


def test_the_same_name_from_elsewhere_is_a_change(project):
    natural = project(cell("from math import log as f"), cell("y = f(8)"))
    assert changed(natural, project(cell("from math import log2 as f"), cell("y = f(8)"))) == ["notebook cells"]


def test_data_files_that_a_module_names_count(project):
    named = {"voting": 'from pathlib import Path\nPAGES = Path(__file__).parent / "references" / "pages"'}
    before = project(**named, **{"fundus_lib/references/pages/drusen.md": "yellow"})
    after = project(**named, **{"fundus_lib/references/pages/drusen.md": "yellow-white"})
    assert changed(before, after) == ["fundus_lib/references/pages/drusen.md"]
    assert "fundus_lib/references/pages/drusen.md" not in project(voting="X = 1")


def test_only_the_settings_sections_that_are_named_count(project):
    other_grpo = SMOKE.model_copy(update={"grpo": SMOKE.grpo.model_copy(update={"steps": 99})})
    other_votes = SMOKE.model_copy(update={"voting": SMOKE.voting.model_copy(update={"rollouts": 7})})
    assert changed(project(), project(chosen=other_grpo)) == []
    assert changed(project(), project(chosen=other_votes)) == ["settings.voting.rollouts 5 -> 7"]
    inside = {"voting": "def majority(stage): return stage.settings.grpo.steps"}
    assert changed(project(**inside), project(**inside, chosen=other_grpo)) == ["settings.grpo.steps 3 -> 99"]


def test_settings_handed_on_whole_count_whole_but_for_the_workers(project):
    whole = cell("everything = stage.settings")
    other_grpo = SMOKE.model_copy(update={"grpo": SMOKE.grpo.model_copy(update={"steps": 99})})
    assert changed(project(whole), project(whole, chosen=other_grpo)) == ["settings.grpo.steps 3 -> 99"]
    assert changed(project(whole), project(whole, chosen=SMOKE.model_copy(update={"workers": 9}))) == []


@pytest.mark.parametrize("source, more_seeds, other_seed", [
    ("x = 1", [], []),
    ("x = SEED", [], ["seeds 0 -> 3"]),
    ("x = stage.seed", [], ["seeds 0 -> 3"]),
    ("x = [s for s in stage.seeds]", ["seeds 0 to 0 -> 0 to 4"], ["seeds 0 to 0 -> 3 to 3"]),
    ('stage = runs.open_stage("05_sft", profile=PROFILE, data=DATA, seed=SEED, seeds=SEEDS)', [], []),
])
def test_seeds_count_where_they_are_used(project, source, more_seeds, other_seed):
    assert changed(project(cell(source)), project(cell(source), seeds=range(5))) == more_seeds
    assert changed(project(cell(source)), project(cell(source), seeds=range(3, 4))) == other_seed


def test_base_model_cells_are_a_stage_of_their_own(project):
    cells = [cell("x = 1", "base_model"), cell("y = 1")]
    other_base, other_rest = [cell("x = 2", "base_model"), cells[1]], [cells[0], cell("y = 2")]
    assert changed(project(*cells), project(*other_base)) == []
    assert changed(project(*cells), project(*other_rest)) == ["notebook cells"]
    base = project(*cells, stage="base_model")
    assert changed(base, project(*other_base, stage="base_model")) == ["notebook cells"]
    assert changed(base, project(*other_rest, stage="base_model")) == []


def test_magics_are_skipped_and_other_nonsense_names_its_cell(project):
    assert changed(project(cell("x = 1")), project(cell("%matplotlib inline\nx = 1"))) == []
    with pytest.raises(ValueError, match=r"nb\.ipynb: cell 3, line 2"):
        project(cell("x = 1"), cell("y = 2\ny = = 3"))


def test_a_missing_notebook_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.ipynb does not exist"):
        staleness.read_cells(tmp_path / "nowhere.ipynb")


def test_many_differences_are_counted_not_listed():
    assert changed({}, {f"file{i}": "x" for i in range(10)})[-1] == "4 more"


def test_a_folder_of_downloads_changes_with_names_sizes_and_times(tmp_path):
    (tmp_path / "a.jpg").write_text("one")
    before = staleness.folder_digest(tmp_path)
    assert staleness.folder_digest(tmp_path) == before
    (tmp_path / "a.jpg").rename(tmp_path / "b.jpg")
    assert staleness.folder_digest(tmp_path) != before


NAMES = st.sampled_from(["x", "y", "votes"])
LINES = st.lists(st.builds("{} = {}".format, NAMES, st.integers(0, 9)), min_size=1, max_size=5)


@given(lines=LINES, comments=st.lists(st.text("abc #'\"", max_size=8), min_size=5, max_size=5))
def test_any_comment_or_blank_line_leaves_the_tree_alone(tmp_path_factory, lines, comments):
    folder = tmp_path_factory.mktemp("nb")
    dressed = [part for line, note in zip(lines, comments, strict=False)
               for part in (f"# {note}", "", f"{line}  # {note}")]
    keys = []
    for source in ("\n".join(lines), "\n".join(dressed)):
        (folder / "nb.ipynb").write_text(json.dumps({"cells": [cell(source)]}))
        keys.append(staleness.code_key(folder / "nb.ipynb", "01_data", SMOKE, range(1), folder))
    assert keys[0] == keys[1]
