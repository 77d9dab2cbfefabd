"""OphthaReason's three stages: alignment, SFT on basic and complex questions, GRPO with a KL term and UADT.

Stated (figure of its repository): what each stage trains, on which kind of data. Not public: captions, rates, steps.
Captions here are ours. Only data sets that its authors trained on (in-domain) are trained on.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from fundus_lib import grpo, perception, sft, training
from fundus_lib import model as models
from fundus_lib.data import image_path
from fundus_lib.data.catalogue import catalogue
from fundus_lib.intervals import paired_interval
from fundus_lib.questions import prompt

ALIGNED, START, TRAINED = "alignment", "ophthareason_sft", ("ophthareason_rl", "ophthareason_uadt")
LEVELS = {"hard": 0.25, "middling": 0.75, "easy": 1.0}  # up to which share of right rollouts; ours


def in_domain() -> set[str]:
    """The data sets that OphthaReason's authors trained on."""
    return {name for name, entry in catalogue().items() if entry.roles.get("ophthareason") == "in-domain"}


def caption_rows(records: pd.DataFrame, findings: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Image-caption pairs of the training images: columns image, prompt, completion.

    A caption says the modality and the findings kept in stage 03 (findings.parquet). It names no disease, yet is not
    free of labels: a vote was asked for the vocabulary of its image's label. The side is left out: the frozen language
    part of the small model has no words for it in a caption, and the vision part would be bent until it says them.
    """
    seen = findings[findings.kept].groupby("record_id").finding.agg(frozenset)
    rows = records[records.split == "train"]
    captions = [perception.caption(row.modality, seen[row.id]) if row.id in seen else f"This is a {row.modality} image."
                for row in rows.itertuples()]
    return pd.DataFrame({"image": [str(image_path(root, path)) for path in rows.path],
                         "prompt": perception.ASK_CAPTION, "completion": captions})


def case_rows(cases: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Complex training cases of `read_mm_retinal_reason(folder)` for SFT and GRPO: images (paths, up to six), prompt
    (with the history), completion (the record's reason, then the answer), and what the rewards read."""
    rows = cases[(cases.task == "complex") & (cases.split == "train") & cases.reason.astype(bool)]
    return pd.DataFrame({
        "question_id": rows.id, "images": [[str(image_path(folder, name)) for name in names] for names in rows.images],
        "prompt": [prompt(row.question, row.options, row.kind) for row in rows.itertuples()],
        "completion": [perception.answer(row.reason, row.answer) for row in rows.itertuples()],
        "answer": rows.answer, "options": None, "kind": "open", "label": None, "modality": None, "topic": "case",
        "findings": [[] for _ in range(len(rows))]})


def with_cases(rows: pd.DataFrame, cases: pd.DataFrame) -> pd.DataFrame:
    """Questions about one image (column image) and cases in one table, all with column images."""
    basic = rows.assign(images=[[path] for path in rows.image]).drop(columns="image")
    return pd.concat([basic, cases[basic.columns]], ignore_index=True)


def alignment_job(stage, rows: Path) -> training.Job:
    """Stage 1 from the base model: the vision tower and its projector learn, the language part does not."""
    s = {name.removeprefix("alignment_"): value for name, value in stage.settings.ophthareason if "alignment" in name}
    return training.Job("fundus_lib.sft", stage.folder / ALIGNED, {
        "start": perception.base_path(stage.path("base_model", "model")), "rows": str(rows), "lora_rank": 0, **s,
        "train_vision": True, "train_language": False, "zero_stage": stage.settings.zero_stage, "seed": stage.seed},
        steps=sft.steps(len(pd.read_parquet(rows)), s["epochs"], s["batch_size"]))


def sft_jobs(stage, rows: Path) -> dict[tuple[str, int], training.Job]:
    """Stage 2, as setup E but from the aligned model: {(setup, seed): job}."""
    own = {"start": str(stage.folder / ALIGNED), "epochs": stage.settings.ophthareason.sft_epochs}
    steps = sft.steps(len(pd.read_parquet(rows)), own["epochs"], stage.settings.sft.batch_size)
    return {key: replace(job, arguments=job.arguments | own, steps=steps)
            for key, job in sft.jobs(stage, stage.folder, {START: rows}, stage.seeds).items()}


def rl_jobs(stage, rows: Path, starts: Path) -> dict[tuple[str, int], training.Job]:
    """Stage 3, as setup F but from the models of stage 2 in `starts`, with a KL term; *_uadt also shapes advantages."""
    s = stage.settings.ophthareason
    return {(setup, seed): replace(job, folder=stage.folder / setup / f"seed{seed}", steps=s.rl_steps,
                                   arguments=job.arguments | {"setup": setup, "steps": s.rl_steps, "kl_beta": s.kl_beta,
                                                              "start": str(starts / START / f"seed{seed}")})
            for (_, seed), job in grpo.jobs(stage, stage.folder, rows, starts, ["F"], stage.seeds).items()
            for setup in TRAINED if setup in stage.settings.setups}


def what_moved(before: str | Path, after: str | Path) -> pd.DataFrame:
    """Parts of a model: part, parameters, changed (how many of them training has changed in any bit)."""
    old, new = (dict(models.load_model(path).named_parameters()) for path in (before, after))
    rows = [(".".join(name.split(".")[:3]), value.numel(), int((value != new[name]).sum()))
            for name, value in old.items()]
    return pd.DataFrame(rows, columns=["part", "parameters", "changed"]).groupby("part", as_index=False).sum()


def by_question(rollouts: pd.DataFrame) -> pd.DataFrame:
    """A row a setup and question, runs averaged: setup, question_id, right_at_first, level, entropy, accuracy, length.

    rollouts: setup, seed, step, question_id, completion, answer_reward, uncertainty (nats; of UADT's runs alone). Level
    and entropy are of the first groups, of all runs together: they start alike, so that a level is the same for each.
    accuracy and length (words) are of the last group. A question that some setup met once is left out.
    """
    frame = rollouts.assign(length=[len(turns[0]["content"].split()) for turns in rollouts.completion])
    steps = frame.groupby(["setup", "seed", "question_id"]).step
    first, last = frame.step == steps.transform("min"), frame.step == steps.transform("max")
    before = frame[first].groupby("question_id").agg(right_at_first=("answer_reward", "mean"),
                                                     entropy=("uncertainty", "mean"))
    late = frame[last & ~first].groupby(["setup", "question_id"], as_index=False).agg(
        accuracy=("answer_reward", "mean"), length=("length", "mean"))
    met = late.groupby("question_id").setup.transform("nunique") == rollouts.setup.nunique()
    late = late[met].merge(before, on="question_id")
    return late.assign(level=pd.cut(late.right_at_first, [-1, *LEVELS.values()], labels=[*LEVELS]).astype(str))


def uadt_gains(table: pd.DataFrame) -> pd.DataFrame:
    """What the last rollouts gain with UADT over those without (`by_question`), paired by question: of, where, gain,
    low, high, n, said. where: all, the half of more and of less entropy before training, and each level."""
    wide = table.pivot(index="question_id", columns="setup", values=["accuracy", "length"])
    about = table.drop_duplicates("question_id").set_index("question_id").loc[wide.index]
    unsure = about.entropy > about.entropy.median()
    parts = {"all": unsure | True, "more uncertain": unsure, "less uncertain": ~unsure}
    parts |= {level: about.level == level for level in LEVELS}
    rows = []
    for of, words in {"length": ("longer", "shorter"), "accuracy": ("better", "worse")}.items():
        for where, chosen in ((where, chosen) for where, chosen in parts.items() if chosen.sum() > 1):
            gain, low, high = paired_interval(*(wide[of][setup][chosen] for setup in TRAINED[::-1]))
            said = words[high < 0] if low > 0 or high < 0 else "no difference shown"
            rows.append((of, where, gain, low, high, int(chosen.sum()), said))
    return pd.DataFrame(rows, columns=["of", "where", "gain", "low", "high", "n", "said"])
