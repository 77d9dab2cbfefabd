"""Alarms on hand-made runs: a healthy one raises none, each disease its own; a loss that is no number stops a run."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from fundus_lib import grpo, rewards, watching

OPTIONS = [{"letter": "A", "text": "No DR"}, {"letter": "B", "text": "Moderate NPDR"}]
STEPS = np.arange(1, 21)


def log(**columns):
    """Twenty healthy steps, some columns replaced: a value, or one a step."""
    healthy = {"step": STEPS, "entropy": 0.25 - 0.005 * STEPS, "length": 30 + STEPS % 3,
               "completions/clipped_ratio": 0.02, "frac_reward_zero_std": 0.5}
    return pd.DataFrame(healthy | columns)


@pytest.mark.parametrize(("columns", "alarm"), [
    ({}, None), ({"entropy": 0.3 * 0.7 ** STEPS}, "entropy_collapse"), ({"length": 10 + 5 * STEPS}, "length_explosion"),
    ({"length": 60 - 2.5 * STEPS}, "length_collapse"), ({"completions/clipped_ratio": 1.0}, "all_clipped"),
    ({"frac_reward_zero_std": 1.0}, "no_reward_variance")])  # the last: what a constant reward looks like
def test_each_disease_of_a_log_raises_its_own_alarm(columns, alarm):
    assert list(watching.log_alarms(log(**columns))) == ([alarm] if alarm else [])
    assert watching.log_alarms(log(**columns).head(2 * watching.WINDOW - 1)) == {}, "too few steps to tell"


def rollouts(**columns):
    """Eight questions with four rollouts each, two of them right, scored by answer + format."""
    right = np.tile([True, True, False, False], 8)
    frame = pd.DataFrame({"step": 1, "question_id": np.repeat(list("abcdefgh"), 4), "right": right,
                          "text": [f"text {i}" for i in range(32)], "judgement": "plausible",
                          "advantage": np.where(right, 0.87, -0.87)})
    return frame.assign(**columns)


@pytest.mark.parametrize(("columns", "alarm"), [
    ({}, None), ({"text": "the same"}, "repeated_completions"), ({"judgement": "abstained"}, "silent_judge"),
    ({"advantage": np.tile([-0.87, -0.87, 0.87, 0.87], 8)}, "reward_against_answers"),
    ({"judgement": "no answer"}, None), ({"right": False}, None),
    ({"judgement": ["abstained"] * 8 + ["plausible"] * 24}, None)])
def test_each_disease_of_the_rollouts_raises_its_own_alarm(columns, alarm):
    assert list(watching.rollout_alarms(rollouts(**columns))) == ([alarm] if alarm else [])


def test_a_flipped_reward_is_seen_in_the_texts_not_in_what_was_rewarded(tmp_path, capsys):
    """A callback that watches five steps: the answer reward's sign is wrong, so that its own column looks fine."""
    questions = pd.DataFrame([{"question_id": "q", "prompt": "?", "answer": "B", "options": OPTIONS, "kind": "single"}])
    said = [f"<think> x </think> <answer> {letter} </answer>" for letter in "AABB"]
    earned = [-value for value in rewards.answer_reward(None, said, answer=["B"] * 4, options=[OPTIONS] * 4)]
    advantage = grpo.group_advantages(torch.tensor([earned]))[0].numpy()
    (tmp_path / "checkpoints" / "completions").mkdir(parents=True)
    watch = watching.Watch(tmp_path, questions)
    args = SimpleNamespace(output_dir=tmp_path / "checkpoints")
    for step in range(1, 7):
        state = SimpleNamespace(is_world_process_zero=True, global_step=step, log_history=[{"loss": 0.0, "step": step}])
        watch.on_log(args, state, None)
        pd.DataFrame({"step": step, "prompt": "?", "completion": [[{"role": "assistant", "content": s}] for s in said],
                      "answer_reward": earned, "question_id": "q", "advantage": advantage,
                      }).to_parquet(tmp_path / f"checkpoints/completions/completions_{step:05d}.parquet")
    raised = pd.read_csv(tmp_path / "alarms.csv")
    assert raised[["step", "alarm"]].to_numpy().tolist() == [[6, "reward_against_answers"]]
    assert "wrong sign" in raised.means[0] and "right -0.87, wrong +0.87" in raised.seen[0]
    assert "ALARM at step 6" in capsys.readouterr().out
    watch = watching.Watch(tmp_path, questions)  # resumed: an alarm is raised once
    watch.on_log(args, state, None)
    assert len(pd.read_csv(tmp_path / "alarms.csv")) == 1


def test_rollouts_of_unknown_questions_are_refused():
    with pytest.raises(ValueError, match="1 rollouts answer questions that are not"):
        watching.with_questions(pd.DataFrame({"question_id": ["x"], "prompt": "?", "completion": [[]]}),
                                pd.DataFrame({"question_id": ["q"], "answer": "A"}))


class Base:
    """As much of a trainer as `Guarded` needs."""

    def __init__(self, folder, loss, ids):
        self.args = SimpleNamespace(output_dir=folder / "checkpoints")
        self.accelerator = SimpleNamespace(process_index=0)
        self.state, self.loss, self.ids = SimpleNamespace(global_step=6), torch.tensor(loss), ids
        self.processing_class = SimpleNamespace(batch_decode=lambda ids: [f"text of {row}" for row in ids.tolist()])
        self.pictures = {True: SimpleNamespace(pixels=[torch.ones(4, 3)])}
        self.model = SimpleNamespace(config=SimpleNamespace(image_token_id=99))

    def compute_loss(self, model, inputs):
        return self.loss

    def listening(self, model, first, rollouts):
        return model

    def _generate_single_turn(self, prompt_ids):
        return self.ids, None


class Watched(watching.Guarded, Base):
    pass


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 0.5])
def test_a_loss_that_is_no_number_stops_with_its_batch_on_disk(tmp_path, loss):
    batch = {"completion_ids": torch.tensor([[1, 2], [3, 4]]), "advantages": torch.tensor([1.0, -1.0]), "images": [1]}
    trainer = Watched(tmp_path, loss, [])
    if loss == 0.5:
        assert trainer.compute_loss(None, batch) == 0.5 and not list(tmp_path.iterdir())
        return
    with pytest.raises(FloatingPointError, match=rf"step 7: the loss is {loss}.*bad_batch_0.safetensors"):
        trainer.compute_loss(None, batch)
    saved = load_file(tmp_path / "bad_batch_0.safetensors")
    assert torch.equal(saved["completion_ids"], batch["completion_ids"]) and saved["pixels/0"].shape == (4, 3)
    about = json.loads((tmp_path / "bad_batch_0.json").read_text())
    with pytest.raises(FloatingPointError, match="no probability.*bad_batch_0"):
        trainer.listening("model", torch.tensor([[0.0, float("nan")]]), 4)
    assert trainer.listening("model", torch.zeros(1, 2), 4) == "model"
    assert about == {"step": 7, "why": f"the loss is {loss}", "completions": ["text of [1, 2]", "text of [3, 4]"]}


def test_an_image_token_in_a_completion_is_named(tmp_path):
    assert Watched(tmp_path, 0.0, [[1, 2], [3]])._generate_single_turn([]) == ([[1, 2], [3]], None)
    with pytest.raises(ValueError, match=r"completions \[1\] hold the image token 99"):
        Watched(tmp_path, 0.0, [[1, 2], [3, 99]])._generate_single_turn([])


def test_progress_says_what_the_log_has(tmp_path):
    folder = tmp_path / "G" / "seed0"
    folder.mkdir(parents=True)
    assert watching.progress(folder) == "G/seed0: starting"
    pd.DataFrame({"loss": [0.1, 0.25], "reward": [1.0, 2.125], "answer_reward": [0.5, 0.7], "process_reward": None,
                  "entropy": 0.2, "frac_reward_zero_std": 0.46, "step": [1, 2]}).to_csv(folder / "log.csv", index=False)
    assert watching.progress(folder) == "G/seed0: loss 0.25, reward 2.12, answer 0.7, entropy 0.2, flat 0.46"


def test_drift_by_hand():
    """Ten groups in the first third and ten in the last: 0.2 up, with a standard error of 0.047 or 0.47."""
    def run(spread):
        noise = np.tile([-spread, spread], 15)
        return pd.DataFrame({"step": np.repeat([1, 2, 3], 10), "question_id": [*range(10)] * 3,
                             "reward": np.repeat([0.4, 0.5, 0.6], 10) + noise})

    moved = watching.drift(run(0.1), "reward")
    assert moved["last"] - moved["first"] == pytest.approx(0.2) and moved["verdict"] == "rose"
    reach = 2.101 * (2 * 0.1 ** 2 * (10 / 9) / 10) ** 0.5  # Student's t at 18 degrees of freedom
    assert [moved["low"], moved["high"]] == pytest.approx([0.2 - reach, 0.2 + reach], abs=1e-4)
    assert watching.drift(run(1.0), "reward")["verdict"] == "not shown"
    assert watching.drift(run(0.1).assign(reward=lambda r: -r.reward), "reward")["verdict"] == "fell"
