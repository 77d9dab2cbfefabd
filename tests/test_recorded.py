"""Long runs: what is run in which order, what a record keeps, what is never repeated or mixed."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from fundus_lib import answering, evaluation, recorded, runs, training

OPTIONS = [{"letter": letter, "text": text} for letter, text in zip("ABC", ("Yes", "No", "drusen"), strict=True)]
QUESTIONS = pd.DataFrame([
    ("L1/L1a::a.png", "FunBench", "L1a", "single", OPTIONS, "A", "one", "clinic"),
    ("L1/L1a::b.png", "FunBench", "L1a", "single", OPTIONS, "B", "two", "clinic"),
    ("AR-1", "GMAI-Fundus", "AR", "multi", OPTIONS, "A,C", "one", "transfer"),
    ("AR-2", "GMAI-Fundus", "AR", "multi", OPTIONS, "A,B", "three", "transfer"),
    ("MR-1", "Omni-Fundus", "MR", "single", OPTIONS, "C", "four", "screening"),
], columns=recorded.COLUMNS).assign(question="?", image="x.png")
SAID = ["<answer> A </answer>", "I cannot tell.", "<answer> A, C </answer>", "<answer> C </answer>", "the answer is C"]


def test_the_plan_grows_seed_by_seed_and_the_weak_regime_comes_first():
    plan = recorded.planned()
    assert plan[:9] == [*(("weak", setup, 0) for setup in recorded.MAIN), ("weak", "E", 1)] and plan[39][2] == 4
    assert Counter(regime for regime, *_ in plan) == {"weak": 40 + 1 + 9, "cpu": 1 + 33, "oracle": 9}
    assert len(set(plan)) == len(plan)
    for regime in ("weak", "cpu"):  # a start is trained before what starts from it
        order = {run: place for place, run in enumerate(plan) if run[0] == regime}
        assert all(order[regime, "E", seed] < order[regime, "G", seed] for seed in range(3))
        assert all(order[regime, "B", seed] < order[regime, "D", seed] for seed in range(3))
    assert recorded.planned(["cpu"], ["F", "G"], [2]) == [("cpu", "F", 2), ("cpu", "G", 2)]


@pytest.mark.parametrize("extracted, text", [
    (["A", None, "A,C", float("nan"), "B"], "A,,AC,,B"), ([None] * 5, ",,,,"),
    (["A", "B", "A,C", "A,B", "C"], "A,B,AC,AB,C")])
def test_answers_come_back_from_their_letters(extracted, text):
    assert recorded.compact(extracted) == text
    back = recorded.expand(text, QUESTIONS)
    assert [letters if isinstance(letters, str) else None for letters in extracted] == back.extracted.to_list()
    assert back.hit.to_list() == [one == truth for one, truth in zip(extracted, QUESTIONS.answer, strict=True)]


def test_the_letters_have_the_scores_of_the_whole_predictions():
    whole = evaluation.score_predictions(QUESTIONS, SAID)
    back = recorded.expand(recorded.compact(whole.extracted), QUESTIONS)
    assert back.hit.to_list() == whole.hit.to_list() == [True, False, True, False, True]
    assert evaluation.table_scores(QUESTIONS, back) == evaluation.table_scores(QUESTIONS, whole)


def test_questions_survive_the_file_and_others_are_refused(tmp_path):
    file = tmp_path / "weak" / "questions.parquet"
    assert recorded.same_questions(QUESTIONS, file) == recorded.same_questions(QUESTIONS, file)
    assert set(runs.read(file)) == set(recorded.COLUMNS)
    others = [QUESTIONS.iloc[::-1], QUESTIONS.iloc[1:], QUESTIONS.assign(options=[OPTIONS[::-1]] * 5)]
    for questions in others:
        with pytest.raises(runs.RunError, match=r"questions\.parquet holds other questions .*\n  undo"):
            recorded.same_questions(questions, file)


def test_a_curve_is_thinned_to_means():
    log = pd.DataFrame({"step": range(1, 61), "loss": 0.5, "length": range(60), "epoch": 0.1})
    kept = recorded.thinned(log)
    assert kept["steps"] == 60 and kept["curve"][:2] == ["step,loss,length", "1.5,0.5,0.5"] and len(kept["curve"]) == 31
    assert kept["first_ten"] == {"loss": 0.5, "length": 4.5} and kept["last_ten"]["length"] == 54.5
    assert len(recorded.thinned(log.head(2))["curve"]) == 3


@pytest.fixture()
def regime(tmp_path, monkeypatch):
    """A regime of E and F whose training and answers are made up; `trained` lists the runs that were started."""
    made, trained = recorded.Regime.__new__(recorded.Regime), []
    made.name, made.folder, made.models = "weak", tmp_path / "runs", tmp_path / "models"
    made.stage = SimpleNamespace(settings=SimpleNamespace(workers=2, evaluation=None))
    made.same = {"inputs": {"01_data": "1"}, "settings": {"sft": {}}, "finder_s2": 0.7, "commit": "abc"}
    made.questions, made.base = QUESTIONS, str(start := tmp_path / "base")
    start.mkdir()
    (start / "model.safetensors").write_bytes(b"base")
    made.jobs = {(name, seed): training.Job("m", made.models / name / f"seed{seed}", {
        "start": str(start if name == "E" else made.models / "E" / f"seed{seed}")}, 2)
        for name in "EF" for seed in (0, 1)}

    def fake(jobs, workers):
        for job in jobs:
            if not (job.folder / training.FINISHED).exists():
                trained.append(f"{job.folder.parent.name}{job.folder.name[-1]}")
                assert Path(job.arguments["start"], "model.safetensors").exists(), "trained before its start"
                pd.DataFrame({"step": [1, 2], "loss": [0.2, 0.1]}).to_csv(job.folder / "log.csv", index=False)
                (job.folder / "model.safetensors").write_text(job.folder.parent.name)
                (job.folder / training.FINISHED).touch()

    monkeypatch.setattr(recorded, "run_jobs", fake)
    monkeypatch.setattr(answering, "answer_questions", lambda *_: SAID)
    made.trained = trained
    return made


def test_a_finished_run_is_recorded_and_never_repeated(regime, tmp_path):
    assert regime.run_all([("E", 0), ("F", 0)]) == 0 and regime.trained == ["E0", "F0"]
    one, two = (json.loads((tmp_path / f"runs/weak/{name}-seed0.json").read_text()) for name in "EF")
    assert two["start"] == one["weights"] and two["commit"] == "abc" and two["training"]["steps"] == 2
    assert one["scores"]["omni"] == 100 and one["answers"] == "A,,AC,C,C" and not one["resumed"]
    assert regime.run_all([("F", 0)]) == 0 and len(regime.trained) == 2


def test_a_start_that_was_cleaned_away_is_trained_again_but_not_recorded_again(regime, tmp_path):
    file = tmp_path / "runs/weak/E-seed1.json"
    runs.write(file, {"seed": 1})
    assert regime.run_all([("F", 1)]) == 0 and regime.trained == ["E1", "F1"]
    assert file.read_text() == '{\n "seed": 1\n}' and (tmp_path / "runs/weak/F-seed1.json").exists()


def test_a_failed_run_is_named_and_does_not_stop_the_others(regime, tmp_path, monkeypatch, capsys):
    def answer(model, *_):
        if "/F/" in str(model):
            raise ValueError("no image")
        return SAID

    monkeypatch.setattr(answering, "answer_questions", answer)
    assert regime.run_all([("F", 0), ("E", 1)]) == 1
    assert "('F', 0): no image" in capsys.readouterr().err and (tmp_path / "runs/weak/E-seed1.json").exists()


def test_a_regime_without_a_profile_is_an_error_that_says_so(monkeypatch, capsys):
    monkeypatch.setattr(recorded, "PLAN", (("weka", ("E",), 1),))
    assert recorded.main([]) == 1
    assert "there is no profile 'weka'" in capsys.readouterr().err


def written(folder, regime, setup, seed, extracted, **changed):
    """A record of made-up answers, as far as it is read again."""
    runs.write(recorded.record_file(regime, setup, seed, folder), {
        "inputs": {}, "settings": {}, "machine": "m", "commit": "c0ffee", "seconds": {"training": 60, "evaluation": 30},
        "scores": {"avg": 50.0 + seed, "L4": 40.0}, "answers": recorded.compact(extracted)} | changed)


@pytest.fixture()
def folder(tmp_path):
    """Records of five runs of E, which misses all, and F, which misses seed's number; one of G, none of the others."""
    one, sources = QUESTIONS[QUESTIONS.id == "MR-1"].assign(task="DD"), ["transfer", "transfer", "clinic", "clinic"] * 5
    several = pd.concat([one.assign(id=f"DD-{i}", content=f"{i}", source=source) for i, source in enumerate(sources)],
                        ignore_index=True)
    recorded.same_questions(several, tmp_path / "weak" / "questions.parquet")
    for seed in range(5):
        written(tmp_path, "weak", "E", seed, [None] * 20)
        written(tmp_path, "weak", "F", seed, ["A"] * seed + ["C"] * (20 - seed))
    written(tmp_path, "weak", "G", 0, ["C"] * 20)
    return tmp_path


def test_every_planned_run_has_a_row_and_a_missing_one_says_so(folder):
    frame, hits = recorded.records("weak", folder)
    assert len(frame) == 50 and frame.avg.notna().sum() == 11 and len(hits) == 11 * 20
    assert frame[frame.setup == "F"].diagnosis.to_list() == pytest.approx([100, 95, 90, 85, 80])
    assert frame[frame.setup == "F"].transfer.to_list() == pytest.approx([100, 90, 80, 80, 80])
    table = recorded.summary(frame).set_index("setup")
    assert table.runs[["F", "G", "H", "A"]].to_list() == [
        "5 of 5 seeds", "1 of 5 seeds, the rest not run", "not run (0 of 5 seeds)", "not run (0 of 1 seeds)"]
    assert table.avg[["F", "G", "H"]].to_list() == ["52.0 [50.0, 54.0]", "50.0", "-"]  # 2.776 x 1.581 / sqrt(5) = 1.96
    assert table.minutes["F"] == 1.5 and table.commit["F"] == "c0ffee"


def test_gains_are_paired_by_seed_and_judged_by_their_interval(folder):
    gains = recorded.gains(*recorded.records("weak", folder)).set_index(["on", "pair"])
    one = gains.loc["diagnosis", "F - E"]
    assert one.gain == pytest.approx(90) and one.low < 90 < one.high and one.seeds == 5 and one.n == 20
    assert one.verdict == "shown" and gains.loc["transfer", "F - E"].n == 10
    assert gains.loc["diagnosis", "G - F"].verdict == "too few runs (1 of 5 seeds)"
    assert gains.loc["transfer", "J - G"].verdict == "too few runs (0 of 5 seeds)"


def test_runs_on_other_inputs_or_settings_are_no_pair(folder):
    written(folder, "weak", "F", 4, ["C"] * 20, settings={"grpo": {"steps": 1}})
    gains = recorded.gains(*recorded.records("weak", folder)).set_index(["on", "pair"])
    assert gains.loc["diagnosis", "F - E"].verdict == "shown (4 of 5 seeds)"


def test_without_any_record_all_rows_are_missing(tmp_path):
    frame, hits = recorded.records("oracle", tmp_path)
    assert recorded.summary(frame).runs.to_list() == ["not run (0 of 3 seeds)"] * 3
    gains = recorded.gains(frame, hits)
    assert gains.pair.to_list() == ["F - E", "G - F"] * 2 and set(gains.verdict) == {"too few runs (0 of 5 seeds)"}
