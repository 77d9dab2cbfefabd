"""Tables: ours beside the published ones; what is missing is a row that says so."""

import re
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from fundus_lib import plots, runs, tables

SCORES = pd.DataFrame([
    {"setup": "A", "seed": 0, "avg": 30.0, "funbench": 20.0, "omni": 40.0, "gmai": 30.0, "L1": 55.0},
    {"setup": "E", "seed": 0, "avg": 60.0, "funbench": 50.0, "omni": 70.0, "gmai": 60.0, "L1": 90.0},
    {"setup": "E", "seed": 1, "avg": 62.0, "funbench": 54.0, "omni": 70.0, "gmai": 62.0, "L1": 90.0},
    {"setup": "G", "seed": 0, "avg": 20.0, "funbench": 10.0, "omni": 20.0, "gmai": 30.0, "L1": 90.0},
    {"setup": "F_uadt", "seed": 0, "avg": 61.0, "funbench": 50.0, "omni": 70.0, "gmai": 63.0, "L1": 90.0},
    {"setup": "ophthareason_uadt", "seed": 0, "avg": 61.0, "funbench": 50.0, "omni": 70.0, "gmai": 63.0, "L1": 90.0}])
FINDINGS = pd.DataFrame({"finding": ["microaneurysm"] * 3 + ["neovascularization"], "n_pos": [10, 10, 10, 0],
                         "method": ["one rollout", "vote", "free-form", "vote"], "n_neg": [20] * 4,
                         "sensitivity": [0.4, 0.8, 0.5, 0.0], "specificity": [0.4, 0.8, 0.5, 1.0],
                         "s2": [0.4, 0.8, 0.5, 0.0]})
README = Path(__file__).parents[2] / "shared/papers/ophthareason_readme.md"


@pytest.fixture
def run(tmp_path):
    """A run of which only stages 03 and 07 are finished, without scores.csv; its stage 08."""
    for name in ("03_vf_voting", "07_evaluation"):
        (tmp_path / "runs" / "cpu" / name).mkdir(parents=True)
        (tmp_path / "runs" / "cpu" / name / "manifest.json").write_text('{"content": "x"}')
    folder = tmp_path / "runs" / "cpu"
    tables.table5(SCORES).to_csv(folder / "07_evaluation" / "table5.csv", index=False)
    tables.table7(SCORES).to_csv(folder / "07_evaluation" / "table7.csv", index=False)
    FINDINGS.to_csv(folder / "03_vf_voting" / "table6.csv", index=False)
    return runs.Stage("08_paper_figures", "cpu", root=tmp_path)


def cell(compared, item, row, column):
    """One row of the long table."""
    return compared[(compared.item == item) & (compared.row == row) & (compared.column == column)].iloc[0]


@pytest.mark.parametrize(("number", "name", "exceptions"), [
    (5, "setup", {"G"}), (7, "model", {"MedVLM-R1", "Med-R1-fundus", "Fundus-R1-3B"})])
def test_published_averages_are_the_mean_of_the_three_benchmarks(number, name, exceptions):
    paper = tables.published(number).set_index(name)
    off = (paper[["funbench", "omni", "gmai"]].mean(axis=1) - paper["avg"]).abs()
    assert set(off.index[off > 0.05 + 1e-9]) == exceptions  # printed to one digit: half a digit may be lost
    assert off.max() < 0.07


def test_table5_has_every_setup_and_no_blank():
    table = tables.table5(SCORES)
    ours = table[table["source"] == "ours"].set_index("setup")
    assert list(ours.index) == [*"ABCDEFGHIJ", "F_uadt", "G_uadt"]
    assert list(table.columns[4:-1]) == list(tables.published(5).columns[2:])
    assert not (table == "").any().any() and not table.isna().any().any()
    assert ours.loc["E", ["avg", "funbench", "seeds"]].tolist() == ["61.0", "52.0", "2"]
    assert (ours.loc["H"].drop(["training", "source", "seeds"]) == "missing").all()
    assert ours.at["E", "SG"] == "not asked"  # trained, but there was no such question
    assert table[table["source"] == "published"].set_index("setup").at["G", "avg"] == "65.6"


def test_verdicts_state_direction_and_seeds():
    ours = tables.table5(SCORES)[lambda t: t["source"] == "ours"].set_index("setup")["verdict"]
    assert ours["A"] == "the base" and ours["B"] == "missing"
    assert ours["E"] == "+31.0 over A, as published (+8.2); 2 of 5 seeds"
    assert ours["G"].startswith("-10.0 over A, unlike published (+17.3)")
    assert ours["F_uadt"].startswith("+31.0 over A, not in the paper")
    assert tables.verdict(1.0, 2.0, 5) == "+1.0 over A, as published (+2.0)"
    assert tables.verdict(1.0, 2.0, 4) == "+1.0 over A, too close to tell (+2.0); 4 of 5 seeds"


def test_table7_puts_ours_under_their_models():
    table = tables.table7(SCORES).set_index("model")
    assert table.at["setup G", "avg"] == "20.0" and table.at["Lingshu-7B", "avg"] == "70.5"
    assert not table.isna().any().any()
    assert tables.table7(SCORES[SCORES["setup"] == "A"]).set_index("model").at["setup G", "verdict"] == "missing"


def test_every_printed_number_is_a_row_and_what_is_missing_says_so(run):
    compared, missing = tables.comparison(run)
    assert {"table2.csv", "scores.csv", "logs"} == set(missing) and "make 01_data" in missing["table2.csv"]
    rows = compared[compared.published.notna()].groupby("item").size()
    assert rows["Fundus-R1 Table 5"] == 10 * 17 and rows["Fundus-R1 Table 6"] == 7 * 6
    assert rows["Fundus-R1 Table 7"] == 14 * 4 and rows["OphthaReason headline gains"] == 4
    assert (compared.ours.isna() == compared.verdict.isin(["missing", "not asked"])).all()
    best = cell(compared, "Fundus-R1 Table 5", "E", "funbench")
    assert (best.ours, best.difference) == (52.0, pytest.approx(52.0 - 61.9)) and pd.isna(best.low)
    assert best.verdict == "+32.0 over A, as published (+20.9); 2 of 5 seeds"
    assert cell(compared, "Fundus-R1 Table 5", "E", "SG").verdict == "not asked"
    assert cell(compared, "Fundus-R1 Table 5", "H", "avg").verdict == "missing"
    assert cell(compared, "Fundus-R1 Table 7", "Fundus-R1-3B", "avg").ours == 20.0
    assert cell(compared, "Fundus-R1 Table 7", "OphthaReason-Qwen", "avg").verdict == "missing"  # it is in scores.csv
    assert cell(compared, "Fundus-R1 Figure 4", "G - F", "length").verdict == "missing"


def test_table6_rests_on_the_free_form_description(run):
    compared, _ = tables.comparison(run)
    s2 = cell(compared, "Fundus-R1 Table 6", "microaneurysm", "ours_s2")
    assert (s2.ours, s2.n, s2.verdict) == (80.0, 30, "as published: +30.0 over free-form")
    share = cell(compared, "Fundus-R1 Table 6", "microaneurysm", "ours_sen")
    assert share.n == 10 and (share.low, share.high) == (pytest.approx(49.0, abs=0.1), pytest.approx(94.3, abs=0.1))
    assert cell(compared, "Fundus-R1 Table 6", "neovascularization", "ours_s2").verdict == "missing"  # in no image


def test_intervals_are_shown_where_there_are_some(run):
    pd.DataFrame([("E", 2, "avg", 61.0, 58.0, 64.0, 90), ("Lingshu-7B", 1, "avg", 71.0, 69.0, 73.0, 90)],
                 columns=["setup", "seeds", "column", "score", "low", "high", "n"]).to_csv(
        run.of("07_evaluation").folder / "scores.csv", index=False)
    compared, missing = tables.comparison(run)
    assert "scores.csv" not in missing
    assert tuple(cell(compared, "Fundus-R1 Table 5", "E", "avg")[["low", "high", "n"]]) == (58.0, 64.0, 90)
    assert pd.isna(cell(compared, "Fundus-R1 Table 5", "A", "avg").low)
    other = cell(compared, "Fundus-R1 Table 7", "Lingshu-7B", "avg")  # answered here, but no setup of Table 5
    assert (other.ours, other.low) == (71.0, 69.0) and "as published (+22.2)" in other.verdict
    assert cell(compared, "Fundus-R1 Table 7", "Lingshu-7B", "omni").verdict == "missing"


def curves(gains):
    """Logs of F and G whose answer reward differs by gains[seed]."""
    return pd.DataFrame([{"setup": setup, "seed": seed, "step": 1, "answer_reward": gain * (setup == "G"),
                          "length": 40.0} for seed, gain in enumerate(gains) for setup in "FG"])


def test_figure4_needs_seeds_that_agree():
    ours = tables.curve_gains(curves([0.1, 0.2, 0.3])).set_index("column").loc["answer_reward"]
    assert ours["ours"] == pytest.approx(0.2) and ours["n"] == 3
    assert ours["high"] == pytest.approx(0.2 + 4.303 * 0.1 / 3 ** 0.5, abs=1e-3)  # t of two degrees of freedom
    assert tables.curve_gains(curves([0.1])).low.isna().all()
    assert tables.curve_gains(curves([0.1]).query("setup == 'F'")).ours.isna().all()


def test_compare_writes_what_is_there_and_names_the_command_for_the_rest(run, tmp_path, capsys):
    folder = tmp_path / "papers_figs"
    assert tables.compare(run, folder) == 3  # tables 2 and 4, logs; scores.csv is only said
    printed = capsys.readouterr()
    assert "make 01_data PROFILE=cpu" in printed.err and "scores.csv" in printed.err and "as published" in printed.out
    again = pd.read_csv(folder / "tables" / "table5.csv", keep_default_na=False, dtype=str)
    pd.testing.assert_frame_equal(again, tables.table5(SCORES).astype(str))
    long = pd.read_csv(folder / "tables" / "compare.csv").astype({"n": "Int64"})
    pd.testing.assert_frame_equal(long, tables.comparison(run)[0], check_dtype=False)


def test_an_unknown_profile_is_refused(capsys):
    assert tables.main(["compare", "--profile", "cup"]) == 1
    assert "did you mean cpu?" in capsys.readouterr().err


def test_latex_and_markdown_are_escaped(tmp_path):
    table = pd.DataFrame({"a_b": ["50 % & more_", "x|y <z>"], "n": [1.25, float("nan")]})
    assert tables.save(table, "t", tmp_path)["n"].tolist() == ["1.2", "-"]
    tex, markdown = ((tmp_path / "tables" / f"t.{suffix}").read_text() for suffix in ("tex", "md"))
    assert r"a\_b" in tex and r"50 \% \& more\_" in tex and not re.search(r"(?<!\\)[_%]", tex)
    assert tex.count(r"\begin{") == tex.count(r"\end{") == 1 and tex.count("{") == tex.count("}")
    assert r"x\|y &lt;z>" in markdown and {line.replace(r"\|", "").count("|") for line in markdown.splitlines()} == {3}
    tables.save(pd.concat([table] * 30), "long", tmp_path)
    assert r"\begin{longtable}" in (tmp_path / "tables" / "long.tex").read_text()


def test_index_lists_every_item_of_both_papers_once(run, tmp_path):
    tables.compare(run, tmp_path)
    tables.save(tables.run_table({"07_evaluation": {"seconds": 36000, "peak_memory_gib": 1.0, "device": "a machine",
                                                    "commit": "c" * 40}}), "run", tmp_path)
    text = tables.write_index(tmp_path).read_text()
    wanted = [f"Fundus-R1 Table {i}" for i in range(1, 8)] + [f"Fundus-R1 Figure {i}" for i in range(1, 5)] + [
        f"OphthaReason {name}" for name in ("split table", "model figure", "cases", "headline gains", "result tables")]
    assert all(text.count(f"| {name} |") == 1 for name in wanted) and set(wanted) == set(tables.ITEMS)
    verdicts = tables.index_items(tmp_path).set_index("item")
    assert [*verdicts.loc["Fundus-R1 Table 5", ["commit", "machine", "hours"]]] == ["c" * 12, "a machine", "10.00"]
    assert verdicts.verdict["Fundus-R1 Table 5"].startswith("differs (")
    assert "unlike published" in verdicts.verdict["Fundus-R1 Table 5"]
    assert verdicts.verdict["Fundus-R1 Table 6"].startswith("reproduced in direction (2 as published")  # one and Avg
    assert verdicts.verdict["Fundus-R1 Figure 1"].startswith("missing; ")  # nothing was drawn
    assert verdicts.verdict["OphthaReason headline gains"].startswith("missing because they need")
    assert verdicts.verdict["OphthaReason result tables"].startswith("not public")
    assert verdicts.hours["Fundus-R1 Figure 1"] == "-"


def test_every_file_of_an_item_is_made_by_notebook_08():
    source = (runs.ROOT / "notebooks" / "08_paper_figures.ipynb").read_text()
    files = {name for _, names, _ in tables.ITEMS.values() for name in names.split()}
    assert {name for name in files if f'\\"{name}\\"' not in source} == set()
    assert {stage for stage, _, _ in tables.ITEMS.values()} <= set(runs.STAGES)


def test_index_lists_figures_with_their_titles(tmp_path):
    figure = plots.contact_sheet([Image.new("L", (2, 1))], ["one"], title="A title")
    plots.save(figure, "sheet", tmp_path / "figures", pd.DataFrame({"x": [1]}))
    tables.save(pd.DataFrame({"x": [1, 2]}), "table5", tmp_path)
    text = tables.write_index(tmp_path).read_text()
    assert "sheet ([csv](figures/sheet.csv), [pdf](figures/sheet.pdf), [png](figures/sheet.png)): A title" in text
    assert "table5 ([csv](tables/table5.csv), [md](tables/table5.md), [tex](tables/table5.tex)): 2 rows" in text


def test_the_run_table_adds_up_and_heads_the_index(tmp_path):
    facts = {"device": "cpu, 2 cores", "commit": "0123456789" * 4 + "-dirty"}
    manifests = {"01_data": facts | {"seconds": 60, "peak_memory_gib": 1.0},
                 "05_sft": facts | {"seconds": 90, "peak_memory_gib": 3.0}}
    tables.save(tables.run_table(manifests), "run", tmp_path)
    assert "2.5 minutes" in tables.write_index(tmp_path).read_text()
    assert "3.0 GiB, commit 012345678901-dirty." in (tmp_path / "INDEX.md").read_text()


@pytest.mark.skipif(not README.exists(), reason="OphthaReason's README is not on this machine")
def test_the_catalogue_has_as_many_sets_as_ophthareasons_split():
    from fundus_lib.data.catalogue import catalogue

    lines = re.findall(r"\| \*\*(CFP|FFA|OCT)\*\* \| \*\*In-Domain:\*\* (.*?)<br> \*\*Out-of-Domain:\*\* (.*?) \|",
                       README.read_text(encoding="utf-8", errors="replace"))
    theirs = {(modality, domain): sum(bool(name.strip()) for name in names.split(","))
              for modality, inside, outside in lines
              for domain, names in (("in-domain", inside), ("out-of-domain", outside))}
    entries = [entry for entry in catalogue().values() if "ophthareason" in entry.roles]
    ours = pd.Series([(entry.modality[0], entry.roles["ophthareason"]) for entry in entries]).value_counts().to_dict()
    assert ours == theirs
