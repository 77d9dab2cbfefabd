"""A trained setup with its card, and its data for other trainers: python -m fundus_lib.export --profile cpu --setup G

Schemas were read in LLaMA-Factory ff6d4d1 (0.9.6.dev0: data/README.md, data/dataset_info.json, its parser.py) and in
verl b178a3c (0.8.0.dev: examples/data_preprocess/geo3k.py, verl/utils/dataset/rl_dataset.py)."""

import argparse
import re
import shutil
import sys
from pathlib import Path
from string import Template

import datasets
import pandas as pd
from pyarrow.parquet import ParquetWriter

from fundus_lib import grpo, ophthareason, perception, runs, sft, tables
from fundus_lib import model as models
from fundus_lib import settings as profiles
from fundus_lib.data import download_root, image_path
from fundus_lib.data.records import cache_folder

CARD = (Path(__file__).parent / "references/export_card.md").read_text(encoding="utf-8")
STARTS = sft.STARTS | dict.fromkeys(ophthareason.TRAINED, ophthareason.START)
INFO = {"fundus_traces": {
    "file_name": "traces.json", "formatting": "sharegpt", "columns": {"messages": "messages", "images": "images"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}}}


def write_traces(rows: pd.DataFrame, root: Path, folder: Path) -> str:
    """Rows of `sft.trace_rows` as LLaMA-Factory's sharegpt data with images; returns the first image's place in it."""
    names = {}
    for path in rows["image"].unique():
        file = image_path(root, path)
        names[path] = Path("images", file.relative_to(root if root in file.parents else cache_folder())).as_posix()
        (folder / names[path]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / names[path])
    runs.write(folder / "traces.json", [{"images": [names[row.image]], "messages": [
        {"role": "user", "content": f"<image>{row.prompt}"}, {"role": "assistant", "content": row.completion}]}
        for row in rows.itertuples()])
    runs.write(folder / "dataset_info.json", INFO)
    return names[rows["image"][0]]


def write_questions(rows: pd.DataFrame, root: Path, file: Path) -> None:
    """Rows of `grpo.question_rows` as verl's parquet, with the images' bytes: 100 of them are in memory at a time."""
    rows, more = rows.astype(object).where(rows.notna(), None), ["kind", "label", "modality", "findings", "options"]
    made = datasets.Dataset.from_list([{
        "data_source": "fundus_lab", "prompt": [{"role": "user", "content": f"<image>{row['prompt']}"}],
        "images": [str(image_path(root, row["image"]))], "ability": "fundus_reading",
        "reward_model": {"style": "rule", "ground_truth": row["answer"]},
        "extra_info": {"split": "train", "index": index} | {name: row[name] for name in ["question_id", *more]}}
        for index, row in enumerate(rows.to_dict("records"))]).cast_column("images", datasets.List(datasets.Image()))
    with ParquetWriter(file, made.features.arrow_schema) as writer:
        for batch in made.with_format("arrow").iter(100):
            writer.write_table(datasets.table.embed_table_storage(batch))


def card(stage: runs.Stage, setup: str, facts: dict[str, dict], asked: pd.DataFrame, **fields: str) -> str:
    """The model card. stage: may read 07_evaluation; facts: stage -> manifest; asked: the training questions, with
    column traced; fields: parameters, image and question of the template."""
    ran, way, rows = facts["07_evaluation"], [setup], []
    while way[0] != "A":
        way.insert(0, STARTS.get(way[0], "A"))
    used = ["sft"] * (setup != "A") + ["grpo", "rewards", "uadt"] * (setup in STARTS) + setup.split("_")[:1]
    for key, (theirs, tag) in profiles.flat(profiles.load("paper"), {*used}).items():
        value = ran["settings"][key.split(".")[0]].get(key.split(".")[1], "-")
        rows.append((key, value, tag if tag in (profiles.GUESS, profiles.OURS) else f"{theirs} ({tag})"))
    data = asked.groupby("dataset").agg(images=("path", "nunique"), questions=("id", "size"), traces=("traced", "sum"))
    data.loc["all"] = data.sum()
    for name, row in {"scores": "column", "diagnosis": "source"}.items():
        table = stage.read("07_evaluation", f"{name}.csv").query("setup in ['best constant', 'A', @setup]")
        table["cell"] = [f"{x.score:.1f} [{x.low:.1f}, {x.high:.1f}], n={x.n}" for x in table.itertuples()]
        fields[name] = tables.markdown(table.set_index([row, "setup"])["cell"].unstack(sort=False).reset_index())
    hub = ran["settings"]["base_model"]["hub_id"]  # a line of the card that begins with a case stands for it alone:
    case = "real" if ran["data"] else "drawn", "hub" if hub else "own"
    text = re.sub(r"^(drawn|real|hub|own): (.*\n)", lambda line: line[2] if line[1] in case else "", CARD, flags=re.M)
    return Template(text).substitute(
        fields, setup=setup, profile=stage.profile, seed=stage.seed, seeds=len(ran["seeds"]), road=" -> ".join(way),
        hub=hub, data=tables.markdown(data.reset_index()), run=tables.markdown(tables.run_table(facts)),
        settings=tables.markdown(pd.DataFrame(rows, columns=["setting", "value", "paper"])),
        tokens=ran["settings"]["evaluation"]["max_new_tokens"], noise=f"{tables.NOISE:.0f}",
        labels=", ".join(sorted(asked["label"].dropna().unique())))


def export(stage: runs.Stage, setup: str, out: Path) -> None:
    """Write model, card and data sets of a finished run into the new folder `out`; stage: the run's 08_paper_figures.
    FileNotFoundError and RunError name what is missing, or was made from something else, and the command."""
    if out.exists() and any(out.iterdir()):
        raise runs.RunError(f"{out} is not empty.\n  remove it, or name another folder:  --out")
    facts = {name: stage.of(name).content() and stage.of(name).manifest for name in runs.STAGES[stage.name]}
    for name, fact in facts.items():
        if old := [before for before, content in fact["read"].items() if content != facts[before]["content"]]:
            raise runs.RunError(f"{name} was made from another {old[0]}.\n  run it:  {stage.of(name).command}")
    if setup not in (known := [*dict.fromkeys(["A", *facts["07_evaluation"]["settings"]["setups"]])]):
        raise runs.RunError(f"no setup {setup} was evaluated{profiles.nearest(setup, known)}\n  there are {known}")
    place = "06_grpo" if setup in STARTS else "05_sft", f"{setup}/seed{stage.seed}"
    source = perception.base_path(stage.path(*("base_model", "model") if setup == "A" else place))
    questions, root = stage.read("01_data", "questions.parquet"), download_root(stage)
    traces, seen = stage.read("04_trace_qc", "traces.parquet"), stage.read("03_vf_voting", "findings.parquet")
    (out / "verl").mkdir(parents=True)
    model, rows = models.load_model(source), sft.trace_rows(questions, traces, Path())
    models.save(model, models.load_processor(source), out)
    image = write_traces(rows, root, out / "llama_factory")
    write_questions(grpo.question_rows(questions, seen, Path()), root, out / "verl/train.parquet")
    asked = questions.assign(traced=questions["id"].isin(traces["question_id"][traces["kept"]]))
    (out / "README.md").write_text(encoding="utf-8", data=card(
        stage, setup, facts, asked[asked["split"] == "train"], image=repr(f"llama_factory/{image}"),
        question=repr(rows["prompt"][0]), parameters=f"{model.num_parameters():,}", kind=type(model).__name__))


def main(arguments: list[str] | None = None, root: Path = runs.ROOT) -> int:
    """The command line; 1 after an error that the message explains."""
    parser = argparse.ArgumentParser(prog="python -m fundus_lib.export", description=__doc__.splitlines()[0])
    for name, default in {"profile": "cpu", "data": "", "setup": "G", "seed": 0, "out": ""}.items():
        parser.add_argument(f"--{name}", default=default, type=type(default), help=f"by default {default!r}")
    chosen = parser.parse_args(arguments)
    try:
        stage = runs.Stage("08_paper_figures", chosen.profile, chosen.data, chosen.seed, root=root)
        out = Path(chosen.out or stage.folder.parent / f"export/{chosen.setup}-seed{chosen.seed}")
        export(stage, chosen.setup, out)
        print(out)
        return 0
    except (runs.RunError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
