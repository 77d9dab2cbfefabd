"""Tables: ours beside the published ones; what is missing is a row that says so."""

import pandas as pd
import pytest
from PIL import Image

from fundus_lib import plots, runs, tables

SCORES = pd.DataFrame([
    {"setup": "A", "seed": 0, "avg": 30.0, "funbench": 20.0, "omni": 40.0, "gmai": 30.0, "L1": 55.0},
    {"setup": "E", "seed": 0, "avg": 60.0, "funbench": 50.0, "omni": 70.0, "gmai": 60.0, "L1": 90.0},
    {"setup": "E", "seed": 1, "avg": 62.0, "funbench": 54.0, "omni": 70.0, "gmai": 62.0, "L1": 90.0},
    {"setup": "G", "seed": 0, "avg": 20.0, "funbench": 10.0, "omni": 20.0, "gmai": 30.0, "L1": 90.0},
    {"setup": "F_uadt", "seed": 0, "avg": 61.0, "funbench": 50.0, "omni": 70.0, "gmai": 63.0, "L1": 90.0}])


def test_published_averages_are_the_mean_of_the_three_benchmarks():
    paper = tables.published(5).set_index("setup")
    off = (paper[["funbench", "omni", "gmai"]].mean(axis=1) - paper["avg"]).abs()
    assert (off.drop("G") <= 0.051).all() and off["G"] == pytest.approx(0.067, abs=0.001)


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
    assert "seeds" not in tables.verdict(1.0, 2.0, 5)


def test_table7_puts_ours_under_their_models():
    table = tables.table7(SCORES).set_index("model")
    assert table.at["setup G", "avg"] == "20.0" and table.at["Lingshu-7B", "avg"] == "70.5"
    assert not table.isna().any().any()
    assert tables.table7(SCORES[SCORES["setup"] == "A"]).set_index("model").at["setup G", "verdict"] == "missing"


def test_table6_compares_the_vote():
    ours = pd.DataFrame({"finding": ["microaneurysm"] * 2 + ["neovascularization"], "method": ["one rollout", "vote",
    "vote"],
                         "n_pos": [9, 9, 0], "s2": [0.4, 0.8, 0.0]})
    table = tables.table6(ours).set_index("finding")
    assert table.loc["microaneurysm"].tolist() == ["60.7", "80.0", "higher"]
    assert table.loc["neovascularization"].tolist() == ["60.6", "missing", "missing"]  # no image with it: no score


def test_compare_writes_what_is_there_and_names_the_command_for_the_rest(tmp_path, capsys):
    folder = tmp_path / "runs" / "cpu" / "07_evaluation"
    folder.mkdir(parents=True)
    tables.table5(SCORES).to_csv(folder / "table5.csv", index=False)
    tables.table7(SCORES).to_csv(folder / "table7.csv", index=False)
    (folder / "manifest.json").write_text('{"content": "x"}')
    assert tables.compare(runs.Stage("08_paper_figures", "cpu", root=tmp_path), tmp_path / "papers_figs") == 1
    printed = capsys.readouterr()
    assert "make 03_vf_voting PROFILE=cpu" in printed.err and "as published" in printed.out
    again = pd.read_csv(tmp_path / "papers_figs" / "tables" / "table5.csv", keep_default_na=False, dtype=str)
    pd.testing.assert_frame_equal(again, tables.table5(SCORES).astype(str))


def test_an_unknown_profile_is_refused(capsys):
    assert tables.main(["compare", "--profile", "cup"]) == 1
    assert "did you mean cpu?" in capsys.readouterr().err


def test_index_lists_figures_with_their_titles(tmp_path):
    figure = plots.contact_sheet([Image.new("L", (2, 1))], ["one"], title="A title")
    plots.save(figure, "sheet", tmp_path / "figures", pd.DataFrame({"x": [1]}))
    (tmp_path / "tables").mkdir()
    pd.DataFrame({"x": [1, 2]}).to_csv(tmp_path / "tables" / "table5.csv", index=False)
    text = tables.write_index(tmp_path).read_text()
    assert "[sheet](figures/sheet.png) ([pdf](figures/sheet.pdf), [csv](figures/sheet.csv)): A title" in text
    assert "[table5](tables/table5.csv): 2 rows" in text and text.count("sheet.csv") == 1


def test_the_run_table_adds_up_and_heads_the_index(tmp_path):
    facts = {"device": "cpu, 2 cores", "commit": "0123456789" * 4 + "-dirty"}
    manifests = {"01_data": facts | {"seconds": 60, "peak_memory_gib": 1.0},
                 "05_sft": facts | {"seconds": 90, "peak_memory_gib": 3.0}}
    tables.save(tables.run_table(manifests), "run", tmp_path)
    assert "2.5 minutes" in tables.write_index(tmp_path).read_text()
    assert "3.0 GiB, commit 012345678901-dirty." in (tmp_path / "INDEX.md").read_text()
