"""Watching a run of GRPO: alarms for training that goes wrong, rollouts beside their questions, progress in one line.

An alarm says what was seen, what it means and what to try. Every threshold is a guess: an alarm is a reason to look."""

import json
from pathlib import Path

import pandas as pd
from safetensors.torch import save_file
from scipy.stats import ttest_ind
from torch import Tensor
from transformers import TrainerCallback

from fundus_lib import runs
from fundus_lib.answers import extract_answer
from fundus_lib.lexicon import reference
from fundus_lib.questions import option_texts
from fundus_lib.traces import SHAPE

WINDOW = 5  # steps at either end of a run that are compared; an alarm needs two windows
MEANS = reference("alarms.json")  # alarm: what it means, what to try


def log_alarms(log: pd.DataFrame) -> dict[str, str]:
    """{alarm: what was seen} in a run's log.csv: the last WINDOW steps against the first. Empty before two windows."""
    if len(log) < 2 * WINDOW:
        return {}
    first, last = log.head(WINDOW).mean(numeric_only=True), log.tail(WINDOW).mean(numeric_only=True)
    length = f"{first['length']:.0f} -> {last['length']:.0f} tokens"
    clipped, flat = last["completions/clipped_ratio"], last["frac_reward_zero_std"]
    seen = {"entropy_collapse": (last["entropy"] < 0.1 * first["entropy"],
                                 f"entropy {first['entropy']:.3g} -> {last['entropy']:.3g} nats"),
            "length_explosion": (last["length"] > 2 * first["length"], length),
            "length_collapse": (last["length"] < 0.5 * first["length"], length),
            "all_clipped": (clipped > 0.9, f"{clipped:.0%} of the rollouts are cut"),
            "no_reward_variance": (flat > 0.95, f"{flat:.0%} of the groups have one reward")}
    return {name: text for name, (raised, text) in seen.items() if raised}


def rollout_alarms(rollouts: pd.DataFrame) -> dict[str, str]:
    """{alarm: what was seen} in the rollouts of some steps: step, question_id, text, right, advantage, judgement."""
    seen, top = {}, rollouts["text"].value_counts(normalize=True)
    if rollouts["question_id"].nunique() > 4 and top.iloc[0] > 0.5:
        seen["repeated_completions"] = f"{top.iloc[0]:.0%} of {len(rollouts)} rollouts: {top.index[0][:80]!r}"
    mixed = rollouts[rollouts.groupby(["step", "question_id"])["right"].transform("nunique") == 2]
    means = mixed.groupby("right")["advantage"].mean()
    if len(mixed) and means[True] < means[False]:
        seen["reward_against_answers"] = f"mean advantage: right {means[True]:+.2f}, wrong {means[False]:+.2f}"
    sent = rollouts.get("judgement", pd.Series(dtype=str)).dropna().loc[lambda words: words != "no answer"]
    if len(sent) and (silent := sent.str.contains("abstained").mean()) > 0.5:
        seen["silent_judge"] = f"abstained from {silent:.0%} of {len(sent)} rollouts"
    return seen


def with_questions(rollouts: pd.DataFrame, questions: pd.DataFrame) -> pd.DataFrame:
    """Rollouts as TRL logs them, with text, their question's row (`grpo.question_rows`), and right: whether the text
    gives the right answer in the asked form, read here and not taken from what was rewarded."""
    joined = rollouts.drop(columns="prompt").merge(questions, on="question_id", validate="many_to_one")
    if len(joined) != len(rollouts):
        raise ValueError(f"{len(rollouts) - len(joined)} rollouts answer questions that are not in rows.parquet")
    joined["text"] = [completion[0]["content"] for completion in joined["completion"]]
    said = [extract_answer(row.text, option_texts(row.options) or None, row.kind).value if SHAPE.fullmatch(row.text)
            else None for row in joined.itertuples()]
    joined["right"] = [",".join(s) if isinstance(s, list) else s for s in said] == joined["answer"]
    return joined


class Watch(TrainerCallback):
    """Writes the alarms of a run to <folder>/alarms.csv, each when it is first raised, and into its train.log.

    questions: rows.parquet. A step's rollouts are read from what TRL logs, a step later."""

    def __init__(self, folder: Path, questions: pd.DataFrame):
        self.file, self.questions, self.recent = folder / "alarms.csv", questions, {}
        none = pd.DataFrame(columns=["step", "alarm", "seen", "means", "try"])
        self.raised = pd.read_csv(self.file) if self.file.exists() else none

    def on_log(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        for file in sorted((Path(args.output_dir) / "completions").glob("*.parquet"))[-WINDOW:]:
            if file.name not in self.recent:
                self.recent[file.name] = with_questions(pd.read_parquet(file), self.questions)
        self.recent = dict(sorted(self.recent.items())[-WINDOW:])
        seen = log_alarms(pd.DataFrame([row for row in state.log_history if "loss" in row]).rename(
            columns={"completions/mean_length": "length"}))
        if len(self.recent) == WINDOW:
            seen |= rollout_alarms(pd.concat(self.recent.values()))
        new = [[state.global_step, name, text, *MEANS[name].values()] for name, text in seen.items()
               if name not in set(self.raised["alarm"])]
        for alarm in new:
            print("ALARM at step {}, {}: {}; {}. Try {}.".format(*alarm), flush=True)
        self.raised = pd.DataFrame([*self.raised.to_numpy().tolist(), *new], columns=self.raised.columns)
        runs.write(self.file, self.raised)


class Guarded:
    """Mixed into a GRPO trainer: it stops where the loss or the policy's next token is no number, with the batch it
    learned from last on disk, and at an image token in a completion, which has no pixels behind it."""
    learned: tuple[dict, list[Tensor]] = ({}, [])  # batch, pixels of its images

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.learned = inputs, self.pictures[True].pixels
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return loss if loss.isfinite().all() else self.stop(f"the loss is {loss.item()}")

    def listening(self, model, first, rollouts):
        heard = super().listening(model, first, rollouts)
        return heard if first.isfinite().all() else self.stop("the policy's next token has no probability")

    def stop(self, why: str):
        """FloatingPointError, with the batch in bad_batch_<process>.safetensors and .json beside log.csv."""
        path = Path(self.args.output_dir).parent / f"bad_batch_{self.accelerator.process_index}"
        batch, pixels = self.learned
        tensors = batch | {f"pixels/{i}": value for i, value in enumerate(pixels)}
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()
                   if isinstance(value, Tensor)}, path.with_suffix(".safetensors"))
        step, texts = self.state.global_step + 1, self.processing_class.batch_decode(batch.get("completion_ids", []))
        path.with_suffix(".json").write_text(json.dumps({"step": step, "why": why, "completions": texts}, indent=1))
        raise FloatingPointError(f"step {step}: {why}. The batch learned from last is in {path}.safetensors and .json, "
                                 "weights in the last checkpoint. Try a lower learning_rate or more warmup_steps.")

    def _generate_single_turn(self, *args, **kwargs):
        ids, logps = super()._generate_single_turn(*args, **kwargs)
        if places := [i for i, row in enumerate(ids) if self.model.config.image_token_id in row]:
            raise ValueError(f"completions {places} hold the image token {self.model.config.image_token_id}, which has "
                             "no pixels behind it: add it to suppress_tokens in the model's generation_config.json")
        return ids, logps


def progress(folder: Path) -> str:
    """The last step of a run in a few words, from its log.csv: "G/seed0: reward 2.10, answer 0.70, ..."."""
    names = {"loss": "loss", "reward": "reward", "answer_reward": "answer", "format_reward": "format", "kl": "KL",
             "process_reward": "process", "length": "length", "entropy": "entropy", "frac_reward_zero_std": "flat"}
    lines = file.read_text().splitlines() if (file := folder / "log.csv").exists() else []
    last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True)) if len(lines) > 1 else {}
    said = [f"{short} {float(last[name]):.3g}" for name, short in names.items() if last.get(name)]
    return f"{folder.parent.name}/{folder.name}: {', '.join(said) or 'starting'}"


def drift(rollouts: pd.DataFrame, column: str) -> dict[str, float | str]:
    """How a column moved from the first third of a run's steps to the last: their means over groups, Welch's 95 %
    interval of the change, and a verdict: rose | fell | not shown. rollouts: step, question_id, the column."""
    groups = rollouts.groupby(["step", "question_id"])[column].mean()
    steps = groups.index.get_level_values("step")
    third = (steps.max() - steps.min() + 1) / 3
    first, last = groups[steps < steps.min() + third], groups[steps > steps.max() - third]
    low, high = ttest_ind(last, first, equal_var=False).confidence_interval()
    verdict = "rose" if low > 0 else "fell" if high < 0 else "not shown"
    return {"first": first.mean(), "last": last.mean(), "low": low, "high": high, "verdict": verdict}
