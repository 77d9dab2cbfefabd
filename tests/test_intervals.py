"""Intervals, paired tests, seeds, calibration: by hand, against other libraries, and by simulation of known truths."""

import random
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from statsmodels.regression.mixed_linear_model import MixedLM
from statsmodels.stats.proportion import proportion_confint

from fundus_lib import evaluation, intervals
from fundus_lib.questions import as_options

GRADES = ["No DR", "Mild NPDR", "Moderate NPDR", "Severe NPDR", "PDR"]


def asked(benchmark, task, file, images, options, truths):
    """Questions of one file: image i is images[i], and truths[i] (a text or several) is right."""
    rows = [(f"{file}::{i}", benchmark, task, str(image), as_options(options),
             ",".join("ABCDEF"[options.index(text)] for text in ([truth] if isinstance(truth, str) else truth)))
            for i, (image, truth) in enumerate(zip(images, truths, strict=True))]
    return pd.DataFrame(rows, columns=["id", "benchmark", "task", "content", "options", "answer"])


def answered(questions, right, rng):
    """Predictions: the truth where `right`, else another letter."""
    said = [truth if ok else rng.choice([o["letter"] for o in options if o["letter"] not in truth])
            for truth, options, ok in zip(questions.answer, questions.options, right, strict=True)]
    return pd.DataFrame({"extracted": said, "hit": np.equal(said, questions.answer.to_numpy())})


def small_world(rng, images=40):
    """All three benchmarks, an image in several of them, yes/no, several answers, grades, a single category."""
    draw = lambda names: [rng.choice(names) for _ in range(images)]  # noqa: E731
    several = [sorted(rng.sample("wxyz", rng.randint(1, 3))) for _ in range(images)]
    parts = [asked("FunBench", "L1a", "L1-m/L1a-c", range(images), ["CFP", "OCT", "UWF"], draw(["CFP", "OCT"])),
             asked("FunBench", "L2b", "L2-a/L2b-e", range(images), ["left", "right"], ["left"] * images),
             asked("FunBench", "L3a", "L3-l/L3a-r/L3a1-MA", range(images), ["No", "Yes"], draw(["No", "Yes"])),
             asked("FunBench", "L3a", "L3-l/L3a-r/L3a2-HE", range(9), ["No", "Yes"], ["No", "Yes", "No"] * 3),
             asked("FunBench", "L3b", "L3-l/L3b-p", range(images), list("wxyz"), several),
             asked("FunBench", "L4c", "L4-d/L4c-g", range(images), GRADES, draw(GRADES)),
             *(asked("FunBench", "L4b", "L4-d/L4b-m", range(half, half + 20), names, [*names] * 6 + [names[0]] * 2)
               for half, names in ((0, ["a", "b", "c"]), (20, ["c", "d", "e"]))),  # only c is always offered
             asked("Omni-Fundus", "MR", "omni", range(20, 20 + images), ["CFP", "OCT"], draw(["CFP", "OCT"])),
             asked("Omni-Fundus", "DD", "omni", range(images), GRADES, draw(GRADES)),
             asked("GMAI-Fundus", "DD", "gmai", range(30, 30 + images), GRADES, draw(GRADES))]
    return pd.concat(parts, ignore_index=True)


def test_wilson_by_hand_and_against_scipy():
    assert intervals.wilson_interval([True] * 5 + [False] * 5) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert intervals.wilson_interval([True] * 10)[1] == 1
    theirs = binomtest(3, 40).proportion_ci(method="wilson")
    assert intervals.wilson_interval([0.5] * 6 + [0] * 34) == pytest.approx((theirs.low, theirs.high))  # halves count


def test_questions_about_one_image_are_one_observation():
    hits, images = [1, 1, 0, 1, 1, 1], list("aabbcd")  # 5 of 6, about four images
    assert intervals.interval_by_image(hits, images) == pytest.approx(proportion_confint(4 * 5 / 6, 4, method="wilson"))
    f1 = intervals.interval_by_image([0.5, 1, 0.2, 0.8], list("abcd"))
    assert f1 == pytest.approx(intervals.interval_by_image([0.5, 1, 0.2, 0.8] * 3, list("abcd") * 3))  # no surer
    assert 0.2 < f1[0] < 0.625 < f1[1] < 1


def test_paired_interval():
    gain, low, high = intervals.paired_interval([1] * 30 + [0] * 70, [0] * 100)
    assert gain == pytest.approx(0.3) and 0.2 < low < 0.25 and 0.35 < high < 0.4
    assert intervals.paired_interval([1, 0], [1, 0]) == (0, 0, 0)
    a, b = [1, 0] * 50, [0, 1] * 50
    assert intervals.paired_interval(a, b)[1] < 0 < intervals.paired_interval(a, b)[2]
    assert intervals.paired_interval(a, b) == intervals.paired_interval(a, b)  # seeded


def test_every_column_is_the_runs_mean_of_table_scores():
    rng = random.Random(0)
    questions = small_world(rng)
    runs = [answered(questions, [rng.random() < share for _ in questions.id], rng) for share in (0.5, 0.8)]
    got = intervals.score_intervals(questions, runs, 50, 0).set_index("column")
    rows = [evaluation.table_scores(questions, run) for run in runs]
    assert set(got.index) == set(rows[0]) and got.index[0] == "avg"
    assert got["score"].to_dict() == pytest.approx({name: fmean(row[name] for row in rows) for name in rows[0]},
                                                   abs=1e-9)
    assert (got.low < got.score).all() and (got.score < got.high).all()
    assert got.n[["avg", "omni", "gmai", "L3"]].tolist() == [70, 60, 40, 40]  # images 0..69, 0..59, 30..69, 0..39
    one = questions["benchmark"] == "Omni-Fundus"
    part = intervals.score_intervals(questions[one], [runs[0][one.to_numpy()]], 50, 0)
    assert part.column.tolist() == ["omni", "MR", "DDo"]  # no average of fewer benchmarks


def test_an_image_that_weighs_three_is_an_image_three_times():
    """The weights x counts of the bootstrap, against table_scores of questions that are really repeated."""
    rng = random.Random(1)
    questions = small_world(rng)
    run = answered(questions, [rng.random() < 0.6 for _ in questions.id], rng)
    cells = intervals.judgements(questions, run)
    columns, shares = intervals.table_columns(list(cells))
    unit = questions["content"].factorize()[0]
    times = np.array([[rng.randint(1, 4) for _ in range(70)] for _ in range(5)])
    for weights, ours in zip(times, 100 * intervals.cell_scores(cells, times) @ shares, strict=True):
        again = np.repeat(np.arange(len(questions)), weights[unit])
        theirs = evaluation.table_scores(questions.iloc[again], run.iloc[again])
        assert dict(zip(columns, ours, strict=True)) == pytest.approx(theirs, abs=1e-9)


def width(questions, run):
    table = intervals.score_intervals(questions, [run], 400, 0).set_index("column")
    return table.at["omni", "high"] - table.at["omni", "low"]


def test_questions_of_an_image_or_a_patient_that_agree_widen_the_interval():
    """Four questions an image with one fate: a quarter of the observations, twice the width (within a fifth: 400
    resamples place a percentile to about 7 %, and there are four of them)."""
    images = np.repeat(np.arange(100), 4)
    questions = asked("Omni-Fundus", "DD", "omni", images, ["a", "b"], ["a"] * 400)
    run = answered(questions, np.repeat(np.arange(100) % 3 > 0, 4), random.Random(0))
    naive = width(questions.assign(content=[str(i) for i in range(400)]), run)
    assert width(questions, run) == pytest.approx(2 * naive, rel=0.2)
    patient = questions.assign(content=[str(i) for i in range(400)], patient=[str(image) for image in images])
    assert width(patient, run) == pytest.approx(2 * naive, rel=0.2)
    unknown = patient.assign(patient=[None] * 200 + [str(image) for image in images[200:]])
    assert naive < width(unknown, run) < width(patient, run)  # an image without a patient stands for itself


def test_all_right_all_wrong_and_a_category_of_one_image_are_not_certain():
    """10 of 10 have Jeffreys' interval (82 % to 1; 2,000 resamples place its end to about 1.5 points)."""
    questions = asked("Omni-Fundus", "DD", "omni", range(10), ["a", "b"], ["a"] * 10)
    for right in (True, False):
        run = answered(questions, [right] * 10, random.Random(0))
        row = intervals.score_intervals(questions, [run], 2000, 0).iloc[0]
        low, high = (100 * end for end in proportion_confint(10 * right, 10, method="jeffreys"))
        expected = (100, low, 100) if right else (0, 0, high)
        assert (row.score, row.low, row.high) == pytest.approx(expected, abs=2.5)
    fine = asked("FunBench", "L1b", "L1-m/L1b-f", range(41), ["a", "b", "c"], ["a"] * 20 + ["b"] * 20 + ["c"])
    row = intervals.score_intervals(fine, [answered(fine, [True] * 41, random.Random(0))], 500, 0).iloc[0]
    assert (row.score, row.high) == pytest.approx((100, 100))
    assert row.low < 80  # one image may be luck, and it is a third of the score
    rare = asked("FunBench", "L1b", "L1-m/L1b-f", range(12), list("abcdef"), list("abcdef") * 2)
    row = intervals.score_intervals(rare, [answered(rare, [False] + [True] * 11, random.Random(0))], 500, 0).iloc[0]
    assert row.low + 5 < row.score < row.high - 5  # the prior alone would put the interval below the score


def test_95_percent_intervals_hold_the_truth():
    """200 sets of 60 images with two questions each, that agree more often than chance. 95 of 100 by binomial luck is
    92 to 98 of 100 here; few images and a curved F1 may cost or add one or two: 90 to 99."""
    rng, held, sets = np.random.default_rng(0), {"omni": 0, "funbench": 0}, 200
    images = np.repeat(np.arange(60), 2)
    truths = np.where(np.arange(120) % 4 < 2, "Yes", "No")
    omni = asked("Omni-Fundus", "DD", "omni", images, ["No", "Yes"], truths)
    questions = pd.concat([omni, asked("FunBench", "L3a", "L3-l/L3a-r/L3a1-MA", images, ["No", "Yes"], truths)])
    true = {"omni": 70.0, "funbench": 100 * evaluation.harmonic_mean(0.8, 0.6)}  # of right answers 0.8 and 0.6
    for number in range(sets):
        luck = np.where(rng.random(120) < 0.5, np.repeat(rng.random(60), 2), rng.random(120))  # half of it the image's
        right = luck < np.where(truths == "Yes", 0.8, 0.6)
        run = answered(questions, np.tile(right, 2), random.Random(0))
        table = intervals.score_intervals(questions, [run], 200, number).set_index("column")
        for column, score in true.items():
            held[column] += table.at[column, "low"] <= score <= table.at[column, "high"]
    assert all(0.90 * sets <= count <= 0.99 * sets for count in held.values()), held


def test_shuffled_labels_score_at_chance_within_the_interval():
    """Answers of a perfect model, truths permuted: 2 (k-1) / k^2 in FunBench, 1/k in accuracy. Of 2 x 40 intervals at
    95 %, 70 is what fewer than one in 1,000 such tests would miss."""
    rng, held = random.Random(0), 0
    for number in range(40):
        truth, said = GRADES * 30, GRADES * 30
        rng.shuffle(truth)
        both = [asked(name, "L4c", "L4-d/L4c-g", range(150), GRADES, truth) for name in ("FunBench", "Omni-Fundus")]
        questions = pd.concat(both, ignore_index=True)
        letters = ["ABCDE"[GRADES.index(text)] for text in said] * 2
        run = pd.DataFrame({"extracted": letters, "hit": np.equal(letters, questions.answer.to_numpy())})
        table = intervals.score_intervals(questions, [run], 200, number).set_index("column")
        held += sum(table.at[column, "low"] <= chance <= table.at[column, "high"]
                    for column, chance in (("funbench", 32), ("omni", 20)))
    assert held >= 70


def test_pairs_by_hand():
    """Five images, all better: of 2^5 signs two are as extreme, p = 1/16. Holm multiplies the smallest of three p
    values by 3, the next by 2, and never lets a larger p become the smaller one."""
    hits = pd.DataFrame({"A": [0.0] * 5, "E": [1, 1, 1, 1, 0.5], "F": [1, 1, 0, 0, 0.5], "G": [0, 0, 0, 1, 0.0]})
    table = intervals.compare_pairs(hits, [("E", "A"), ("F", "A"), ("G", "A"), ("A", "A")], 200, 0).set_index("pair")
    assert table.columns.tolist() == ["gain", "low", "high", "p", "p_holm", "detectable", "n"]
    assert table.gain.tolist() == pytest.approx([90, 50, 20, 0]) and (table.n == 5).all()
    assert table.p.tolist() == pytest.approx([2 / 32, 2 / 8, 1, 1])  # F: three images differ; G: one
    assert table.p_holm.tolist() == pytest.approx([4 * 2 / 32, 3 * 2 / 8, 1, 1])
    assert table.detectable[:3].tolist() == pytest.approx(
        [2.8016 * 100 * np.std(hits[name], ddof=1) / 5**0.5 for name in "EFG"], abs=0.01)
    assert np.isnan(table.detectable["A - A"])
    assert intervals.compare_pairs(hits, [], 200, 0).empty


def test_a_detectable_difference_is_found_four_times_in_five():
    """300 pairs of setups whose true difference is `detectable`; 80 % by luck is 73 to 87 % (3 standard errors)."""
    rng, spread, n = np.random.default_rng(0), 40, 100
    detectable = 2.8016 * spread / n**0.5
    hits = pd.DataFrame(rng.normal(detectable, spread, (n, 300)) / 100).assign(base=0.0)
    table = intervals.compare_pairs(hits, [(setup, "base") for setup in range(300)], 199, 0)
    assert 0.73 <= (table.p < 0.05).mean() <= 0.87
    assert table.detectable.mean() == pytest.approx(detectable, rel=0.02)  # each to 7 %, 1 / sqrt(2 * 100); 300 of them


def runs(gain):
    """seeds x images gains of F over E as seed_effect reads them: E is always wrong."""
    seeds, images = (grid.ravel() for grid in np.indices(gain.shape))
    one = pd.DataFrame({"seed": seeds, "content": images, "hit": gain.ravel(), "setup": "F"})
    return pd.concat([one, one.assign(setup="E", hit=0.0)])


@pytest.mark.filterwarnings("ignore::statsmodels.tools.sm_exceptions.ConvergenceWarning")
def test_seeds_and_images_as_statsmodels_fits_them():
    rng = np.random.default_rng(1)
    gain = 0.1 + rng.normal(0, 0.1, (5, 1)) + rng.normal(0, 0.3, (1, 16)) + rng.normal(0, 0.2, (5, 16))
    row = intervals.seed_effect(runs(gain), [("F", "E")]).iloc[0]
    frame = runs(gain).query("setup == 'F'")
    fit = MixedLM.from_formula("hit ~ 1", frame, groups=np.ones(len(frame)), re_formula="0",
                               vc_formula={"seed": "0 + C(seed)", "image": "0 + C(content)"}).fit()
    assert row.gain == pytest.approx(100 * fit.fe_params.iloc[0]) and (row.seeds, row.n) == (5, 16)
    seed = dict(zip(fit.model.exog_vc.names, fit.vcomp, strict=True))["seed"]
    assert row.seed_sd == pytest.approx(100 * seed**0.5, rel=1e-2)  # its optimiser's tolerance
    assert row.high - row.gain > 1.96 * 100 * fit.bse_fe.iloc[0]   # t, not normal: five seeds
    ratio = (row.high - row.gain) / (100 * fit.bse_fe.iloc[0])
    assert ratio < 2.776  # t with 4 degrees of freedom: the images add to them


def test_seeds_count_in_the_interval():
    """True gain 0, spread of runs 3 points. 120 sets of 3 runs: with the seeds 90 to 99 % hold 0 (95 % by luck is 91 to
    99); one run's interval over the images in under 75 %, and that is what a claim from one run amounts to."""
    rng, held, naive = np.random.default_rng(0), 0, 0
    for _ in range(120):
        gain = rng.normal(0, 0.03, (3, 1)) + rng.normal(0, 0.1, (1, 60)) + rng.normal(0, 0.1, (3, 60))
        row = intervals.seed_effect(runs(gain), [("F", "E")]).iloc[0]
        held += row.low <= 0 <= row.high
        naive += abs(gain[0].mean()) < 1.96 * gain[0].std(ddof=1) / 60**0.5
    assert 108 <= held <= 119 and naive < 90


def test_too_few_seeds_are_refused_and_a_gap_is_named():
    long = runs(np.full((2, 4), 0.5))
    row = intervals.seed_effect(long, [("F", "E")]).iloc[0]
    assert row.gain == 50 and np.isnan([row.low, row.high]).all()
    assert row.verdict == "no interval: 2 seeds in common, 3 are needed"
    with pytest.raises(ValueError, match="F, seed 0 lacks 1 of 4 images"):
        intervals.seed_effect(long.iloc[1:], [("F", "E")])


def test_calibration_by_hand():
    confidence, hits = [0.1, 0.05, 0.85, 0.9, 0.9, 1.0], [0, 0, 1, 1, 0, 1]
    table = intervals.reliability(confidence, hits)
    assert table.bin.tolist() == [0.1, 0.9, 1.0] and table.n.tolist() == [2, 3, 1]  # closed above; none between
    assert table.accuracy.tolist() == pytest.approx([0, 2 / 3, 1])
    assert table[["low", "high"]].iloc[1].tolist() == pytest.approx(intervals.wilson_interval([1, 1, 0]))
    error, n = intervals.calibration_error(confidence, hits)
    assert n == 6 and error == pytest.approx((2 * 0.075 + 3 * (2.65 / 3 - 2 / 3) + 0) / 6)
    assert intervals.calibration_error([0.0, 1.0], [1, 0])[0] == 1  # sure and wrong
    for bad in ([0.5, float("nan")], [0.5, 1.2], [0.5]):
        with pytest.raises(ValueError, match="abstention"):
            intervals.reliability(bad, [1, 0])


def test_risk_coverage_and_abstention_by_hand():
    table = intervals.risk_coverage([0.5, 0.9, 0.5, 0.7], [0, 1, 1, 0])
    assert table.confidence.tolist() == [0.9, 0.7, 0.5] and table.n.tolist() == [1, 2, 4]  # equally sure: together
    assert table.coverage.tolist() == [0.25, 0.5, 1] and table.risk.tolist() == [0, 0.5, 0.5]
    assert table[["low", "high"]].iloc[2].tolist() == pytest.approx(intervals.wilson_interval([1, 1, 0, 0]))
    share, low, high, n = intervals.abstention(["ok", "missing", "refused", "ok"])
    assert (share, n) == (0.5, 4) and (low, high) == pytest.approx(intervals.wilson_interval([1, 1, 0, 0]))


def test_statistics_are_imported_when_asked_for():
    source = Path(intervals.__file__).read_text(encoding="utf-8")
    assert not [line for line in source.splitlines() if line.startswith(("from scipy", "from statsmodels",
                                                                         "import scipy", "import statsmodels"))]
