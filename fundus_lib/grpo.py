"""Group-relative policy optimisation with verifiable rewards, with TRL's GRPOTrainer looking once at an image."""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from fundus_lib import knowledge, rewards, training
from fundus_lib import model as models
from fundus_lib.sft import as_dataset

# Which setup starts from which (Fundus-R1, Tab. 5), and by which items the process reward judges those that have it.
STARTS = {"C": "A", "D": "B"} | dict.fromkeys(["F", "G", "H", "I", "J", "F_uadt", "G_uadt"], "E")
ITEMS = {"G": ("by answer",), "H": ("VF",), "I": ("DK",), "J": ("VF", "DK")}


def group_advantages(values: torch.Tensor, eps: float = 1e-4) -> torch.Tensor:
    """Score each rollout against its own group: (r - mean) / (std + eps). values: (groups, rollouts).

    What GRPOTrainer computes (scale_rewards="group"); a test holds the two together.
    """
    return (values - values.mean(1, keepdim=True)) / (values.std(1, keepdim=True) + eps)


def question_rows(questions: pd.DataFrame, findings: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Training questions with what the rewards read: answer, options, kind, label, modality, findings V(I).

    findings: findings.parquet of stage 03 (record_id, finding, kept).
    """
    from fundus_lib.questions import prompt

    seen = findings[findings.kept].groupby("record_id").finding.agg(list)
    rows = questions[questions.split == "train"]
    return pd.DataFrame({
        "question_id": rows.id, "image": [str(root / path) for path in rows.path],
        "prompt": [prompt(q, o, k) for q, o, k in zip(rows.question, rows.options, rows.kind, strict=True)],
        "answer": rows.answer, "options": rows.options, "kind": rows.kind, "label": rows.label,
        "modality": rows.modality, "findings": [list(seen.get(r, [])) for r in rows.record_id],
    })


def prepared(reward: Callable, **settings) -> Callable:
    """The reward with these settings, under its own name; the question's id goes beside its rollouts.

    Where the judge abstains from one rollout of a group, it gets the mean of the others: TRL would add a zero.
    """
    @functools.wraps(reward)
    def call(prompts, completions, question_id, log_extra, **columns):
        log_extra("question_id", question_id)
        values = pd.Series(reward(prompts=prompts, completions=completions, **settings, **columns), dtype=float)
        values = values.fillna(values.groupby(list(question_id)).transform("mean"))
        return [None if pd.isna(value) else value for value in values]

    return call


def rewards_of(setup: str, levels: dict) -> list[Callable]:
    """What a setup is rewarded for: answer and format, and the process by its ITEMS. levels: as in `train`."""
    items = ITEMS.get(setup.removesuffix("_uadt"))
    process = [prepared(rewards.process_reward, items=items, **levels)] if items else []
    return [prepared(rewards.answer_reward), prepared(rewards.format_reward), *process]


def train(folder: Path, *, setup: str, start: str, rows: str, prompts_per_step: int, rollouts: int, steps: int,
          learning_rate: float, warmup_steps: int, kl_beta: float, temperature: float, max_new_tokens: int,
          micro_batch: int, lora_rank: int, train_vision: bool, zero_stage: int, uadt: dict, levels: dict,
          judge: dict | None, vocabulary: str | None, seed: int) -> None:
    """Train one setup from the model at `start` on the questions in `rows` into `folder`; resumes.

    uadt: strength, temperature, decay and granularity of `UADTGRPOTrainer`; used by the setups named *_uadt.
    levels: right_tenuous and wrong_plausible of the process reward. judge: the settings section `server` whose text
    model judges traces; None: the rules do. vocabulary: the vocabulary.json to judge by; None: the embedded pages.
    """
    from trl import GRPOConfig

    from fundus_lib.uadt import UADTGRPOTrainer

    if vocabulary:
        knowledge.adopt(json.loads(Path(vocabulary).read_text(encoding="utf-8")))
    if judge:
        from fundus_lib.client import Client
        from fundus_lib.data.records import cache_folder
        from fundus_lib.opinions import LLMJudge
        from fundus_lib.settings import Server

        cache = cache_folder() / "answers.sqlite"  # a plain client: the judge may abstain where the server fails
        levels = levels | {"judge": LLMJudge(Client(Server(**judge), judge["text_model"], cache))}
    processor = models.load_processor(start)
    model, checkpoint = training.start_model(start, folder, lora_rank=lora_rank, train_vision=train_vision)
    checkpoints = folder / training.CHECKPOINTS
    machine = training.machine_arguments(prompts_per_step * rollouts, micro_batch, zero_stage)
    arguments = GRPOConfig(
        output_dir=str(checkpoints), max_steps=steps, num_generations=rollouts, beta=kl_beta,
        temperature=temperature, top_k=0,
        max_completion_length=max_new_tokens, learning_rate=learning_rate, lr_scheduler_type="linear",
        warmup_steps=warmup_steps, seed=seed,
        # One generation a step: every rollout is learned from by the policy that spoke it.
        steps_per_generation=machine["gradient_accumulation_steps"],
        generation_kwargs={"suppress_tokens": model.generation_config.suppress_tokens},
        log_completions=True, num_completions_to_print=1, save_strategy="steps", save_steps=max(1, steps // 5),
        **machine,
    )
    trainer = UADTGRPOTrainer(
        model, rewards_of(setup, levels), arguments, train_dataset=as_dataset(pd.read_parquet(rows)),
        processing_class=processor, callbacks=[training.LogWriter(folder / "log.csv")],
        **(uadt if setup.endswith("_uadt") else {"strength": 0.0}),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        parts = sorted((checkpoints / "completions").glob("*.parquet"))
        pd.concat(map(pd.read_parquet, parts)).to_parquet(folder / "rollouts.parquet", index=False)
    training.finish(trainer, processor, folder)


if __name__ == "__main__":
    training.follow_parent()
    target = Path(sys.argv[1])
    train(target, **json.loads((target / "job.json").read_text()))
