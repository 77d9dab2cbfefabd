"""OphthaReason's stages on a real, tiny Qwen2.5-VL: the frozen stays, the trained moves; its rows and tables."""

import pandas as pd
import pytest
import torch

from fundus_lib import grpo, lexicon, settings, sft, training
from fundus_lib import model as models
from fundus_lib import ophthareason as stages
from fundus_lib.mm_retinal_reason import read_mm_retinal_reason
from fundus_lib.world import vignettes

SFT = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 4, "micro_batch": 4, "lora_rank": 0, "zero_stage": 0,
       "seed": 0}


@pytest.fixture(scope="module")
def captions(images):
    rows = [(f"r{i}", path.name, "CFP", ["Moderate NPDR"], "test" if i == 7 else "train")
            for i, path in enumerate(images)]
    records = pd.DataFrame(rows, columns=["id", "path", "modality", "labels", "split"])
    findings = pd.DataFrame({"record_id": ["r0", "r0", "r1"], "kept": [True, True, False],
                             "finding": ["retinal hemorrhage", "microaneurysm", "drusen"]})
    return stages.caption_rows(records, findings, images[0].parent)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    drawn = vignettes.complex_cases(seed=0, count=12)
    for split in ("train", "test"):
        vignettes.write_cases(folder, drawn, camera="clinic", height=32, split=split)
    return drawn, stages.case_rows(read_mm_retinal_reason(folder), folder)


def test_captions_say_what_was_kept_and_name_no_disease(captions):
    assert len(captions) == 7  # the test image is not among them
    assert captions.completion[0] == "This CFP image shows microaneurysm, retinal hemorrhage."
    assert set(captions.completion[1:]) == {"This is a CFP image."}
    assert not any(lexicon.find_labels(text) for text in captions.completion)


def test_cases_carry_their_history_up_to_six_images_and_a_reason(cases):
    drawn, rows = cases
    assert len(rows) == len(drawn) and set(rows.images.map(len)) == {1, 2, 3}
    for case, row in zip(drawn, rows.itertuples(), strict=True):
        assert row.prompt.startswith(case.history) and row.answer == case.answer not in row.prompt
        assert row.completion == f"<think> {case.reason} </think> <answer> {case.answer} </answer>"
        assert [grpo.rewards.answer_reward([""], [row.completion], answer=[said], kind=["open"])
                for said in (case.answer, "Stargardt disease")] == [[1.0], [0.0]]
    one = pd.DataFrame({"question_id": "b", "image": ["b.png"], "prompt": "?", "answer": "A"})
    both = stages.with_cases(one, rows)
    assert list(both.images[0]) == ["b.png"] and len(both) == 1 + len(rows)
    assert set(both.columns) == {"question_id", "images", "prompt", "answer"}


def test_each_stage_moves_what_it_trains_and_nothing_else(tiny_base, captions, cases, images, tmp_path):
    aligned, whole, rl = (tmp_path / name for name in ("aligned", "whole", "rl"))
    rows = cases[1].head(4).assign(images=[[str(path) for path in images[:count]] for count in (1, 2, 6, 6)])
    for name, frame in {"captions": captions.head(4), "rows": rows[["images", "prompt", "completion"]],
                        "rl": rows.drop(columns="completion")}.items():
        frame.to_parquet(tmp_path / f"{name}.parquet")
    for folder in (aligned, whole, rl):
        folder.mkdir()
    sft.train(aligned, start=str(tiny_base), rows=str(tmp_path / "captions.parquet"), train_vision=True,
              train_language=False, **SFT)
    sft.train(whole, start=str(aligned), rows=str(tmp_path / "rows.parquet"), train_vision=True, **SFT)
    s = settings.load("smoke")
    grpo.train(rl, setup="ophthareason_uadt", start=str(whole), rows=str(tmp_path / "rl.parquet"), judge=None,
               vocabulary=None, train_vision=False, zero_stage=0, seed=0, uadt=s.uadt.model_dump(),
               levels=s.rewards.model_dump(exclude={"judge"}), **s.grpo.model_dump() | {
                   "prompts_per_step": 2, "steps": 2, "learning_rate": 1e-2, "warmup_steps": 0, "kl_beta": 0.1,
                   "max_new_tokens": 8, "micro_batch": 8})
    moved = [stages.what_moved(*pair).set_index("part").changed for pair in
             ((tiny_base, aligned), (aligned, whole), (whole, rl))]
    seeing = moved[0].index.str.startswith("model.visual.")
    assert seeing.sum() == 3 and (moved[0][seeing] > 0).all() and (moved[0][~seeing] == 0).all()
    assert (moved[1] > 0).all()
    assert (moved[2][seeing] == 0).all()  # train_vision: False
    log = pd.read_csv(rl / "log.csv")
    assert log.kl[0] == pytest.approx(0, abs=1e-6) and log["uadt/threshold"].notna().all()  # the reference is the start


def test_the_reference_of_a_resumed_run_is_its_start_and_not_the_checkpoint(tiny_base, tmp_path):
    checkpoint = tmp_path / training.CHECKPOINTS / "checkpoint-1"
    model = models.load_model(tiny_base)
    torch.nn.init.zeros_(model.model.language_model.norm.weight)
    model.save_pretrained(checkpoint)
    (checkpoint / "trainer_state.json").write_text("{}")
    resumed, found = training.start_model(str(tiny_base), tmp_path, lora_rank=0, train_vision=False)
    assert found == str(checkpoint) and not resumed.model.language_model.norm.weight.any()
    assert resumed.config._name_or_path == str(tiny_base)


def rollouts(question, setup, step, right, words, entropy=float("nan")):
    turns = [{"role": "assistant", "content": " ".join(["word"] * words)}]
    return [{"setup": setup, "seed": 0, "step": step, "question_id": question, "completion": turns,
             "answer_reward": float(hit), "uncertainty": entropy} for hit in right]


def test_difficulty_and_gains_by_hand():
    rl, shaped = stages.TRAINED
    run = pd.DataFrame([
        *rollouts("a", rl, 1, [0, 0], 5), *rollouts("a", shaped, 1, [0, 1], 5, 0.9),  # 1 of 4: hard
        *rollouts("a", rl, 2, [0, 0], 5), *rollouts("a", shaped, 3, [1, 0], 9),
        *rollouts("b", rl, 1, [1, 1], 5), *rollouts("b", shaped, 1, [1, 1], 5, 0.1),  # all: easy
        *rollouts("b", rl, 2, [1, 0], 3), *rollouts("b", rl, 3, [1, 1], 6), *rollouts("b", shaped, 2, [1, 1], 6),
        *rollouts("c", rl, 1, [1, 1], 5), *rollouts("c", rl, 2, [1, 1], 5), *rollouts("c", shaped, 1, [1, 1], 5)])
    table = stages.by_question(run)
    assert table.question_id.to_list() == ["a", "b", "a", "b"]  # with UADT c was met once: nothing to compare
    assert table.level.to_list() == ["hard", "easy"] * 2 and table.right_at_first.to_list() == [0.25, 1] * 2
    assert table.entropy.to_list() == [0.9, 0.1] * 2  # nan without UADT
    assert table.accuracy.to_list() == [0, 1, 0.5, 1] and table.length.to_list() == [5, 6, 9, 6]
    gains = stages.uadt_gains(table).set_index(["of", "where"])
    assert gains.gain.to_dict() == {("length", "all"): 2, ("accuracy", "all"): 0.25}  # (4 + 0) / 2, (0.5 + 0) / 2
    more = pd.concat([table.assign(question_id=table.question_id + str(i)) for i in range(10)])
    gains = stages.uadt_gains(more).set_index(["of", "where"])
    assert gains.said["length", "more uncertain"] == "longer" and gains.gain["length", "hard"] == 4
    assert gains.said["accuracy", "easy"] == "no difference shown" and gains.n["accuracy", "easy"] == 10
