"""The runner on tiny notebooks in a temporary folder: reuse, staleness, interruption, full disks, refusals."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from fundus_lib import runs

DATA, BASE, RAG, VOTING = "01_data", "base_model", "02_knowledge_rag", "03_vf_voting"
COMPUTE = '_ = stage.cached("{0}.json", dict, value={1})'
FIGURE = '(stage.folder / "figures").mkdir(exist_ok=True)\n_ = (stage.folder / "figures" / "f.csv").write_text("{0}")'


def opening(stage, root, name="stage"):
    return (f"from fundus_lib import runs\n{name} = runs.open_stage('{stage}', profile=PROFILE, data=DATA, seed=SEED, "
            f"seeds=SEEDS, root='{root}')")


def write_notebook(root, name, *cells, parameters='PROFILE = "smoke"\nDATA = ""\nSEED = 0\nSEEDS = 1'):
    """`cells` are markdown (starting with #), code, or (code, tag)."""
    pairs = [(c, "") if isinstance(c, str) else c for c in [(parameters, "parameters"), *cells]]
    made = [nbformat.v4.new_markdown_cell(source) if source.startswith("# ") else
            nbformat.v4.new_code_cell(source, metadata={"tags": [tag] if tag else []}) for source, tag in pairs]
    (root / "notebooks").mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=made), root / "notebooks" / f"{name}.ipynb")


def make(root, *arguments):
    return runs.main([*arguments, "--profile", "smoke"], root=root)


def by_hand(root, name, *, value=1, **options):
    """Open, compute and finish a stage without a kernel, as a notebook opened in JupyterLab does."""
    stage = runs.open_stage(name, root=root, **{"profile": "smoke", "seeds": 1} | options)
    stage.cached("t.json", dict, value=value)
    stage.finish()
    return stage


def mark_executed(stage):
    """As if the runner had executed the notebook of a stage finished by hand."""
    stage.complete(stage.manifest | {"seconds": 123.4}, stage.key(), stage.key(figures=True))


def states(root):
    first = runs.Stage(DATA, "smoke", seeds=1, root=root)
    return {name: first.of(name).state()[0] for name in (DATA, BASE, RAG, VOTING)}


@pytest.fixture
def root(tmp_path):
    """Four stages that compute next to nothing; base_model is a section of notebook 03, as in the project."""
    for name in (DATA, RAG):
        write_notebook(tmp_path, name, "# Title", opening(name, tmp_path), COMPUTE.format("t", 1),
                       (FIGURE.format("a"), "figure"), "stage.finish()")
    write_notebook(tmp_path, VOTING, (opening(BASE, tmp_path, "base"), BASE), ("base.finish()", BASE),
                   opening(VOTING, tmp_path), COMPUTE.format("t", 1), "stage.finish()")
    return tmp_path


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """01_data really executed by papermill, once for this module; tests read it and leave it as it is."""
    root = tmp_path_factory.mktemp("executed")
    write_notebook(root, DATA, "# Title", opening(DATA, root), "import sys\nprint(sys.executable)",
                   COMPUTE.format("t", 1), (FIGURE.format("a"), "figure"), "stage.finish()")
    for name in [name for name in runs.STAGES if name not in (DATA, BASE)]:
        write_notebook(root, name)
    assert make(root, "stage", DATA) == 0
    return root


# a whole run

def test_an_executed_stage_holds_notebook_settings_results_and_manifest(executed):
    folder = executed / "runs" / "smoke" / DATA
    assert sorted(p.name for p in folder.iterdir()) == ["figures", "manifest.json", "notebook.ipynb", "settings.yaml",
                                                        "t.json"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["wrote"]) == {"t.json", "figures/f.csv"}
    assert manifest["threads"] >= 1 and manifest["peak_memory_gib"] > 0 and "cpu" in manifest["device"]
    assert manifest["versions"]["papermill"] and manifest["settings"]["voting"]["rollouts"] == 5 and manifest["commit"]


def test_the_kernel_is_this_python_whatever_the_users_python3_is(executed):
    notebook = nbformat.read(executed / "runs" / "smoke" / DATA / "notebook.ipynb", as_version=4)
    assert sys.executable in str(notebook.cells)
    assert any("PROFILE" in cell.source and "injected-parameters" in cell.metadata.tags for cell in notebook.cells)


def test_a_second_run_executes_nothing(executed, capsys):
    before = (executed / "runs" / "smoke" / DATA / "manifest.json").stat().st_mtime_ns
    assert make(executed, "stage", DATA) == 0
    assert capsys.readouterr().out == f"{DATA}: finished\n"
    assert (executed / "runs" / "smoke" / DATA / "manifest.json").stat().st_mtime_ns == before


def test_status_says_what_is_finished_and_what_follows(executed, capsys):
    assert make(executed, "status") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "finished" in lines[DATA] and "cpu" in lines[DATA] and "missing" in lines["05_sft"]
    assert list(lines) == list(runs.STAGES)


def test_a_figure_cell_redraws_from_cached_results_and_nothing_downstream(root, capsys):
    stage = by_hand(root, DATA)
    assert stage.state()[0] == "redraw", "finished by hand, not yet executed by the runner"
    mark_executed(stage)
    mark_executed(by_hand(root, RAG))
    assert states(root) == {DATA: "finished", BASE: "missing", RAG: "finished", VOTING: "missing"}
    before = (stage.folder / "t.json").stat().st_mtime_ns
    write_notebook(root, DATA, "# Other title", opening(DATA, root), COMPUTE.format("t", 1),
                   (FIGURE.format("b"), "figure"), "stage.finish()")
    assert stage.state() == ("redraw", ["notebook cells"])
    assert make(root, "stage", DATA) == 0
    assert (stage.folder / "figures" / "f.csv").read_text() == "b"
    assert (stage.folder / "t.json").stat().st_mtime_ns == before and stage.manifest["seconds"] == 123.4
    assert states(root)[DATA] == states(root)[RAG] == "finished", "02 does not depend on figures of 01"


# staleness between stages

def test_editing_markdown_changes_nothing(root):
    by_hand(root, DATA)
    before = states(root)
    write_notebook(root, DATA, "# A better title", opening(DATA, root), COMPUTE.format("t", 1),
                   (FIGURE.format("a"), "figure"), "stage.finish()")
    assert states(root) == before


def test_editing_a_compute_cell_makes_it_stale_and_the_upstream_of_others_new(root):
    by_hand(root, DATA)
    by_hand(root, RAG)
    write_notebook(root, DATA, opening(DATA, root), COMPUTE.format("t", 2), "stage.finish()")
    assert runs.Stage(DATA, "smoke", root=root).state() == ("stale", ["notebook cells"])
    by_hand(root, DATA, value=2)
    assert runs.Stage(RAG, "smoke", root=root).state() == ("stale", [f"content of {DATA}"])


def test_an_upstream_repeated_with_equal_content_does_not_spread(root):
    by_hand(root, DATA)
    by_hand(root, RAG)
    write_notebook(root, DATA, opening(DATA, root), COMPUTE.format("t", "2 - 1"), "stage.finish()")
    assert runs.Stage(DATA, "smoke", root=root).state()[0] == "stale"
    by_hand(root, DATA, value=1)
    assert runs.Stage(RAG, "smoke", root=root).state()[0] == "redraw"


def test_a_lost_result_makes_stale_and_a_lost_figure_redraws(executed, tmp_path):
    shutil.copytree(executed, tmp_path, dirs_exist_ok=True)
    stage = runs.Stage(DATA, "smoke", root=tmp_path)
    (stage.folder / "figures" / "f.csv").unlink()
    assert stage.state() == ("redraw", ["figures/f.csv is gone"])
    (stage.folder / "t.json").unlink()
    assert stage.state() == ("stale", ["t.json is gone"])


def test_downloads_are_part_of_the_key_and_base_model_is_reused(root, capsys):
    downloads = root / "Downloads"
    downloads.mkdir()
    by_hand(root, BASE)
    by_hand(root, DATA)
    real = runs.Stage(DATA, "smoke", data=str(downloads), seeds=1, root=root)
    assert real.folder == root / "runs" / "smoke-Downloads" / DATA and real.data_root == downloads
    before = real.key()
    (downloads / "eye.jpg").write_text("new")
    assert [name for name in before if before[name] != real.key()[name]] == ["files in DATA"]
    assert runs._reuse(real.of(BASE)) and "copied from" in capsys.readouterr().out
    assert runs.read(real.of(BASE).folder / "t.json") == {"value": 1}
    assert not runs._reuse(real), "01_data reads other images here"


# notebooks opened by hand

def test_cached_computes_once_and_returns_what_the_file_holds(root):
    stage, calls = runs.open_stage(DATA, profile="smoke", root=root), []

    def compute():
        calls.append(1)
        return {"pair": (1, 2)}
    assert stage.cached("pair.json", compute) == stage.cached("pair.json", compute) == {"pair": [1, 2]}
    assert len(calls) == 1


@pytest.mark.parametrize("name, value", [
    ("t.parquet", pd.DataFrame({"finding": ["drusen", None], "votes": [3, 0]})),
    ("t.csv", pd.DataFrame({"finding": ["drusen", "cyst"], "s2": [0.5, 1.0]})),
    ("t.json", {"a": [1, None, "é"]}),
    ("deep/er/t.jsonl", [{"text": "two\nlines and a \u2028 separator"}, {"text": ""}]),
])
def test_every_format_comes_back_as_it_went(root, name, value):
    back = runs.open_stage(DATA, profile="smoke", root=root).cached(name, lambda: value)
    assert back.equals(value) if isinstance(value, pd.DataFrame) else back == value


def test_cached_folder_resumes_and_is_skipped_when_finished(root):
    stage, seen = runs.open_stage(DATA, profile="smoke", root=root), []

    def train(folder, steps):
        seen.append(sorted(p.name for p in folder.iterdir()))
        (folder / "checkpoint").touch()
        if len(seen) == 1:
            raise RuntimeError("killed")
    with pytest.raises(RuntimeError, match="killed"):
        stage.cached_folder("E/seed0", train, steps=3)
    assert stage.cached_folder("E/seed0", train, steps=3) == stage.folder / "E" / "seed0"
    stage.cached_folder("E/seed0", train, steps=3)
    assert seen == [[], ["checkpoint"]]


def test_an_unfinished_upstream_names_the_command(root):
    with pytest.raises(FileNotFoundError, match=f"run it:  make {DATA} PROFILE=smoke"):
        runs.open_stage(RAG, profile="smoke", root=root)
    assert not (root / "runs" / "smoke" / RAG).exists(), "nothing may be touched before"


def test_what_is_not_there_or_not_declared_is_refused(root):
    by_hand(root, DATA)
    stage = runs.open_stage(RAG, profile="smoke", root=root)
    assert stage.read(DATA, "t.json") == {"value": 1}
    with pytest.raises(FileNotFoundError, match=r"has no records\.csv"):
        stage.path(DATA, "records.csv")
    with pytest.raises(runs.RunError, match=f"{RAG} reads 05_sft without saying so"):
        stage.path("05_sft", "E/seed0")


def test_the_opening_cell_may_be_run_again_and_keeps_partial_results(root):
    runs.open_stage(DATA, profile="smoke", root=root).cached("half.json", dict, done=1)
    again = runs.open_stage(DATA, profile="smoke", root=root)
    assert again.cached("half.json", dict, done=2) == {"done": 1}


def test_partial_results_of_other_code_are_removed_and_the_reason_is_said(root, capsys):
    runs.open_stage(DATA, profile="smoke", root=root).cached("half.json", dict, done=1)
    write_notebook(root, DATA, opening(DATA, root), COMPUTE.format("t", 7), "stage.finish()")
    again = runs.open_stage(DATA, profile="smoke", root=root)
    assert "earlier results are removed: notebook cells" in capsys.readouterr().out
    assert again.cached("half.json", dict, done=2) == {"done": 2}


def test_finishing_other_code_than_was_opened_is_refused(root):
    stage = runs.open_stage(DATA, profile="smoke", root=root)
    write_notebook(root, DATA, opening(DATA, root), COMPUTE.format("t", 7), "stage.finish()")
    with pytest.raises(runs.RunError, match="restart the kernel"):
        stage.finish()


def test_hours_of_another_profile_are_never_cleared_by_opening_a_notebook(root):
    by_hand(root, DATA, profile="cpu")
    write_notebook(root, DATA, opening(DATA, root), COMPUTE.format("t", 7), "stage.finish()")
    with pytest.raises(runs.RunError, match=f"make {DATA} PROFILE=cpu"):
        runs.open_stage(DATA, profile="cpu", seeds=1, root=root)
    assert (root / "runs" / "cpu" / DATA / "t.json").exists()


def test_the_settings_table_shows_the_sections_that_the_cells_name(root):
    write_notebook(root, DATA, opening(DATA, root), "stage.settings.voting", "stage.finish()")
    table = runs.open_stage(DATA, profile="smoke", root=root).settings_table()
    assert set(table.data.setting.str.split(".").str[0]) == {"voting"}


# what goes wrong

@pytest.mark.parametrize("arguments, message", [
    (["stage", "03_vf_votin"], "did you mean 03_vf_voting?"),
    (["stage", DATA, "--profile", "smok"], "did you mean smoke?"),
    (["stage", DATA, "--data", "/no/such/folder"], "DATA=/no/such/folder is not a folder"),
    (["stage", DATA, "--seeds", "0"], "seeds"),
    (["stage", DATA], "01_data.ipynb does not exist"),
])
def test_what_cannot_be_run_is_one_message_without_a_stack_trace(tmp_path, capsys, arguments, message):
    assert runs.main(["--profile", "smoke", *arguments], root=tmp_path) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_parameter_the_notebook_does_not_take_is_refused_before_execution(root, capsys):
    write_notebook(root, DATA, opening(DATA, root), parameters='PROFILE = "smoke"\nDATA = ""\nSEED = 1 - 1')
    assert make(root, "stage", DATA) == 1
    assert "01_data.ipynb does not take SEED, SEEDS" in capsys.readouterr().err
    assert not (root / "runs" / "smoke" / DATA / "notebook.failed.ipynb").exists()


def test_a_failing_cell_is_told_by_its_line_and_its_notebook_is_kept(root, capsys):
    write_notebook(root, DATA, opening(DATA, root), "x = 1\nassert x == 2, 'one is not two'", "stage.finish()")
    assert make(root, "stage", DATA) == 1
    error, folder = capsys.readouterr().err, root / "runs" / "smoke" / DATA
    assert "AssertionError: one is not two" in error and "2 assert x == 2" in error and "Traceback" not in error
    assert f"look at:  {folder / 'notebook.failed.ipynb'}" in error and f"then:  make {DATA} PROFILE=smoke" in error
    assert (folder / "notebook.failed.ipynb").exists() and not (folder / "notebook.ipynb").exists()
    assert states(root)[DATA] == "interrupted"


def test_a_notebook_without_finish_is_refused(root, capsys, monkeypatch):
    monkeypatch.setattr(runs, "_execute", lambda stage, expected: None)
    assert make(root, "stage", DATA) == 1
    assert "end it with:  stage.finish()" in capsys.readouterr().err
    assert not (root / "runs" / "smoke" / DATA / "manifest.json").exists()


@pytest.mark.parametrize("name, value", [("big.jsonl", [{"text": "x" * 50_000}]),
                                         ("big.parquet", pd.DataFrame({"x": range(50_000)}))])
def test_a_full_disk_leaves_no_half_file_and_harms_nothing_finished(root, name, value):
    """A file-size limit makes the same system call fail as a full disk does."""
    stage = runs.open_stage(DATA, profile="smoke", root=root)
    stage.cached("small.json", dict, done=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"(?s){re.escape(name)} was not written.*make room"):
            stage.cached(name, lambda: value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(p.name for p in stage.folder.iterdir()) == [".started.json", "settings.yaml", "small.json"]
    assert len(stage.cached(name, lambda: value)) == len(value), "the next call goes on"


def test_two_runs_on_one_stage_the_second_refuses_and_dead_locks_do_not_count(root, capsys):
    stage = runs.Stage(DATA, "smoke", root=root)
    held = subprocess.Popen([sys.executable, "-c", f"""
import time
from pathlib import Path
from fundus_lib import runs
held = runs.lock(runs.Stage({DATA!r}, "smoke", root=Path({str(root)!r})))
print("held", flush=True)
time.sleep(60)"""], stdout=subprocess.PIPE, text=True)
    assert held.stdout.readline() == "held\n"
    assert make(root, "stage", DATA) == 1
    assert f"process {held.pid} is writing {stage.folder}" in capsys.readouterr().err
    assert make(root, "clean") == 1, "clean may not pull the floor away either"
    held.kill()
    held.wait()
    runs.lock(stage).close()


def test_clean_removes_one_profile_only(root, capsys):
    by_hand(root, DATA)
    by_hand(root, DATA, profile="cpu")
    assert make(root, "clean") == 0 and not (root / "runs" / "smoke").exists()
    assert (root / "runs" / "cpu" / DATA / "t.json").exists()
    assert make(root, "clean") == 0 and "nothing to remove" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_stopped_in_mid_stage_goes_on_from_its_partial_results(root, number):
    """Ctrl-C and a kill: the first result is kept, the half-written one is not, no kernel stays behind."""
    slow = ("import os, time\nfrom pathlib import Path\n"
            "def slow():\n    Path(stage.folder, 'pid').write_text(str(os.getpid()))\n    time.sleep(60)\n"
            "_ = stage.cached('second.json', slow)")
    write_notebook(root, DATA, opening(DATA, root), '_ = stage.cached("first.json", dict, at=1)', slow)
    folder = root / "runs" / "smoke" / DATA
    runner = subprocess.Popen([sys.executable, "-c", f"""
import sys
from pathlib import Path
from fundus_lib import runs
sys.exit(runs.main(["stage", {DATA!r}, "--profile", "smoke"], root=Path({str(root)!r})))"""], stderr=subprocess.DEVNULL)
    deadline = time.time() + 30
    while not (folder / "pid").exists() and time.time() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    runner.send_signal(number)
    assert runner.wait(timeout=20) == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert states(root)[DATA] == "interrupted" and not (folder / "second.json").exists()
    kernel = int((folder / "pid").read_text())
    while Path(f"/proc/{kernel}").exists() and time.time() < deadline:
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)
    again = runs.open_stage(DATA, profile="smoke", root=root)
    assert again.cached("first.json", dict, at=2) == {"at": 1}, "finished work is not repeated"
