"""Our tables beside the published ones, a verdict in every row: python -m fundus_lib.tables compare --profile cpu"""

import argparse
import itertools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
from PIL import Image

from fundus_lib import runs

FIGURES = runs.ROOT / "papers_figs"
MISSING, NOT_ASKED, AS, UNLIKE, CLOSE = "missing", "not asked", "as published", "unlike published", "too close to tell"
UADT = {"F_uadt": "F + UADT", "G_uadt": "G + UADT"}
TABLE6 = {"MA": "microaneurysm", "RH": "retinal hemorrhage", "HE": "hard exudate", "CWS": "cotton-wool spot",
          "VH": "vitreous hemorrhage", "NV": "neovascularization"}
# their model -> our setup
TABLE7 = {"Qwen2.5-VL-3B": "A", "OphthaReason-Qwen": "ophthareason_uadt", "Fundus-R1-3B": "G"}
ENOUGH_SEEDS, NOISE = 5, 3.0  # two runs from one start differ by about 3 points: fewer runs than this show no order
# every table and figure of both papers: the stage that makes the numbers, our files, what has to be said about it
ITEMS = {
    "Fundus-R1 Table 1": ("04_trace_qc", "table1", "redrawn; its rows on other groups' models are words, not results"),
    "Fundus-R1 Table 2": ("01_data", "table2 images_by_label", "counts of what was read, drawn or in DATA"),
    "Fundus-R1 Table 3": ("04_trace_qc", "table3", "redrawn; its free-form side needs server.vision_model"),
    "Fundus-R1 Table 4": ("01_data", "table4", "not public: its counts are not in the paper's text; ours are here"),
    "Fundus-R1 Table 5": ("07_evaluation", "table5 recorded seed_gains by_dataset by_finding diagnosis_by_source", ""),
    "Fundus-R1 Table 6": ("03_vf_voting", "table6 table6_findings", "its direction needs a free-form description"),
    "Fundus-R1 Table 7": ("07_evaluation", "table7", "a model without a counterpart needs a GPU and its weights"),
    "Fundus-R1 Figure 1": ("04_trace_qc", "fig1_example", "redrawn with an image of this run"),
    "Fundus-R1 Figure 2": ("04_trace_qc", "fig2_pipeline trace_checks", "redrawn with the counts of this run"),
    "Fundus-R1 Figure 3": ("06_grpo", "fig3_reward", "redrawn with the counts of this run"),
    "Fundus-R1 Figure 4": ("06_grpo", "fig4_training", "its numbers are not public; its text states the direction"),
    "OphthaReason split table": ("01_data", "ophthareason_split", "redrawn; counts of what was read, drawn or in DATA"),
    "OphthaReason model figure": ("06_grpo", "ophthareason_model", "redrawn from the settings and jobs of this run"),
    "OphthaReason cases": ("07_evaluation", "successes failures", "its picture was not read; answers of this run"),
    "OphthaReason headline gains": ("07_evaluation", "", "they need the compared models, GPUs, unpublished test files"),
    "OphthaReason result tables": ("07_evaluation", "", "not public: neither abstract nor README has them"),
}


def published(number: int) -> pd.DataFrame:
    """A table of Fundus-R1 as printed; papers_figs/published/README.md says where."""
    return pd.read_csv(FIGURES / "published" / f"fundus_r1_table{number}.csv")


def cells(values: pd.Series | None, columns: list[str]) -> dict[str, str]:
    """Percentages as tables show them; what does not exist is named, never blank and never zero."""
    return {column: MISSING if values is None else NOT_ASKED if pd.isna(values.get(column)) else f"{values[column]:.1f}"
            for column in columns}


def verdict(gain: float, paper_gain: float, seeds: int) -> str:
    """Direction only, by the gain over setup A: our test sets are not the paper's. Either gain may be missing."""
    if pd.isna(gain):
        return "nothing to compare"
    few = seeds < ENOUGH_SEEDS
    agrees = "not in the paper" if pd.isna(paper_gain) else \
        f"{CLOSE if few and abs(gain) < NOISE else AS if gain * paper_gain > 0 else UNLIKE} ({paper_gain:+.1f})"
    return f"{gain:+.1f} over A, {agrees}{f'; {seeds} of {ENOUGH_SEEDS} seeds' if few else ''}"


def table5(scores: pd.DataFrame) -> pd.DataFrame:
    """Fundus-R1's Table 5, as text: for each setup A-J, and with UADT, the published row and ours (the mean over seeds)
    with its verdict. scores: a row a run, setup, seed and any of avg ... SG in percent (evaluation.table_scores)."""
    paper = published(5).set_index("setup")
    columns = list(paper.columns[1:])
    trained = {setup: part.reindex(columns=["seed", *columns]) for setup, part in scores.groupby("setup")}
    base = trained["A"]["avg"].mean() if "A" in trained else float("nan")
    rows = []
    for setup, training in (paper["training"].to_dict() | UADT).items():
        if setup in paper.index:
            rows.append({"setup": setup, "training": training, "source": "published", "seeds": "-",
                         **cells(paper.loc[setup], columns), "verdict": "as printed"})
        mean = trained[setup].mean() if setup in trained else None
        gain = paper.at[setup, "avg"] - paper.at["A", "avg"] if setup in paper.index else float("nan")
        seeds = len(trained.get(setup, ()))
        said = MISSING if mean is None else "the base" if setup == "A" else verdict(mean["avg"] - base, gain, seeds)
        rows.append({"setup": setup, "training": training, "source": "ours", "seeds": str(seeds),
                     **cells(mean, columns), "verdict": said})
    return pd.DataFrame(rows)


def table7(scores: pd.DataFrame) -> pd.DataFrame:
    """Fundus-R1's Table 7, as text, with our counterpart under the models that have one; scores as for `table5`."""
    columns, rows = ["funbench", "omni", "gmai", "avg"], []
    trained = {setup: part.reindex(columns=columns).mean() for setup, part in scores.groupby("setup")}
    for _, model in published(7).fillna({"samples": "-"}).iterrows():
        rows.append({**model, **cells(model, columns), "source": "published", "verdict": "as printed"})
        if setup := TABLE7.get(model["model"]):
            said = "other test sets, not comparable" if setup in trained else MISSING
            rows.append({**model, "model": f"setup {setup}", "vision_encoder": "-", "llm": "-", "samples": "-",
                         **cells(trained.get(setup), columns), "source": "ours", "verdict": said})
    return pd.DataFrame(rows)


def grpo_logs(stage: runs.Stage) -> pd.DataFrame:
    """log.csv of every GRPO run, with setup and seed. stage: one that may read 06_grpo."""
    files = [file for setup in stage.settings.setups if setup not in ("A", "B", "E", "ophthareason_sft")
             for file in sorted(stage.path("06_grpo", setup).glob("seed*/log.csv"))]
    return pd.concat([pd.read_csv(file).assign(setup=file.parts[-3], seed=int(file.parts[-2].removeprefix("seed")))
                      for file in files], ignore_index=True)


def beside(item: str, paper: pd.DataFrame, ours: pd.DataFrame, says: Callable = str) -> pd.DataFrame:
    """Rows of `comparison`. paper: row, column, published; ours: row, column, ours, and more. `says` gets a joined row
    that has an `ours` and returns its verdict; where none is, it is what the column `why` says, or missing."""
    rows = paper.merge(ours, "left", ["row", "column"]).astype({"published": float, "ours": float}).assign(item=item)
    whys = rows.reindex(columns=["why"])["why"].astype(object).fillna(MISSING)
    said = [says(row) if pd.notna(row.ours) else "" for row in rows.itertuples()]
    rows = rows.assign(verdict=whys.where(rows["ours"].isna(), said), difference=rows["ours"] - rows["published"])
    return rows.reindex(columns="item row column published ours low high n difference verdict".split())


def score_rows(item: str, paper: pd.DataFrame, setups: Mapping[str, str], ours: pd.DataFrame) -> pd.DataFrame:
    """Table 5 or 7 as rows of `comparison`. paper: a row a model, a column a score; setups: its row -> our setup, the
    first one the base of all gains; ours: setup, seeds, column, why (the text of table5.csv), ours, low, high, n."""
    paper, base = paper.melt("row", var_name="column", value_name="published"), next(iter(setups))
    ours = pd.concat([ours[ours["setup"] == setup].assign(row=row) for row, setup in setups.items()])
    for rows, name in ((paper, "published"), (ours, "ours")):
        start = rows[rows["row"] == base].set_index("column")[name]
        rows[f"{name}_gain"] = rows[name] - rows["column"].map(start)
    return beside(item, paper, ours, lambda row: "the base" if row.row == base else
                  verdict(row.ours_gain, row.published_gain, int(row.seeds)))


def finding_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Ours for Table 6 from table6.csv: row, column, ours (percent), low, high (Wilson; none for S2), n, and lead, the
    vote's S2 over that of a free-form description where one was asked: in the paper positive for every finding."""
    from statsmodels.stats.proportion import proportion_confint

    short = {"vote": "ours", "free-form": "qwen3vlplus", "sensitivity": "sen", "specificity": "spe", "s2": "s2"}
    rows = table[(table["n_pos"] > 0) & table["method"].isin(short) & table["finding"].isin([*TABLE6.values()])]
    rows = rows.melt(["finding", "method", "n_pos", "n_neg"], [*short][2:], "what", "share")
    rows["n"] = rows["n_pos"] * (rows["what"] != "specificity") + rows["n_neg"] * (rows["what"] != "sensitivity")
    bounds = proportion_confint(rows["share"] * rows["n"], rows["n"], method="wilson")
    rows["low"], rows["high"] = (100 * pd.Series(bound, rows.index).where(rows["what"] != "s2") for bound in bounds)
    rows = rows.assign(row=rows["finding"], column=rows["method"].map(short) + "_" + rows["what"].map(short),
                       ours=100 * rows["share"])
    rows = pd.concat([rows, rows.groupby("column", as_index=False)["ours"].mean().assign(row="Avg")], ignore_index=True)
    free = rows[rows["column"] == "qwen3vlplus_s2"].set_index("row")["ours"]
    return rows.assign(lead=(rows["ours"] - rows["row"].map(free)).where(rows["column"] == "ours_s2"))


def curve_gains(logs: pd.DataFrame) -> pd.DataFrame:
    """Ours for Figure 4: process reward (G) less none (F), means of the last five steps; t interval over n seeds."""
    from statsmodels.stats.weightstats import DescrStatsW

    last, rows = logs.sort_values("step").groupby(["setup", "seed"]).tail(5), []
    for name in ("answer_reward", "length"):
        gain = last.pivot_table(name, "seed", "setup").reindex(columns=["F", "G"]).diff(axis=1)["G"].dropna()
        bounds = DescrStatsW(gain).tconfint_mean() if len(gain) > 1 else (float("nan"), float("nan"))
        rows.append(("G - F", name, gain.mean(), *bounds, len(gain)))
    return pd.DataFrame(rows, columns=["row", "column", "ours", "low", "high", "n"])


def comparison(stage: runs.Stage) -> tuple[pd.DataFrame, dict[str, str]]:
    """Every number that a paper prints beside ours, "missing" as a row, and what could not be read, with the command
    that makes it. stage: the run's 08_paper_figures. low, high: 95 % interval, where scores.csv has one."""
    missing: dict[str, str] = {}

    def get(name: str, source: str, build: Callable = pd.DataFrame) -> pd.DataFrame:
        try:
            return build(grpo_logs(stage) if name == "logs" else stage.read(source, name))
        except FileNotFoundError as error:
            missing[name] = str(error)
            return pd.DataFrame(columns=["row", "setup", "seeds", "source", "column", "why", "ours"])

    def counts(table: pd.DataFrame, name: str = "ours") -> pd.DataFrame:
        table = table.rename(columns={"dataset": "row", "pixel_labelled": "pixel_labeled"})
        return table.melt("row", ["samples", "pixel_labeled"], "column", name)[lambda rows: rows[name] > 0]

    scores = get("table5.csv", "07_evaluation", lambda table: table[table["source"] == "ours"].melt(
        ["setup", "seeds"], published(5).columns[2:], "column", "why"))
    intervals = get("scores.csv", "07_evaluation").reindex(columns=["setup", "column", "score", "low", "high", "n"])
    scores = scores.merge(intervals, "outer", ["setup", "column"]).fillna({"seeds": "1"})  # outer: other models
    scores["ours"] = pd.to_numeric(scores["why"], errors="coerce").fillna(scores["score"])
    names = {"setup": "row", "model": "row", "finding": "row", "claim": "row", "unit": "column", "value": "published"}
    five = pd.concat([published(5), pd.DataFrame({"setup": [*UADT]})]).drop(columns="training").rename(columns=names)
    six = published(6).rename(columns=names).replace({"row": TABLE6}).melt("row", None, "column", "published")
    seven = published(7)[["model", "funbench", "omni", "gmai", "avg"]].rename(columns=names)
    four = pd.DataFrame({"row": "G - F", "column": ["answer_reward", "length"], "published": None, "up": [1, -1]})
    claims = pd.read_csv(FIGURES / "published" / "ophthareason_headline.csv").query("source.str.contains('abstract')")
    rows = [beside("Fundus-R1 Table 2", counts(published(2), "published"), get("table2.csv", "01_data", counts),
                   lambda row: AS if row.ours == row.published else UNLIKE),
            score_rows("Fundus-R1 Table 5", five, {setup: setup for setup in five["row"]}, scores),
            beside("Fundus-R1 Table 6", six, get("table6.csv", "03_vf_voting", finding_scores), lambda row:
                   f"{AS if row.lead > 0 else UNLIKE}: {row.lead:+.1f} over free-form" if pd.notna(row.lead) else
                   "higher" if row.ours > row.published else "not higher"),
            score_rows("Fundus-R1 Table 7", seven, {name: name for name in seven["row"]} | TABLE7, scores),
            beside("Fundus-R1 Figure 4", four, get("logs", "06_grpo", curve_gains), lambda row:
                   CLOSE if not row.low * row.high > 0 else AS if row.ours * row.up > 0 else UNLIKE),
            beside("OphthaReason headline gains", claims.rename(columns=names), scores.iloc[:0].assign(row=""))]
    return pd.concat(rows, ignore_index=True).astype({"n": "Float64"}).astype({"n": "Int64"}), missing


def compare(stage: runs.Stage, folder: Path = FIGURES) -> int:
    """Print a run's tables beside the published ones and write them to <folder>/tables; returns how many sources are
    missing, each with the command that makes it. stage: the run's 08_paper_figures."""
    compared, missing = comparison(stage)
    made = {"compare": compared, "table6": compared[compared["item"] == "Fundus-R1 Table 6"].drop(columns="item")}
    for name in ("table2", "table4", "table5", "table7"):
        try:
            file = stage.path("01_data" if name in ("table2", "table4") else "07_evaluation", f"{name}.csv")
            made[name] = pd.read_csv(file, keep_default_na=False, dtype=str)
        except FileNotFoundError as error:
            missing[f"{name}.csv"] = str(error)
    for name, table in made.items():
        print(f"\n{name}\n{save(table, name, folder).to_string(index=False)}")
    print("", *(f"{name}: {why}" for name, why in missing.items()), sep="\n", file=sys.stderr)
    write_index(folder)
    return len(missing.keys() - {"scores.csv"})  # without it there are no intervals, but all the numbers


def run_table(manifests: dict[str, dict]) -> pd.DataFrame:
    """What a run took: stage, minutes, peak GiB, device, commit; the last row is the whole road."""
    rows = [{"stage": stage, "minutes": round(facts["seconds"] / 60, 1), "peak_gib": facts["peak_memory_gib"],
             "device": facts["device"], "commit": facts["commit"][:12] + facts["commit"][40:]}  # 40: "-dirty" stays
            for stage, facts in manifests.items()]
    minutes = round(sum(facts["seconds"] for facts in manifests.values()) / 60, 1)
    whole = {"stage": "all", "minutes": minutes, "peak_gib": max(row["peak_gib"] for row in rows)}
    return pd.DataFrame([*rows, rows[-1] | whole])


def markdown(table: pd.DataFrame) -> str:
    """A table of text in Markdown."""
    lines = [table.columns, ["---"] * table.shape[1], *table.itertuples(index=False)]
    text = "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines) + "\n"
    return text.replace("<", "&lt;")  # a trace's <think> would be taken for HTML, and not be shown


def save(table: pd.DataFrame, name: str, folder: Path) -> pd.DataFrame:
    """<folder>/tables/<name>.csv, .md and .tex (booktabs; a long one a longtable) of a table, returned as text."""
    text = table.map(lambda cell: "-" if pd.isna(cell) else f"{cell:.1f}" if isinstance(cell, float) else str(cell))
    file = folder / "tables" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file.with_suffix(".csv"), index=False)
    file.with_suffix(".md").write_text(markdown(text), encoding="utf-8")
    text.to_latex(file.with_suffix(".tex"), index=False, escape=True, longtable=len(text) > 40, encoding="utf-8")
    return text


def index_items(folder: Path) -> pd.DataFrame:
    """Every item of both papers: the notebook of its numbers, our files, what they took (hours: of the run up
    to that stage), and what came out. Read from tables/run.csv and tables/compare.csv, where these are."""
    run, compared = (pd.read_csv(file, dtype={"commit": str}) if file.exists() else pd.DataFrame(columns=[
        "stage", "minutes", "item", "verdict"]) for file in (folder / "tables/run.csv", folder / "tables/compare.csv"))
    rows, words = [], (AS, UNLIKE, CLOSE, MISSING, NOT_ASKED)
    for item, (stage, names, note) in ITEMS.items():
        files = [f"[{path.name}]({path.parent.name}/{path.name})" for name in names.split() for path in
                 (folder / f"figures/{name}.png", folder / f"tables/{name}.csv") if path.exists()]
        said = compared["verdict"][compared["item"] == item].astype(str)
        count = {word: said.str.contains(word, regex=False).sum() for word in words}
        lead = "differs" if count[UNLIKE] else "reproduced in direction" if count[AS] else \
            "missing because" if not names and len(said) else "missing" if names and not files else \
            "undecided" if len(said) else ""
        counted = ", ".join(f"{n} {word}" for word, n in count.items() if n and names)
        took = run.assign(hours=run["minutes"].cumsum() / 60)[run["stage"] == stage].to_dict("records")
        rows.append((item, f"[{stage}](../notebooks/{stage}.ipynb)", " ".join(files) or "-",
                     *((took[0]["commit"], took[0]["device"], f"{took[0]['hours']:.2f}") if took else "---"),
                     ("; " if names else " ").join(filter(None, [lead + (counted and f" ({counted})"), note]))))
    return pd.DataFrame(rows, columns=["item", "notebook", "files", "commit", "machine", "hours", "verdict"])


def write_index(folder: Path = FIGURES) -> Path:
    """INDEX.md: the run (tables/run.csv), every item of both papers, each figure's title, each table's size."""
    lines = ["# Figures and tables", "", "Generated; the numbers behind every figure lie beside it."]
    if (folder / "tables" / "run.csv").exists():
        whole = pd.read_csv(folder / "tables" / "run.csv", dtype={"commit": str}).iloc[-1]
        lines += ["", f"Ours: the embedded world (drawn images, a small model), {whole.minutes} minutes up to stage "
                  f"07 on {whole.device}, at most {whole.peak_gib} GiB, commit {whole.commit}."]
    lines += ["", "## Every item of both papers", "", "Notebook 08 draws; the one named makes the numbers. Verdicts "
              "(of directions) count the cells of tables/compare.csv.", "", markdown(index_items(folder))]
    for kind in ("figures", "tables", "recorded", "published"):
        lines += [f"## {kind.capitalize()}", ""]
        files = sorted(file for file in (folder / kind).glob("*.*") if file.stem != "README")
        for name, group in itertools.groupby(files, lambda file: file.stem):
            found = {file.suffix[1:]: file for file in group}
            said = Image.open(found["png"]).info["Title"] if "png" in found else len(pd.read_csv(found["csv"]))
            links = ", ".join(f"[{suffix}]({kind}/{name}.{suffix})" for suffix in found)
            lines.append(f"- {name} ({links}): {said}{'' if 'png' in found else ' rows'}")
        lines.append("")
    (folder / "INDEX.md").write_text("\n".join(lines), encoding="utf-8")
    return folder / "INDEX.md"


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 when a source is missing."""
    parser = argparse.ArgumentParser(prog="python -m fundus_lib.tables", description=__doc__)
    parser.add_argument("command", choices=["compare"])
    parser.add_argument("--profile", default="cpu")
    try:
        return min(1, compare(runs.Stage("08_paper_figures", parser.parse_args(arguments).profile)))
    except ValueError as error:  # an unknown profile
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
