"""Open a stage in a notebook, or execute what is missing or stale: python -m fundus_lib.runs reproduce --profile cpu

A stage writes only runs/<profile>/<stage>/ and reads only finished stages. Its manifest.json, written last, says that
it is finished, from what, and what came out. What an interrupted stage left is kept while its key is the same.
"""

import argparse
import ast
import importlib.metadata
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import yaml

from fundus_lib import settings as profiles
from fundus_lib import staleness

ROOT = Path(__file__).resolve().parents[1]
STAGES: dict[str, tuple[str, ...]] = {          # in the order of execution, each with the stages it may read
    "01_data": (),
    "base_model": (),                           # the cells of notebook 03 that are tagged base_model
    "02_knowledge_rag": ("01_data",),
    "03_vf_voting": ("01_data", "base_model", "02_knowledge_rag"),
    "04_trace_qc": ("01_data", "02_knowledge_rag", "03_vf_voting"),
    "05_sft": ("01_data", "base_model", "03_vf_voting", "04_trace_qc"),
    "06_grpo": ("01_data", "base_model", "02_knowledge_rag", "03_vf_voting", "04_trace_qc", "05_sft"),
    "07_evaluation": ("01_data", "base_model", "05_sft", "06_grpo"),
}
STAGES |= {"08_paper_figures": tuple(STAGES), "00_start_here": ("base_model",)}
PREPARED = "FUNDUS_LIB_PREPARED"                # the folder that the runner has prepared for the kernel it starts
_held: dict[Path, TextIO] = {}                  # locks of the stages opened by hand, until finish() or the process ends
NOT_RESULTS = re.compile(r"(notebook|manifest|settings)\.(failed\.)?(ipynb|json|yaml)|(.*/)?\..*|.*\.part")


class RunError(RuntimeError):
    """What the user has to know and do; the command line prints it without a stack trace."""


class Stage:
    """One stage of one run; notebooks get it from `open_stage`. `data` is a folder of downloads, "" the drawn world."""

    def __init__(self, name: str, profile: str, data: str = "", seed: int = 0, seeds: int | None = None,
                 root: Path = ROOT):
        if name not in STAGES:
            near = profiles.nearest(name, list(STAGES))
            raise RunError(f"there is no stage {name!r}{near}\n  stages: {', '.join(STAGES)}")
        if data and not Path(data).expanduser().is_dir():
            raise RunError(f"DATA={data} is not a folder.\n  give the folder that holds the unpacked downloads")
        self.name, self.profile, self.seed, self.root, self.opened = name, profile, seed, root, time.time()
        self.settings = profiles.load(profile, seeds=seeds)
        self.seeds = range(seed, seed + self.settings.seeds)
        self.data_root = Path(data).expanduser().resolve() if data else None
        self.folder = root / "runs" / (f"{profile}-{self.data_root.name}" if data else profile) / name
        self.notebook = root / "notebooks" / f"{'03_vf_voting' if name == 'base_model' else name}.ipynb"
        self.command = f"make {name} PROFILE={profile}" + (f" DATA={self.data_root}" if data else "")

    def of(self, name: str) -> "Stage":
        """Another stage of the same run."""
        return Stage(name, self.profile, str(self.data_root or ""), self.seed, len(self.seeds), self.root)

    @property
    def manifest(self) -> dict | None:
        """What the stage wrote down when it finished; None while it is not finished."""
        file = self.folder / "manifest.json"
        return read(file) if file.exists() else None

    def content(self) -> str:
        """The fingerprint of a finished stage's results; FileNotFoundError names the command that finishes it."""
        if manifest := self.manifest:
            return manifest["content"]
        raise FileNotFoundError(f"{self.folder} is not finished.\n  run it:  {self.command}")

    def path(self, stage: str, file: str) -> Path:
        """A file or folder of a finished upstream stage."""
        if stage not in STAGES[self.name]:
            raise RunError(f"{self.name} reads {stage} without saying so.\n  add it to fundus_lib.runs.STAGES")
        other = self.of(stage)
        if other.content() and not (other.folder / file).exists():
            raise FileNotFoundError(f"{other.folder} is finished, but has no {file}.\n  repeat it:  {other.command}")
        return other.folder / file

    def read(self, stage: str, file: str) -> Any:
        """The content of an upstream file: DataFrame (.parquet, .csv), value (.json) or list of dicts (.jsonl)."""
        return read(self.path(stage, file))

    def cached(self, name: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """function(*args, **kwargs), computed once, written whole or not at all, returned as read from the file."""
        if not (self.folder / name).exists():
            write(self.folder / name, function(*args, **kwargs))
        return read(self.folder / name)

    def cached_folder(self, name: str, function: Callable, *args: Any, **kwargs: Any) -> Path:
        """The folder that function(folder, *args, **kwargs) fills; it may resume what an interruption left there."""
        folder = self.folder / name
        if not (folder / ".finished").exists():
            folder.mkdir(parents=True, exist_ok=True)
            function(folder, *args, **kwargs)
            (folder / ".finished").touch()
        return folder

    def settings_table(self):
        """A pandas Styler "this run | paper" of the settings sections that this stage's cells name."""
        named = {name.split(".")[1] for name in self.key(figures=True) if name.startswith("settings.")}
        return profiles.table(self.settings, named)

    def finish(self) -> None:
        """The last cell. Under the runner: note what the kernel used. By hand: write the manifest, if there is none."""
        if os.environ.get(PREPARED) == str(self.folder):
            write(self.folder / ".facts.json", _facts(self.opened))
        elif not self.manifest:
            if why := staleness.differences(read(self.folder / ".started.json"), self.key()):
                raise RunError(f"changed since it was opened: {', '.join(why)}.\n  restart the kernel, run all cells")
            self.complete(_facts(self.opened), self.key(), {})       # no figure key: the runner has still to execute it
            _held.pop(self.folder).close()

    def key(self, *, figures: bool = False) -> staleness.Key:
        """What the results (with `figures`: the executed notebook too) depend on. Upstream stages must be finished."""
        key = staleness.code_key(self.notebook, self.name, self.settings, self.seeds, self.root, figures=figures)
        if self.name == "01_data" and self.data_root:
            key["files in DATA"] = staleness.folder_digest(self.data_root)
        return key | {f"content of {name}": self.of(name).content() for name in STAGES[self.name]}

    def state(self) -> tuple[str, list[str]]:
        """(finished | redraw | stale | interrupted | missing, why). Redraw: run the notebook from cached results."""
        if not (manifest := self.manifest):
            failed = self.folder / "notebook.failed.ipynb"
            kind = "interrupted" if (self.folder / ".started.json").exists() else "missing"
            return kind, [f"see {failed}"] if failed.exists() else []
        if why := [f"{name} is not finished" for name in STAGES[self.name] if not self.of(name).manifest]:
            return "stale", why
        gone = [f"{name} is gone" for name in manifest["wrote"] if not (self.folder / name).exists()]
        results = [reason for reason in gone if not reason.startswith("figures/")]
        if why := staleness.differences(manifest["key"], self.key()) + results:
            return "stale", why
        why = staleness.differences(manifest["figure_key"], self.key(figures=True)) + gone
        return ("redraw", why) if why else ("finished", [])

    def prepare(self) -> None:
        """Keep what the present key made, so that an interrupted run goes on; remove anything else."""
        started, key, (kind, why) = self.folder / ".started.json", self.key(), self.state()
        if kind == "interrupted":
            why = staleness.differences(read(started), key)
        (self.folder / "manifest.json").unlink(missing_ok=True)      # first: from here on the stage is not finished
        if self.folder.exists() and (why or kind == "missing"):
            print(f"{self.name}: earlier results are removed: {', '.join(why) or 'of unknown origin'}", flush=True)
            shutil.rmtree(self.folder)
        write(started, key)
        resolved = self.settings.model_dump(mode="json") | {"seed": self.seed, "data": str(self.data_root or "")}
        (self.folder / "settings.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")

    def complete(self, facts: dict, key: staleness.Key, figure_key: staleness.Key) -> None:
        """Write the manifest, last of all, with the keys from before the execution: code may have changed since."""
        files = {path.relative_to(self.folder).as_posix(): path for path in sorted(self.folder.rglob("*"))}
        wrote = {name: staleness.file_digest(path) for name, path in files.items()
                 if path.is_file() and not NOT_RESULTS.fullmatch(name)}
        content = {name: digest for name, digest in wrote.items() if not name.startswith("figures/")}
        write(self.folder / "manifest.json", {
            "stage": self.name, **facts, "commit": _commit(self.root), "data": str(self.data_root or ""),
            "seeds": [*self.seeds], "settings": self.settings.model_dump(mode="json"),
            "read": {name: key[f"content of {name}"] for name in STAGES[self.name]}, "key": key,
            "figure_key": figure_key, "wrote": wrote, "content": staleness.digest(json.dumps(content))})
        for name in (".started.json", ".facts.json"):
            (self.folder / name).unlink(missing_ok=True)


def open_stage(name: str, *, profile: str, data: str = "", seed: int = 0, seeds: int | None = None,
               root: Path = ROOT) -> Stage:
    """The first cell of a stage. By hand it replaces outdated smoke results; hours of other profiles only make does."""
    stage = Stage(name, profile, data, seed, seeds, Path(root))
    if os.environ.get(PREPARED) != str(stage.folder) and (state := stage.state())[0] not in ("finished", "redraw"):
        if state[0] == "stale" and profile != "smoke":
            raise RunError(f"{stage.folder} is stale: {', '.join(state[1])}.\n  run it:  {stage.command}")
        _held[stage.folder] = _held.get(stage.folder) or lock(stage)       # the cell may be run again
        stage.prepare()
    return stage


def lock(stage: Stage) -> TextIO:
    """Hold the stage until the returned file is closed or the process ends, in any way; RunError when it is held."""
    import fcntl
    stage.folder.parent.mkdir(parents=True, exist_ok=True)
    file = (stage.folder.parent / f".{stage.name}.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise RunError(f"process {file.read()} is writing {stage.folder}.\n  wait for it, or end it") from None
    file.truncate(0)
    print(os.getpid(), end="", file=file, flush=True)
    return file


def read(path: Path) -> Any:
    """The content of a .parquet or .csv file (DataFrame), .json (value) or .jsonl (list of dicts)."""
    if path.suffix in (".parquet", ".csv"):
        import pandas as pd
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line] if path.suffix == ".jsonl" else json.loads(text)


def write(path: Path, value: Any) -> None:
    """Write what `read` reads, whole or not at all: into <path>.part, renamed at the end."""
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.suffix == ".parquet":
            value.to_parquet(part)
        elif path.suffix == ".csv":
            value.to_csv(part, index=False)
        elif path.suffix == ".jsonl":
            part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in value), encoding="utf-8")
        else:
            part.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, f"{path} was not written ({error.strerror}); nothing finished is lost.\n  make room "
                                   "(make clean PROFILE=... removes a profile's runs), repeat the command") from error


def _facts(since: float) -> dict:
    """What this process used: seconds, device, threads, peak memory, versions of everything installed."""
    torch = sys.modules.get("torch")
    gpu = torch is not None and torch.cuda.is_available()
    unit = 2**30 if sys.platform == "darwin" else 2**20          # ru_maxrss: bytes on macOS, KiB elsewhere
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / unit
    return {"finished": time.strftime("%Y-%m-%d %H:%M:%S"), "seconds": round(time.time() - since, 1),
            "device": torch.cuda.get_device_name() if gpu else f"cpu, {os.cpu_count()} cores",
            "threads": torch.get_num_threads() if torch else int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())),
            "peak_memory_gib": round(peak, 2),
            "peak_gpu_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if gpu else 0,
            "python": sys.version.split()[0],
            "versions": {d.name: d.version for d in importlib.metadata.distributions()}}


def _commit(root: Path) -> str:
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "no commit"


def _checked_notebook(stage: Stage, parameters: dict):
    """The notebook to execute. Refuses parameters that its `parameters` cell does not set to literals."""
    import nbformat
    nodes = [n for cell in staleness.read_cells(stage.notebook) if "parameters" in cell.tags for n in cell.tree.body]
    literals = {n.targets[0].id for n in nodes if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)}
    if unknown := ", ".join(sorted(parameters.keys() - literals)):
        raise RunError(f"{stage.notebook} does not take {unknown}.\n  its cell tagged parameters has to set a literal")
    notebook = nbformat.read(stage.notebook, as_version=4)
    if stage.name == "base_model":
        notebook.cells = [c for c in notebook.cells if {"parameters", "base_model"} & set(c.metadata.get("tags", ()))]
    return notebook


def _execute(stage: Stage, expected: str) -> None:
    """Run the notebook in this Python. RunError tells the failing line and where the executed notebook lies."""
    import papermill
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    parameters = {"PROFILE": stage.profile, "DATA": str(stage.data_root or ""),
                  "SEED": stage.seed, "SEEDS": len(stage.seeds)}
    notebook, part = _checked_notebook(stage, parameters), stage.folder / "notebook.ipynb.part"
    failed = stage.folder / "notebook.failed.ipynb"
    this_python = KernelSpec(**get_kernel_dict(["--log-level=CRITICAL"]))   # whatever the user's Jupyter calls python3
    warnings.filterwarnings("ignore", message="The specified file")         # papermill, on the suffix .part
    os.environ.setdefault("OMP_NUM_THREADS", "1")                           # two are far slower on a busy machine
    os.environ[PREPARED] = str(stage.folder)
    try:
        papermill.execute_notebook(
            notebook, part, parameters, kernel_name="python3", language="python", cwd=stage.notebook.parent,
            progress_bar={"desc": stage.name, "bar_format": "{desc}: {n_fmt}/{total_fmt} cells, {elapsed}" + expected},
            kernel_manager_class=type("ThisPython", (AsyncKernelManager,), {"kernel_spec": this_python}),
            stderr_file=sys.stderr if sys.stderr.isatty() else None)
        part.replace(stage.folder / "notebook.ipynb")
        failed.unlink(missing_ok=True)
    except papermill.PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        arrow = re.search(r"^-+> .*", re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)), re.MULTILINE)
        raise RunError(f"{stage.name} failed in cell [{error.exec_count}]: {error.ename}: {error.evalue}\n"
                       f"  {arrow[0] if arrow else ''}\n  look at:  {failed}\n  then:  {stage.command}") from None
    except (OSError, RuntimeError) as error:        # a full disk; a kernel that died, mostly of too little memory
        raise RunError(f"{stage.name} stopped: {error}\n  free memory or disk, then:  {stage.command}") from error
    finally:
        del os.environ[PREPARED]
        if part.exists():
            part.replace(failed)


def _reuse(stage: Stage) -> bool:
    """Copy the stage from another run folder, if one was made from the same key."""
    for file in sorted(stage.root.glob(f"runs/*/{stage.name}/manifest.json")):
        twin = read(file)
        if file.parent != stage.folder and twin["key"] == stage.key() \
                and all((file.parent / name).exists() for name in twin["wrote"]):
            copy = stage.folder.with_name(f".{stage.name}.part")
            for leftover in (copy, stage.folder):
                shutil.rmtree(leftover, ignore_errors=True)
            shutil.copytree(file.parent, copy)
            copy.replace(stage.folder)
            print(f"{stage.name}: copied from {file.parent}, made by the same code, settings and input", flush=True)
            return True
    return False


def bring_up_to_date(stage: Stage) -> None:
    """Execute one stage if it has to be; its upstream stages are finished."""
    with lock(stage):
        kind, why = stage.state()
        print(f"{stage.name}: {kind}{': ' if why else ''}{', '.join(why)}", flush=True)
        before, key, figure_key = stage.manifest, stage.key(), stage.key(figures=True)
        if kind not in ("finished", "redraw") and not _reuse(stage):
            stage.prepare()
        if stage.state()[0] == "finished":
            return
        redrawn = stage.manifest                 # not None: the results, and what they took, are of an earlier run
        _execute(stage, f" (last time {before['seconds'] / 60:.1f} min)" if before else "")
        if not (facts := stage.folder / ".facts.json").exists():
            raise RunError(f"{stage.notebook} does not finish {stage.name}.\n  end it with:  stage.finish()")
        measured = read(facts)
        stage.complete({n: redrawn[n] for n in measured} if redrawn else measured, key, figure_key)


def print_status(first: Stage) -> None:
    """One line a stage: state, time, device, reason. What follows a stage that has to run may have to run as well."""
    todo: dict[str, str] = {}
    for stage in map(first.of, STAGES):
        kind, why = stage.state()
        if kind in ("finished", "redraw") and (before := [name for name in STAGES[stage.name] if name in todo]):
            kind, why = "stale", [f"{name} is {todo[name]}" for name in before]
        if kind not in ("finished", "redraw"):
            todo[stage.name] = kind
        facts = stage.manifest or {"seconds": 0, "device": "-"}
        print(f"{stage.name:<18}{kind:<13}{facts['seconds'] / 3600:6.2f} h  {facts['device']:<18}{', '.join(why)}")


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """The command line. Returns 0, 1 after an error that the message explains, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m fundus_lib.runs", description="Execute the notebooks.")
    parser.add_argument("command", choices=["reproduce", "stage", "status", "clean"])
    parser.add_argument("name", nargs="?", help="of the stage")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--data", default="", help="folder of unpacked downloads; none: the drawn world")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, help="how many; by default as the profile says")
    chosen = parser.parse_args(arguments)
    if chosen.command == "stage" and not chosen.name:
        parser.error(f"which stage?  {', '.join(STAGES)}")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)

    def needed(name: str) -> set[str]:
        return {name}.union(*map(needed, STAGES[name]))

    try:
        stage = Stage(chosen.name or "01_data", chosen.profile, chosen.data, chosen.seed, chosen.seeds, root)
        if chosen.command == "status":
            print_status(stage)
        elif chosen.command == "clean":
            there = stage.folder.parent.exists()
            held = [lock(stage.of(name)) for name in STAGES if there]        # refuses while something runs
            shutil.rmtree(stage.folder.parent, ignore_errors=not held)
            print(f"{stage.folder.parent}: {'removed' if held else 'nothing to remove'}")
        else:
            for name in (n for n in STAGES if chosen.command == "reproduce" or n in needed(stage.name)):
                bring_up_to_date(stage.of(name))
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted; what is finished stays, the same command goes on from here", file=sys.stderr)
        return 130
    except (RunError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
