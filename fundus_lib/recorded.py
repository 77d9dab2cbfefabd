"""Long training runs with several seeds, each kept as one small record: python -m fundus_lib.recorded --regime weak

A regime is a profile. A finished run is papers_figs/recorded/runs/<regime>/<setup>-seed<k>.json and is never repeated,
whatever is cleaned or changed later: the record names its commit. Seeds differ in training alone (order of the rows,
sampling); images, base model, findings and traces are the regime's.
"""

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from fundus_lib import answering, benchmarks, data, evaluation, grpo, intervals, perception, runs, sft, tables
from fundus_lib.staleness import digest, file_digest
from fundus_lib.training import run_jobs

RECORDS = runs.ROOT / "papers_figs/recorded/runs"
MAIN = ("E", "F", "G", "H", "I", "J", "F_uadt", "G_uadt")
# Regime, setups, how many seeds: executed in this order, each line seed by seed. A is not trained: one run.
PLAN = (("weak", MAIN, 5), ("weak", ("A",), 1), ("weak", ("B", "C", "D"), 3),
        ("cpu", ("A",), 1), ("cpu", (*MAIN, "B", "C", "D"), 3), ("oracle", ("E", "F", "G"), 3))
PAIRS = [tuple(pair.split("-")) for pair in "F-E G-F H-G I-G J-G F_uadt-F G_uadt-G E-B D-B F-D".split()]
DIAGNOSIS = ["L4b", "L4c", "DD", "LG", "SG"]        # tasks that ask for a diagnosis or a grade
SCORES = ["avg", "L4", "diagnosis", "transfer"]     # transfer: of diagnosis, labels unseen in the modality
SHARED = ("sft", "grpo", "uadt", "rewards")         # settings of every run of a regime
COLUMNS = ["id", "benchmark", "task", "kind", "options", "answer", "content", "source"]
LOGGED = ("loss", "reward", "answer_reward", "format_reward", "process_reward", "length", "entropy", "kl",
          "frac_reward_zero_std")


def planned(regimes: Iterable[str] = (), setups: Iterable[str] = (), seeds: Iterable[int] = ()) -> list[tuple]:
    """(regime, setup, seed) of PLAN, in the order of execution; an empty choice takes all."""
    return [(regime, setup, seed) for regime, group, count in PLAN for seed in range(count) for setup in group
            if regime in (regimes or [regime]) and setup in (setups or [setup]) and seed in (seeds or [seed])]


def record_file(regime: str, setup: str, seed: int, folder: Path = RECORDS) -> Path:
    return folder / regime / f"{setup}-seed{seed}.json"


def compact(extracted: Iterable[str | None]) -> str:
    """Letters read from the responses, a field a question: "B,,AC" is B, no answer, A and C."""
    return ",".join(text.replace(",", "") if isinstance(text, str) else "" for text in extracted)


def expand(answers: str, questions: pd.DataFrame) -> pd.DataFrame:
    """Columns extracted and hit, as `evaluation.score_predictions` gives them, from the text of `compact`."""
    extracted = pd.Series([",".join(letters) or None for letters in answers.split(",")], questions.index, object)
    return pd.DataFrame({"extracted": extracted, "hit": extracted == questions["answer"]})


def same_questions(questions: pd.DataFrame, file: Path) -> str:
    """Their fingerprint; `file` keeps them. RunError when it holds others: answers to both cannot be compared."""
    if not file.exists():
        runs.write(file, questions[COLUMNS])
    now, then = (digest(q[COLUMNS].to_json(orient="values")) for q in (questions, runs.read(file)))
    if now != then:
        raise runs.RunError(f"{file} holds other questions ({then}) than stage 01 asks now ({now}).\n  undo the change "
                            f"of settings.data, or move {file.parent} away")
    return now


def thinned(log: pd.DataFrame, points: int = 30) -> dict:
    """Means of the first and last ten steps, and the curve as lines of CSV, each point the mean of its steps."""
    seconds = round(float(log["step_time"].sum()), 1) if "step_time" in log else None
    log = log[["step", *(name for name in log if name in LOGGED or name.startswith("uadt/"))]]
    curve = log.groupby(np.arange(len(log)) * min(points, len(log)) // len(log)).mean()
    first, last = (part.mean().drop("step").round(4).to_dict() for part in (log.head(10), log.tail(10)))
    return {"steps": len(log), "step_seconds": seconds, "first_ten": first, "last_ten": last,
            "curve": curve.to_csv(index=False, float_format="%.4g").splitlines()}


class Regime:
    """What the runs of a regime share: its finished stages 01 to 04, training rows, jobs and test questions."""

    def __init__(self, name: str, folder: Path = RECORDS):
        self.name, self.folder, self.stage = name, folder, runs.Stage("06_grpo", name)
        own, read = self.stage.folder.with_name("recorded"), self.stage.read
        self.lock = runs.lock(SimpleNamespace(name="recorded", folder=own))
        before = [self.stage.of(part) for part in runs.STAGES["06_grpo"] if part != "05_sft"]
        for stage in before:
            runs.bring_up_to_date(stage)
        self.same = {"inputs": {stage.name: stage.content() for stage in before},
                     "settings": self.stage.settings.model_dump(mode="json", include=set(SHARED))}
        self.models = own / digest(json.dumps(self.same))     # other inputs: other models
        root, records = data.download_root(self.stage), read("01_data", "records.parquet")
        asked, traces = read("01_data", "questions.parquet"), read("04_trace_qc", "traces.parquet")
        rows = {"E": sft.trace_rows(asked, traces, root),
                "questions": grpo.question_rows(asked, read("03_vf_voting", "findings.parquet"), root)}
        rows["B"] = sft.answers_alone(rows["E"])
        files = {setup: self.models / f"{setup}.parquet" for setup in rows}
        for setup, file in files.items():
            runs.write(file, rows[setup])
        train, seeds = files.pop("questions"), range(max(count for *_, count in PLAN))
        self.jobs = sft.jobs(self.stage, self.models, files, seeds)
        self.jobs |= grpo.jobs(self.stage, self.models, train, self.models, sft.STARTS, seeds)
        self.base = perception.base_path(self.stage.path("base_model", "model"))
        found = benchmarks.read_all(self.stage.path("01_data", "benchmarks"), root)
        self.questions = found.assign(
            source=evaluation.image_source(found, records),
            content=evaluation.image_content(found, records).str[:16],      # tells images apart; git keeps the file
            image=[row.image if isinstance(row.image, bytes) else str(data.image_path(root, row.path))
                   for row in found.itertuples()])
        finder = read("03_vf_voting", "table6.csv").query("method == 'vote'")["s2"].mean()
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
        self.same |= {"finder_s2": round(finder, 4), "commit": runs._commit(runs.ROOT),
                      "settings_digest": digest(self.stage.settings.model_dump_json()),
                      "questions": same_questions(self.questions, folder / name / "questions.parquet"),
                      "machine": f"{os.cpu_count()} cores, {device}", "threads": torch.get_num_threads()}

    def run(self, setup: str, seed: int, start: Future | None) -> None:
        """Train one run, unless its model is there, and record it, unless it is recorded. start: of its start model."""
        if start:
            start.result()
        job, began = self.jobs.get((setup, seed)), time.time()      # None: A, the base itself
        model = job.folder if job else self.models / "A"
        resumed = model.exists()
        model.mkdir(parents=True, exist_ok=True)
        run_jobs([job] if job else [], 1)
        if (file := record_file(self.name, setup, seed, self.folder)).exists():
            return
        trained = time.time()
        said = answering.answer_questions(model if job else self.base, self.questions,
                                          self.stage.settings.evaluation, model / "answers.jsonl")
        answers = compact(evaluation.score_predictions(self.questions, said)["extracted"])
        scores = evaluation.table_scores(self.questions, expand(answers, self.questions))
        weights = {"start": Path(job.arguments["start"]), "weights": model} if job else {"weights": Path(self.base)}
        runs.write(file, {
            "regime": self.name, "setup": setup, "seed": seed, **self.same,
            **{name: file_digest(path / "model.safetensors") for name, path in weights.items()},
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"), "resumed": resumed,     # the seconds are of the last part
            "seconds": {"training": round(trained - began, 1), "evaluation": round(time.time() - trained, 1)},
            "scores": {name: round(score, 3) for name, score in scores.items()}, "answers": answers,
            "training": thinned(pd.read_csv(model / "log.csv")) if job else None})
        print(f"{self.name} {setup}, seed {seed}: average {scores['avg']:.1f}, {time.time() - began:.0f} s", flush=True)

    def run_all(self, todo: Sequence[tuple[str, int]]) -> int:
        """Train and record the runs of `todo` (setup, seed), `workers` side by side; returns how many failed."""
        pool = ThreadPoolExecutor(1 if torch.cuda.is_available() else self.stage.settings.workers)
        futures, failed = {}, 0
        for setup, seed in todo:
            start = (sft.STARTS.get(setup), seed)
            if start in self.jobs and start not in futures:     # recorded before; F cannot start from a record
                futures[start] = pool.submit(self.run, *start, None)
            futures[setup, seed] = pool.submit(self.run, setup, seed, futures.get(start))
        names = {future: run for run, future in futures.items()}
        for future in as_completed(names):
            if error := future.exception():
                print(f"{self.name}, setup and seed {names[future]}: {error}", file=sys.stderr, flush=True)
                failed += 1
        return failed


def records(regime: str, folder: Path = RECORDS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(A row a planned run: regime, setup, seed, SCORES in percent, minutes, machine, commit; NaN where it was not run;
    its hits on questions about a diagnosis, a row an image: setup, seed, content, source, hit).

    The seed of a hit names inputs and settings as well: runs that differ in these are no pair."""
    rows, hits = [], [pd.DataFrame(columns=["content", "source", "hit", "setup", "seed"])]
    for _, setup, seed in planned([regime]):
        rows.append(dict.fromkeys([*SCORES, "minutes", "machine", "commit"], np.nan))
        if (file := record_file(regime, setup, seed, folder)).exists():
            record, questions = runs.read(file), runs.read(file.with_name("questions.parquet"))
            asked = questions.assign(hit=expand(record["answers"], questions)["hit"].astype(float))
            image = asked[asked["task"].isin(DIAGNOSIS)].groupby(["content", "source"], as_index=False)["hit"].mean()
            same = digest(json.dumps([record["inputs"], record["settings"]]))
            hits.append(image.assign(setup=setup, seed=f"{seed} {same}"))
            new = 100 * image["hit"][image["source"] == "transfer"].mean()
            rows[-1] |= {"machine": record["machine"], "commit": record["commit"][:12], **record["scores"],
                         "minutes": sum(record["seconds"].values()) / 60, "diagnosis": 100 * image["hit"].mean(),
                         "transfer": new}
        rows[-1] |= {"regime": regime, "setup": setup, "seed": seed}
    return pd.DataFrame(rows), pd.concat(hits, ignore_index=True)


def over_seeds(scores: pd.Series) -> str:
    """Mean of runs on the same data with its 95 % t interval, which takes three of them; "-" of none."""
    from statsmodels.stats.weightstats import DescrStatsW

    enough = len(scores) >= intervals.FEWEST_SEEDS
    bounds = " [{:.1f}, {:.1f}]".format(*DescrStatsW(scores).tconfint_mean()) if enough else ""
    return f"{scores.mean():.1f}{bounds}" if len(scores) else "-"


def summary(runs_: pd.DataFrame) -> pd.DataFrame:
    """A row a regime and setup, as text: what was run, SCORES over the seeds, and what a run took, where and with what
    code. runs_: of `records`."""
    rows = []
    for (regime, setup), part in runs_.groupby(["regime", "setup"], sort=False):
        done = part.dropna(subset="avg")
        said = f"{len(done)} of {len(part)} seeds" + ", the rest not run" * (0 < len(done) < len(part))
        said = f"not run ({said})" if done.empty else said
        machine, commit = (", ".join(done[name].unique()) for name in ("machine", "commit"))
        rows.append({"regime": regime, "setup": setup, "runs": said, **{n: over_seeds(done[n]) for n in SCORES},
                     "minutes": done["minutes"].mean(), "machine": machine, "commit": commit})
    return pd.DataFrame(rows)


def gains(frame: pd.DataFrame, hits: pd.DataFrame) -> pd.DataFrame:
    """`intervals.seed_effect` of the planned PAIRS of one regime, both as of `records`, on (column `on`) all questions
    about a diagnosis and on transfer. verdict: shown where the interval excludes 0; with the seeds, where too few."""
    pairs = [pair for pair in PAIRS if set(pair) <= set(frame["setup"])]
    parts = []
    for on, part in (("diagnosis", hits), ("transfer", hits[hits["source"] == "transfer"])):
        there = [pair for pair in pairs if set(pair) <= set(part["setup"])]
        table = intervals.seed_effect(part, there).set_index("pair").reindex([f"{a} - {b}" for a, b in pairs])
        parts.append(table.reset_index().assign(regime=frame["regime"][0], on=on))
    table = pd.concat(parts, ignore_index=True).fillna({"seeds": 0})
    table = table.astype(dict.fromkeys(["gain", "low", "high", "seeds", "n", "seed_sd"], float))
    table = table.astype({"seeds": int, "n": "Int64"})
    shown = np.where(table["low"] * table["high"] > 0, "shown", "not shown")
    said = np.where(table["low"].isna(), "too few runs", shown)
    few = ["" if n >= tables.ENOUGH_SEEDS else f" ({n} of {tables.ENOUGH_SEEDS} seeds)" for n in table["seeds"]]
    return table.assign(verdict=[one + more for one, more in zip(said, few, strict=True)])


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, 1 when a run failed, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m fundus_lib.recorded", description=__doc__)
    parser.add_argument("--regime", nargs="+", default=[], choices=sorted({regime for regime, *_ in PLAN}))
    parser.add_argument("--setups", nargs="+", default=[], choices=["A", "B", "E", *sft.STARTS])
    parser.add_argument("--seeds", nargs="+", default=[], type=int)
    chosen = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    wanted, failed = planned(chosen.regime, chosen.setups, chosen.seeds), 0
    todo = [run for run in wanted if not record_file(*run).exists()]
    print(f"{len(wanted) - len(todo)} of {len(wanted)} runs are recorded", flush=True)
    try:
        for regime in dict.fromkeys(regime for regime, *_ in todo):
            failed += Regime(regime).run_all([run[1:] for run in todo if run[0] == regime])
        return min(1, failed)
    except KeyboardInterrupt:
        print("\ninterrupted; recorded runs stay, the same command goes on from the last checkpoints", file=sys.stderr)
        return 130
    except (runs.RunError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # after Ctrl-C threads still wait for their training processes, which end with this one
