"""Figures: every one draws from made-up numbers (uadt_curves in notebook 06), and is the same bytes twice."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fundus_lib import plots, tables

RNG = np.random.default_rng(0)
IMAGE = Image.new("RGB", (60, 40), "orange")
STEPS = pd.DataFrame({"step": range(20), "loss": np.linspace(1, 0.1, 20), "answer_reward": RNG.random(20),
                      "process_reward": np.nan, "length": 40.0, "entropy": 0.3, "phase": "vision", "seed": 0})
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
    table5 = tables.table5(pd.DataFrame({"setup": ["A"], "seed": [0], "avg": [30.0]}))
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
    yield plots.table5_picture(table5)


def test_every_figure_draws_and_has_a_title(tmp_path):
    drawn = list(figures())
    for number, figure in enumerate(drawn):
        assert figure.get_suptitle()
        figure.savefig(tmp_path / f"{number}.png", dpi=30)
    assert len({figure.get_suptitle() for figure in drawn}) == len(drawn)


def test_the_same_figure_is_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        plots.save(plots.loss_curve(LOGS), "loss", tmp_path / folder, LOGS)
    for suffix in ("png", "pdf", "csv"):
        assert (tmp_path / "one" / f"loss.{suffix}").read_bytes() == (tmp_path / "two" / f"loss.{suffix}").read_bytes()


def test_colours_are_told_apart():
    for palette in (plots.SETUP_COLOURS, plots.MODALITY_COLOURS):
        assert len(set(palette.values())) == len(palette)


def test_training_curves_show_only_what_was_logged():
    titles = [ax.get_title() for ax in plots.training_curves(LOGS[LOGS["setup"] == "F"]).axes]
    assert "process reward" not in titles and "answer reward" in titles


def test_an_unknown_setup_is_refused():
    with pytest.raises(KeyError, match="Z"):
        plots.loss_curve(STEPS.assign(setup="Z"))
