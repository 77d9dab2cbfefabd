"""Figures: every one draws from made-up numbers (uadt_lines in notebook 06), and is the same bytes twice."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fundus_lib import plots

RNG = np.random.default_rng(0)
IMAGE = Image.new("RGB", (60, 40), "orange")
STEPS = pd.DataFrame({"step": range(20), "loss": np.linspace(1, 0.1, 20), "answer_reward": RNG.random(20),
                      "process_reward": np.nan, "length": 40.0, "entropy": 0.3, "phase": "vision", "seed": 0})
FIVE = pd.DataFrame({"row": ["A", "A", "B"], "column": ["avg", "funbench", "avg"], "published": [48.3, 41.0, 53.8],
                     "ours": [30.0, 20.0, np.nan], "low": [28.0, 15.0, np.nan], "high": [35.0, 22.0, np.nan],
                     "n": pd.array([90, 50, pd.NA], "Int64")})
GROUPS = pd.DataFrame({"group": ["RFMiD", "IDRiD", "RFMiD"], "setup": ["A", "A", "E"], "score": [10.0, 20.0, 80.0],
                       "low": [5.0, 10.0, 70.0], "high": [20.0, 30.0, 90.0], "n": [50, 7, 50]})
ANSWERS = pd.DataFrame({"truth": ["DME", "DME", "DME", "Drusen"], "answered": ["DME", "no answer", "CNV", "Drusen"]})
BINS = pd.DataFrame({"confidence": [0.25, 0.9], "accuracy": [0.0, 0.8], "low": [0.0, 0.6], "high": [0.5, 0.9],
                     "n": [4, 1200]})
BOXES = {"a": (0.2, 0.5, "one", "white"), "b": (0.8, 0.5, "two\nlines", "white")}
LOGS = pd.concat([STEPS.assign(setup="F"), STEPS.assign(setup="G", process_reward=0.5)])


def figures():
    mask = np.zeros((40, 60), bool)
    mask[5:9, 5:9] = True
    votes = pd.DataFrame({"drusen": [True, False, True], "hard exudate": [False, False, True]})
    traces = pd.DataFrame({"no_format_error": [True, False, True], "within_length": [True, True, False], "text": "x",
                           "kept": [True, False, False]})
    records = pd.DataFrame({"modality": ["CFP", "OCT"] * 2, "labels": [["PDR"], ["DME"]] * 2, "split": ["train",
    "test"] * 2})
    scores = pd.DataFrame({"setup": ["A", "E"], "source": "clinic", "score": [10.0, 80.0], "low": [5.0, 70.0],
                           "high": [20.0, 90.0], "n": 50})
    yield plots.contact_sheet([IMAGE] * 5, list("abcde"), title="five")
    yield plots.leakage_pairs([(IMAGE, "a", IMAGE, "b")])
    yield plots.mask_overlay(IMAGE, {"drusen": mask, "hard exudate": np.zeros_like(mask)})
    yield plots.label_counts(records)
    yield plots.s2_bars(pd.DataFrame({"finding": ["drusen"], "method": ["vote"], "s2": [0.8]}),
                        pd.DataFrame({"finding": ["drusen"], "s2": [0.6]}))
    yield plots.votes_picture(IMAGE, votes)
    yield plots.qc_bars(traces)
    yield plots.training_curves(LOGS)
    yield plots.loss_curve(LOGS)
    yield plots.base_loss(STEPS)
    yield plots.scores_with_intervals(scores)
    yield plots.table5_picture(FIVE)
    yield plots.case_reading(IMAGE, np.array([[0.5, -0.1], [0.0, 0.0]]), {"drusen": mask}, "heat")
    yield plots.case_reading(IMAGE, np.zeros((2, 2)), {}, "no heat, no masks")
    yield plots.score_map(GROUPS, "groups")
    yield plots.confusion(ANSWERS, "answers")
    yield plots.reliability(BINS, "bins")
    yield plots.risk_coverage(pd.DataFrame({"setup": "A", "coverage": [0.5, 1.0], "risk": [0.1, 0.2], "low": 0.0,
                                            "high": 0.4}))
    yield plots.reader_disagreement(pd.DataFrame({"setup": ["A", "E"], "ours": [30.0, 60.0], "VLMEvalKit": [40, 60.0]}))
    yield plots.advantage_bars({"a": ([1, -1], [1.5, -0.5]), "b": ([1, -1], [1, -1])}, "two groups")
    yield plots.uadt_history(LOGS.assign(**dict.fromkeys([
        "uadt/uncertainty", "uadt/threshold", "uadt/omega", "uadt/amplified"], 0.5)))
    yield plots.example(IMAGE, pd.Series({"drusen": 1, "hard exudate": 5}), 3, {"query": "What?"}, "a case")
    figure, (ax,) = plots.panels(1, "a diagram", (4, 3))
    plots.diagram(ax, BOXES, [("a", "b", "to")])
    yield figure


def test_every_figure_draws_and_has_a_title():
    drawn = list(figures())
    for figure in drawn:
        assert figure.get_suptitle()
        figure.draw_without_rendering()
    assert len({figure.get_suptitle() for figure in drawn}) == len(drawn)


def labels(figure):
    """Every text that a figure's axes show."""
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_table5_shows_intervals_and_images_or_says_there_are_none():
    figure = plots.table5_picture(FIVE)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["average\n90 images", "FunBench\n50 images"]
    bars = figure.axes[0].containers[0].lines[2][0].get_segments()
    assert bars[0][:, 0].tolist() == [28.0, 35.0]  # of setup A; B has none
    assert "no intervals" in plots.table5_picture(FIVE.assign(low=np.nan)).get_suptitle()


def test_a_confusion_matrix_is_percent_of_the_row_with_no_answer_last():
    ax = plots.confusion(ANSWERS, "OCT").axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["DME", "Drusen", "CNV", "no answer"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["DME (3)", "Drusen (1)"]
    assert [text.get_text() for text in ax.texts] == ["33", "", "33", "33", "", "100", "", ""]
    assert plots.confusion(ANSWERS, "OCT").get_suptitle() == "OCT (n = 4)"


def test_a_score_map_shows_score_interval_and_n_and_leaves_a_gap():
    figure = plots.score_map(GROUPS, "groups")
    assert labels(figure) == ["10\n5 to 20", "80\n70 to 90", "20\n10 to 30"]  # IDRiD was not asked of E
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["RFMiD (n = 50)", "IDRiD (n = 7)"]


def test_a_reliability_diagram_counts_the_answers():
    assert labels(plots.reliability(BINS, "bins")) == ["4", "1,200"]


def test_arrows_join_the_boxes_they_name():
    figure, (ax,) = plots.panels(1, "a diagram", (4, 3))
    with pytest.raises(KeyError, match="c"):
        plots.diagram(ax, BOXES, [("a", "c", "")])
    assert [text for text in labels(figure) if text] == ["one", "two\nlines"]


def test_the_same_figure_is_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        plots.save(plots.loss_curve(LOGS), "loss", tmp_path / folder, LOGS)
    for suffix in ("png", "pdf", "csv"):
        assert (tmp_path / "one" / f"loss.{suffix}").read_bytes() == (tmp_path / "two" / f"loss.{suffix}").read_bytes()


def test_colours_are_told_apart():
    for palette in (plots.SETUP_COLOURS, plots.MODALITY_COLOURS):
        assert len(set(palette.values())) == len(palette)


def test_an_advantage_made_larger_is_told_from_one_made_smaller():
    figure = plots.advantage_bars({"a": ([-1, 1, 0], [-1.5, 0.5, 0])}, "t")
    legend, bars = figure.legends[0], figure.axes[0].patches
    colours = {text.get_text(): patch.get_facecolor()
               for text, patch in zip(legend.texts, legend.get_patches(), strict=True)}
    assert [bar.get_facecolor() for bar in bars] == [
        colours[name] for name in ("made larger", "made smaller", "as before")]


def test_training_curves_show_only_what_was_logged():
    titles = [ax.get_title() for ax in plots.training_curves(LOGS[LOGS["setup"] == "F"]).axes]
    assert "process reward" not in titles and "answer reward" in titles


def test_an_unknown_setup_is_refused():
    with pytest.raises(KeyError, match="Z"):
        plots.loss_curve(STEPS.assign(setup="Z"))
