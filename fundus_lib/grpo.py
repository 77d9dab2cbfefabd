"""Group-relative policy optimisation with verifiable rewards, with TRL's GRPOTrainer looking once at an image."""

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import torch

from fundus_lib import knowledge, perception, rewards, training, watching
from fundus_lib import model as models
from fundus_lib.sft import STARTS, as_dataset

# By which items the process reward judges the setups that have one (Fundus-R1, Tab. 5).
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
        "modality": rows.modality, "topic": rows.task + " " + rows.label.fillna(""),
        "findings": [list(seen.get(r, [])) for r in rows.record_id],
    })


def prepared(reward: Callable, **settings) -> Callable:
    """The reward with these settings, under its own name; the question's id goes beside its rollouts.

    Where the judge abstains from a rollout, it gets the mean of the others of its group (TRL would add a zero), but a
    wrong one no more than wrong_plausible: it would overtake a right one.
    """
    @functools.wraps(reward)
    def call(prompts, completions, question_id, log_extra, **columns):
        if reward is rewards.answer_reward:  # once: TRL keeps the last as many as there are rollouts
            log_extra("question_id", question_id)
        values = pd.Series(reward(prompts=prompts, completions=completions, log_extra=log_extra, **settings, **columns),
                           dtype=float)
        if (silent := values.isna()).any():
            right = pd.Series(rewards.answer_reward(prompts, completions, **columns)) == 1
            means = values.groupby(list(question_id)).transform("mean")
            values = values.mask(silent, means.where(right, means.clip(upper=settings["wrong_plausible"])))
        return [None if pd.isna(value) else value for value in values]

    return call


def rewards_of(setup: str, levels: dict) -> list[Callable]:
    """What a setup is rewarded for: answer and format, and the process by its ITEMS. levels: as in `train`. C and D,
    which no trace has taught, need not reason."""
    items, reasoned = ITEMS.get(setup.removesuffix("_uadt")), setup not in ("C", "D")
    process = [prepared(rewards.process_reward, items=items, **levels)] if items else []
    return [*(prepared(part, reasoned=reasoned) for part in (rewards.answer_reward, rewards.format_reward)), *process]


def train(folder: Path, *, setup: str, start: str, rows: str, prompts_per_step: int, rollouts: int, steps: int,
          candidates: int, learning_rate: float, warmup_steps: int, kl_beta: float, temperature: float,
          max_new_tokens: int, micro_batch: int, lora_rank: int, train_vision: bool, zero_stage: int,
          uadt: dict, levels: dict, judge: dict | None, vocabulary: str | None, seed: int) -> None:
    """Train one setup from the model at `start` on the questions in `rows` into `folder`; resumes.

    uadt: strength, temperature, decay and granularity of `UADTGRPOTrainer`; used by the setups named *_uadt.
    levels: the settings section `rewards` without its judge: levels of the process reward, weights of all. judge: the
    settings section `server` whose text model judges traces; None: the rules do. vocabulary: the vocabulary.json to
    judge by; None: the embedded pages.
    """
    from trl import GRPOConfig

    from fundus_lib.uadt import UADTGRPOTrainer

    class Trainer(watching.Guarded, UADTGRPOTrainer):
        """Stops with its batch on disk where a loss is no number."""

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
    machine = training.machine_arguments(prompts_per_step * rollouts, micro_batch, zero_stage, group=rollouts)
    questions, functions = pd.read_parquet(rows), rewards_of(setup, levels)
    arguments = GRPOConfig(
        output_dir=str(checkpoints), max_steps=steps, num_generations=rollouts, beta=kl_beta,
        temperature=temperature, top_k=0,
        reward_weights=[levels[function.__name__.replace("reward", "weight")] for function in functions],
        max_completion_length=max_new_tokens, learning_rate=learning_rate, lr_scheduler_type="linear",
        warmup_steps=warmup_steps, seed=seed,
        # One generation a step: every rollout is learned from by the policy that spoke it.
        steps_per_generation=machine["gradient_accumulation_steps"],
        generation_kwargs={"suppress_tokens": model.generation_config.suppress_tokens},
        log_completions=True, num_completions_to_print=1, save_strategy="steps", save_steps=max(1, steps // 5),
        **machine,
    )
    trainer = Trainer(
        model, functions, arguments, train_dataset=as_dataset(questions), processing_class=processor,
        candidates=candidates, callbacks=[training.LogWriter(folder / "log.csv"), watching.Watch(folder, questions)],
        **(uadt if setup.endswith("_uadt") else {"strength": 0.0}),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        parts = sorted((checkpoints / "completions").glob("*.parquet"))
        pd.concat(map(pd.read_parquet, parts)).to_parquet(folder / "rollouts.parquet", index=False)
    training.finish(trainer, processor, folder)


def jobs(stage, folder: Path, rows: Path, starts: Path, setups: Iterable[str],
         seeds: Iterable[int]) -> dict[tuple[str, int], training.Job]:
    """{(setup, seed): its run, in `folder`} on the questions in `rows`. starts: where the runs of B and E lie.

    stage: one that may read base_model and 02_knowledge_rag, with the settings."""
    own = not stage.settings.knowledge.embedded_only
    base, steps = perception.base_path(stage.path("base_model", "model")), stage.settings.grpo.steps
    same = {"rows": str(rows), "uadt": stage.settings.uadt.model_dump(), "zero_stage": stage.settings.zero_stage,
            "levels": stage.settings.rewards.model_dump(exclude={"judge"}),
            "judge": stage.settings.server.model_dump() if stage.settings.rewards.judge == "llm" else None,
            "vocabulary": str(stage.path("02_knowledge_rag", "vocabulary.json")) if own else None,
            "train_vision": stage.settings.sft.train_vision, **stage.settings.grpo.model_dump()}
    return {(setup, seed): training.Job("fundus_lib.grpo", folder / setup / f"seed{seed}", {
        "setup": setup, "seed": seed, **same,
        "start": base if STARTS[setup] == "A" else str(starts / STARTS[setup] / f"seed{seed}")}, steps)
        for setup in setups for seed in seeds}


if __name__ == "__main__":
    training.main(train)
