"""The trainers on a real, tiny Qwen2.5-VL: plain GRPO bit for bit, UADT bites, an interrupted run resumes."""

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from fundus_lib import grpo, rewards, runs, settings, training, watching
from fundus_lib import model as models
from fundus_lib.sft import answers_alone, as_dataset, steps
from fundus_lib.sft import train as sft_train
from fundus_lib.uadt import UADTGRPOTrainer

LEVELS = settings.load("smoke").rewards.model_dump(exclude={"judge"})
OPTIONS = [{"letter": "A", "text": "No DR"}, {"letter": "B", "text": "Moderate NPDR"}]


@pytest.fixture(scope="module")
def rows(images):
    count = len(images)
    return pd.DataFrame({
        "question_id": [f"q{i}" for i in range(count)], "image": [str(p) for p in images],
        "prompt": ["Which diagnosis fits this image? Options: A. No DR, B. Moderate NPDR"] * count,
        "answer": ["A", "B"] * (count // 2), "options": [OPTIONS] * count, "kind": ["single"] * count,
        "label": ["No DR", "Moderate NPDR"] * (count // 2), "modality": ["CFP"] * count,
        "findings": [["normal retinal vasculature"], ["microaneurysm", "retinal hemorrhage"]] * (count // 2),
    })


def even_length(prompts, completions, **_):
    """A reward that any model can earn: one token more or less changes it."""
    return [float(len(c[0]["content"]) % 2 == 0) for c in completions]


def trainer_of(kind, base, data, folder, steps, *, model=None, arguments=(), **extra):
    from trl import GRPOConfig

    torch.manual_seed(0)
    model = models.load_model(base) if model is None else model
    given = {
        "output_dir": str(folder), "max_steps": steps, "num_generations": 4, "seed": 0, "max_completion_length": 8,
        "steps_per_generation": 1, "learning_rate": 1e-3, "temperature": 1.0, "beta": 0.0, "save_strategy": "no",
        "generation_kwargs": {"suppress_tokens": model.generation_config.suppress_tokens},
        **training.machine_arguments(8, 8, 0), **dict(arguments)}
    return kind(model, even_length, GRPOConfig(**given),
                train_dataset=as_dataset(data) if isinstance(data, pd.DataFrame) else data,
                processing_class=models.load_processor(base), **extra)


def losses(trainer):
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_everything_off_is_trls_trainer_bit_for_bit_and_uadt_alone_is_not(tiny_base, rows, tmp_path):
    from trl import GRPOTrainer

    plain = losses(trainer_of(GRPOTrainer, tiny_base, rows, tmp_path, 20))
    off = losses(trainer_of(UADTGRPOTrainer, tiny_base, rows, tmp_path, 20, share=False, strength=0.0))
    on_trainer = trainer_of(UADTGRPOTrainer, tiny_base, rows, tmp_path, 20, share=False, strength=0.5)
    on = losses(on_trainer)
    assert len(plain) == 20 and plain == off
    assert plain != on and on_trainer.threshold > 0  # an untrained model is unsure: its entropy is near ln(400)


def test_strength_zero_leaves_the_shared_trainer_as_it_is_bit_for_bit(tiny_base, rows, tmp_path):
    from fundus_lib.shared_vision import SharedVisionGRPOTrainer

    plain = losses(trainer_of(SharedVisionGRPOTrainer, tiny_base, rows, tmp_path, 3))
    assert plain == losses(trainer_of(UADTGRPOTrainer, tiny_base, rows, tmp_path, 3, strength=0.0))
    assert plain != losses(trainer_of(UADTGRPOTrainer, tiny_base, rows, tmp_path, 3, strength=0.5))


def test_group_advantages_by_hand_and_as_trl_computes_them(tiny_base, rows, tmp_path):
    a = grpo.group_advantages(torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))
    assert torch.allclose(a[0], torch.tensor([0.866, 0.866, -0.866, -0.866]), atol=1e-3)
    assert (a[1] == 0).all()  # every rollout agrees: nothing to learn
    trainer = trainer_of(UADTGRPOTrainer, tiny_base, rows, tmp_path, 1, strength=0.0)
    trainer.train()
    values = torch.tensor(trainer._logs["rewards"]["even_length"]).view(-1, 4)
    logged = torch.tensor(trainer._logs["advantages"]).view(-1, 4)
    assert torch.allclose(grpo.group_advantages(values), logged, atol=1e-5)


def test_an_abstention_gets_the_mean_of_its_group_and_a_question_without_k_none():
    """TRL adds rewards up with nansum: an abstention would be a zero among its group. A wrong rollout whose judge is
    silent gets no more than any wrong one: with the mean of J's right ones (2) it would overtake them."""
    def judged(prompts, completions, **columns):
        return [1.0, None, 0.5, None, None, 2.0, None]

    said = [f"<think> x </think> <answer> {letter} </answer>" for letter in "AAAAAAB"]
    call = grpo.prepared(judged, wrong_plausible=0.4)
    got = call([], said, question_id=list("aaabbcc"), log_extra=lambda *_: None, answer=["A"] * 7,
               options=[OPTIONS] * 7, kind=["single"] * 7)
    assert got == [1, 0.75, 0.5, None, None, 2, 0.4]


def test_every_setup_of_table_5_starts_where_the_paper_says_and_is_rewarded_as_it_says():
    paper = pd.read_csv(runs.ROOT / "papers_figs/published/fundus_r1_table5.csv")
    assert {"A", "B", "E", *grpo.STARTS} == {*paper.setup, "F_uadt", "G_uadt"}
    assert grpo.STARTS["C"] == "A" and grpo.STARTS["D"] == "B" and {*grpo.STARTS.values()} == {"A", "B", "E"}
    trace = "<think> This CFP image shows microaneurysm. It indicates PDR. </think> <answer> PDR </answer>"
    columns = {"answer": ["B"], "options": [OPTIONS], "kind": ["single"], "label": ["Moderate NPDR"],
               "modality": ["CFP"], "findings": [["microaneurysm", "retinal hemorrhage"]]}
    for setup in grpo.STARTS:
        got = {reward.__name__: reward([], [trace], question_id=["a"], log_extra=lambda *_: None, **columns)[0]
               for reward in grpo.rewards_of(setup, LEVELS | {"wrong_plausible": 0.4})}
        process = {"G": 0, "H": 0.4, "I": 0, "J": 0.2}  # 0.4 x (VF: it sees what is there; DK: not what PDR needs)
        assert got == {"answer_reward": 0, "format_reward": 1} | (
            {"process_reward": process[setup[0]]} if setup[0] in process else {})


def test_setup_b_learns_the_answers_of_e_and_nothing_else():
    traces = pd.DataFrame({"image": ["a", "b"], "prompt": "?", "completion": [
        "<think> x </think> <answer> PDR </answer>", "<think> an <answer> y </think> <answer> No DR </answer>"]})
    alone = answers_alone(traces)
    assert alone.completion.to_list() == ["<answer> PDR </answer>", "<answer> No DR </answer>"]
    assert alone.drop(columns="completion").equals(traces.drop(columns="completion"))


@pytest.fixture(scope="module")
def job(tiny_base, rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    rows.to_parquet(path)
    return {
        "setup": "G_uadt", "start": str(tiny_base), "rows": str(path), "prompts_per_step": 2, "rollouts": 4,
        "steps": 5, "candidates": 1, "learning_rate": 1e-3, "warmup_steps": 0, "kl_beta": 0.0, "temperature": 1.0,
        "max_new_tokens": 8, "micro_batch": 8, "zero_stage": 0, "lora_rank": 0, "train_vision": False, "seed": 0,
        "levels": LEVELS, "judge": None, "vocabulary": None,
        "uadt": {"strength": 0.5, "temperature": 0.5, "decay": 0.9, "granularity": "rollout"},
    }


def test_an_interrupted_run_resumes_exactly_and_leaves_a_loadable_model(job, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    grpo.train(whole, **job)

    write = training.write_log

    def pull_the_plug(history, path):
        write(history, path)
        if len(history) == 3:  # after the third step; the second step's checkpoint is the last on disk
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "write_log", pull_the_plug)
    with pytest.raises(KeyboardInterrupt):
        grpo.train(cut, **job)
    monkeypatch.setattr(training, "write_log", write)
    grpo.train(cut, **job)

    expected, got = pd.read_csv(whole / "log.csv"), pd.read_csv(cut / "log.csv")
    for column in ("step", "loss", "reward", "entropy", "uadt/threshold", "length"):
        assert expected[column].tolist() == got[column].tolist(), column
    assert all(torch.equal(a, b) for a, b in zip(models.load_model(whole).parameters(),
                                                 models.load_model(cut).parameters(), strict=True))
    rollouts = pd.read_parquet(cut / "rollouts.parquet")
    assert len(rollouts) == 5 * 8 and set(rollouts.judgement) == {"no answer"}  # an untrained model writes no tags
    assert {"question_id", "answer_reward", "process_reward", "objections"} <= set(rollouts)
    assert pd.read_csv(cut / "alarms.csv").empty  # five steps are one window: nothing to compare
    assert list(watching.log_alarms(pd.concat([expected, got]))) == ["all_clipped", "no_reward_variance"]  # it earns 0
    assert not (cut / training.CHECKPOINTS).exists()


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_its_batch(job, tmp_path, monkeypatch):
    def format_reward(prompts, completions, **_):
        return even_length(prompts, completions)

    monkeypatch.setattr(rewards, "format_reward", format_reward)  # one that an untrained model earns now and then
    with pytest.raises(FloatingPointError, match=f"step 2: .*{tmp_path}/bad_batch_0.safetensors"):
        grpo.train(tmp_path, **(job | {"learning_rate": 1e30, "steps": 3}))
    assert load_file(tmp_path / "bad_batch_0.safetensors")["completion_ids"].shape == (8, 8)
    assert not (tmp_path / training.FINISHED).exists()


def test_lora_is_merged_into_a_model_that_loads(job, tiny_base, tmp_path):
    grpo.train(tmp_path, **(job | {"lora_rank": 4, "steps": 1}))
    before, after = models.load_model(tiny_base).named_parameters(), models.load_model(tmp_path).parameters()
    moved = [name for (name, a), b in zip(before, after, strict=True) if not torch.equal(a, b)]
    assert not (tmp_path / "adapter_config.json").exists()
    assert all(".visual." not in name for name in moved)


def test_sft_lowers_the_loss_and_leaves_the_vision_tower_alone(tiny_base, rows, tmp_path):
    path = tmp_path / "rows.parquet"
    rows.assign(completion="<think> This CFP image shows microaneurysm. </think> <answer> B </answer>").to_parquet(path)
    folder = tmp_path / "E"
    folder.mkdir()
    sft_train(folder, start=str(tiny_base), rows=str(path), epochs=3, learning_rate=1e-2, batch_size=4, micro_batch=2,
              lora_rank=0, train_vision=False, zero_stage=0, seed=0)
    log = pd.read_csv(folder / "log.csv")
    assert len(log) == steps(len(rows), 3, 4) == 6
    assert log.loss.iloc[-1] < log.loss.iloc[0]
    before, after = models.load_model(tiny_base), models.load_model(folder)
    assert torch.equal(before.model.visual.patch_embed.proj.weight, after.model.visual.patch_embed.proj.weight)
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)


def test_accumulated_micro_batches_keep_groups_whole_and_every_rollout(job, tmp_path):
    grpo.train(tmp_path, **(job | {"micro_batch": 4, "steps": 2}))
    log, rollouts = pd.read_csv(tmp_path / "log.csv"), pd.read_parquet(tmp_path / "rollouts.parquet")
    assert len(log) == 2 and (rollouts.groupby("step").size() == 8).all()
    assert (rollouts.groupby(["step", "question_id"]).size() % 4 == 0).all()


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="change micro_batch"):
        training.machine_arguments(10, 4, 0)


def test_a_failing_job_names_its_folder_and_shows_its_log(tmp_path):
    broken = training.Job("fundus_lib.grpo", tmp_path / "F" / "seed0", {"setup": "F", "seed": 0}, steps=1)
    with pytest.raises(RuntimeError, match=r"F/seed0.*\n(.*\n)*.*missing"):
        training.run_jobs([broken], workers=1)
