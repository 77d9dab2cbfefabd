"""Our tables beside the published ones, a verdict in every row: python -m fundus_lib.tables compare --profile cpu"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from fundus_lib import runs

FIGURES = runs.ROOT / "papers_figs"
MISSING, NOT_ASKED = "missing", "not asked"  # a setup without a model; a task without questions in our test sets
UADT = {"F_uadt": "F + UADT", "G_uadt": "G + UADT"}
TABLE6 = {"MA": "microaneurysm", "RH": "retinal hemorrhage", "HE": "hard exudate", "CWS": "cotton-wool spot",
          "VH": "vitreous hemorrhage", "NV": "neovascularization"}
TABLE7 = {"Qwen2.5-VL-3B": "A", "OphthaReason-Qwen": "F_uadt", "Fundus-R1-3B": "G"}  # their model -> our setup
SOURCES = {"table5": "07_evaluation", "table6": "03_vf_voting", "table7": "07_evaluation"}
ENOUGH_SEEDS = 5  # two runs from one start differ by about 3 points: fewer runs than this show no order


def published(number: int) -> pd.DataFrame:
    """A table of Fundus-R1 as printed; papers_figs/published/README.md says where."""
    return pd.read_csv(FIGURES / "published" / f"fundus_r1_table{number}.csv")


def cells(values: pd.Series | None, columns: list[str]) -> dict[str, str]:
    """Percentages as tables show them; what does not exist is named, never blank and never zero."""
    if values is None:
        return dict.fromkeys(columns, MISSING)
    return {column: NOT_ASKED if pd.isna(values.get(column)) else f"{values[column]:.1f}" for column in columns}


def verdict(gain: float, paper_gain: float | None, seeds: int) -> str:
    """Direction only, by the average's gain over setup A: our test sets are not the paper's."""
    if pd.isna(gain):
        return "no average to compare"
    agrees = "not in the paper" if paper_gain is None else \
        f"{'as' if gain * paper_gain > 0 else 'unlike'} published ({paper_gain:+.1f})"
    caution = "" if seeds >= ENOUGH_SEEDS else f"; {seeds} of {ENOUGH_SEEDS} seeds"
    return f"{gain:+.1f} over A, {agrees}{caution}"


def table5(scores: pd.DataFrame) -> pd.DataFrame:
    """Fundus-R1's Table 5, as text: for each setup A-J, and with UADT, the published row and ours with its verdict.

    scores: one row a run, columns setup, seed and any of avg, funbench ... SG in percent (evaluation.table_scores).
    Ours is the mean over seeds.
    """
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
        gain = paper.at[setup, "avg"] - paper.at["A", "avg"] if setup in paper.index else None
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
            rows.append({**model, "model": f"setup {setup}", "vision_encoder": "-", "llm": "-", "samples": "-",
                         **cells(trained.get(setup), columns), "source": "ours",
                         "verdict": "other test sets, not comparable" if setup in trained else MISSING})
    return pd.DataFrame(rows)


def table6(ours: pd.DataFrame) -> pd.DataFrame:
    """S2 of Fundus-R1's Table 6 beside that of our vote, in percent. ours: finding, method, n_pos, s2 in 0..1."""
    s2 = ours[(ours["n_pos"] > 0) & (ours["method"] == "vote")].set_index("finding")["s2"] * 100
    paper = published(6).set_index("finding")["ours_s2"]
    rows = [(finding, paper[short], s2.get(finding)) for short, finding in TABLE6.items()]
    return pd.DataFrame([{"finding": finding, "published": f"{theirs:.1f}",
                          "ours": MISSING if value is None else f"{value:.1f}",
                          "verdict": MISSING if value is None else "higher" if value > theirs else "not higher"}
                         for finding, theirs, value in rows])


def compare(stage: runs.Stage, folder: Path = FIGURES) -> int:
    """Print a run's tables beside the published ones and write them to <folder>/tables; returns how many are missing,
    each with the command that makes it. stage: the run's 08_paper_figures, which may read the others."""
    missing = 0
    for name, source in SOURCES.items():
        try:
            table = pd.read_csv(stage.path(source, f"{name}.csv"), keep_default_na=name == "table6")
            save(table6(table) if name == "table6" else table, name, folder)
        except FileNotFoundError as error:
            print(f"{name}: {error}", file=sys.stderr)
            missing += 1
    write_index(folder)
    return missing


def run_table(manifests: dict[str, dict]) -> pd.DataFrame:
    """What a run took: stage, minutes, peak GiB, device, commit; the last row is the whole road."""
    rows = [{"stage": stage, "minutes": round(facts["seconds"] / 60, 1), "peak_gib": facts["peak_memory_gib"],
             "device": facts["device"], "commit": facts["commit"][:12] + facts["commit"][40:]}  # 40: "-dirty" stays
            for stage, facts in manifests.items()]
    whole = {"stage": "all", "minutes": round(sum(facts["seconds"] for facts in manifests.values()) / 60, 1),
             "peak_gib": max(row["peak_gib"] for row in rows)}
    return pd.DataFrame([*rows, rows[-1] | whole])


def save(table: pd.DataFrame, name: str, folder: Path) -> None:
    """Print a table and write it to <folder>/tables/<name>.csv."""
    print(f"\n{name}\n{table.to_string(index=False)}")
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "tables" / f"{name}.csv", index=False)


def write_index(folder: Path = FIGURES) -> Path:
    """INDEX.md of what lies in papers_figs: the run it is from (tables/run.csv), figures with the title they carry,
    tables with their number of rows."""
    from PIL import Image

    lines = ["# Figures and tables", "", "Generated; the numbers behind every figure lie beside it."]
    if (folder / "tables" / "run.csv").exists():
        whole = pd.read_csv(folder / "tables" / "run.csv", dtype={"commit": str}).iloc[-1]
        lines += ["", f"Ours: the embedded world (drawn images, a small model), {whole.minutes} minutes up to stage "
                  f"07 on {whole.device}, at most {whole.peak_gib} GiB, commit {whole.commit}."]
    for kind in ("figures", "tables", "recorded", "published"):
        lines += ["", f"## {kind.capitalize()}", ""]
        for file in sorted(path for path in (folder / kind).glob("*") if path.suffix in (".png", ".csv")):
            if file.suffix == ".png":
                with Image.open(file) as image:
                    pdf, numbers = (f"[{s}]({kind}/{file.stem}.{s})" for s in ("pdf", "csv"))
                    title = image.info.get("Title", "")
                lines.append(f"- [{file.stem}]({kind}/{file.name}) ({pdf}, {numbers}): {title}")
            elif not file.with_suffix(".png").exists():
                lines.append(f"- [{file.stem}]({kind}/{file.name}): {len(pd.read_csv(file))} rows")
    (folder / "INDEX.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "INDEX.md"


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 when a table is missing."""
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
