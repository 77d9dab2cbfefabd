"""Questions about images with answers that the labels prove (VQA triplets), and the one prompt template they share.

Levels as in FunBench: L1a modality, L2b side, L3a one lesion, L4a one disease, L4b diagnosis, L4c DR grade.
"""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from fundus_lib.data import ANNOTATED
from fundus_lib.data.idrid import DME_RISKS, GRADES
from fundus_lib.data.records import codes

MODALITIES = ("CFP", "OCT", "UWF")
SIDES = ("Right eye", "Left eye")
YES_NO = ("Yes", "No")
MODALITY, LATERALITY = "Which imaging modality is this?", "Which eye is this?"
DIAGNOSIS, GRADE = "What is the diagnosis?", "What is the grade of diabetic retinopathy?"
TASKS = {"L1a": "modality", "L2b": "laterality", "L3a": "lesion", "L4a": "binary diagnosis", "L4b": "diagnosis",
         "L4c": "DR grade"}
# Labels that are no diagnosis of an image: TOP's systemic one, IDRiD's risk (asked nowhere yet), names of lesions.
NO_DIAGNOSIS = {"Diabetes mellitus", *DME_RISKS, *(finding for known in ANNOTATED.values() for finding in known)}
MOST_OPTIONS = 6  # as many as FunBench offers
COLUMNS = ["id", "record_id", "path", "split", "modality", "dataset", "camera", "level", "task", "kind", "question",
           "options", "answer", "answer_text", "label", "finding"]


def as_options(texts: Iterable[str]) -> list[dict[str, str]]:
    """Option texts with the letters A, B, C..."""
    return [{"letter": chr(ord("A") + i), "text": text} for i, text in enumerate(texts)]


def option_texts(options: Mapping[str, str] | Iterable[Mapping[str, str]] | None) -> dict[str, str]:
    """{"A": text, ...} of an `options` cell (list of {letter, text}, also as parquet returns it)."""
    if isinstance(options, Mapping):
        return dict(options)
    return {option["letter"]: option["text"] for option in ([] if options is None else options)}


def prompt(question: str, options: Mapping[str, str] | Iterable[Mapping[str, str]] | None) -> str:
    """What the model reads. One short template for every question: the small model has to learn it too."""
    listed = ", ".join(f"{letter}. {text}" for letter, text in option_texts(options).items())
    choice = f" Options: {listed}. Think in <think> </think>, then give one option" if listed else \
        " Think in <think> </think>, then give the answer"
    return f"{question}{choice} in <answer> </answer>."


def lesion_question(finding: str) -> str:
    """The yes/no question about one finding or disease."""
    return f"Does this image show {finding}?"


def diagnosis(labels: Iterable[str]) -> str | None:
    """The one label that the image itself can prove: a grade or a diagnosis; None when there are several or none."""
    found = [label for label in labels if label not in NO_DIAGNOSIS]
    return found[0] if len(found) == 1 else None


def shows_retinopathy(dataset: str, labels: list[str]) -> bool | None:
    """Whether diabetic retinopathy is labelled present or absent; None where the data set does not say."""
    if dataset == "IDRiD":
        return labels[0] != GRADES[0] if labels and labels[0] in GRADES else None
    return "Diabetic retinopathy" in labels if labels and "Diabetic retinopathy" in codes(dataset).values() else None


def make_questions(records: pd.DataFrame, settings, seed: int) -> pd.DataFrame:
    """questions.parquet from records with final splits; `settings` is the section `data`.

    Every image with one provable diagnosis gets its L4b (IDRiD: L4c) question. `modality_share`, `laterality_share` and
    `lesion_share` of the images get that question; of test images with masks every annotated lesion is asked, and L4a
    is for test images only, `modality_share` of them. Each draw has its own seed made of seed, image and level, so that
    one more image changes no other question. Options of L4 are shuffled per image, the others keep their order.
    Images without labels (a photograph whose graded copy is there too) are not asked about.
    """
    found = records.assign(diagnosis=records["labels"].map(diagnosis))
    known = found.groupby("dataset")["diagnosis"].agg(lambda names: sorted(set(names.dropna()))).to_dict()
    known["IDRiD"] = list(GRADES)
    rows = [row for record in found[found["labels"].map(len) > 0].itertuples()
            for row in questions_of(record, known[record.dataset], settings, seed)]
    return pd.DataFrame(rows, columns=COLUMNS)


def questions_of(record, known: list[str], settings, seed: int) -> list[dict]:
    """The questions about one record; `known` are the diagnoses that its data set tells apart."""
    def rng(key: str) -> random.Random:
        return random.Random(f"{seed}/{record.id}/{key}")

    def ask(level: str, kind: str, question: str, texts: Iterable[str], answer: str, **more) -> None:
        options = as_options(texts)
        letter = next(option["letter"] for option in options if option["text"] == answer)
        rows.append({
            "id": f"{record.id}/{level}{'-' + more['finding'] if 'finding' in more else ''}", "record_id": record.id,
            "path": record.path, "split": record.split, "modality": record.modality, "dataset": record.dataset,
            "camera": record.camera, "level": level, "task": TASKS[level], "kind": kind, "question": question,
            "options": options, "answer": letter, "answer_text": answer, "label": None, "finding": None, **more})

    rows, test = [], record.split == "test"
    if rng("L1a").random() < settings.modality_share and record.modality in MODALITIES:
        ask("L1a", "single", MODALITY, MODALITIES, record.modality)
    if isinstance(record.laterality, str) and rng("L2b").random() < settings.laterality_share:
        ask("L2b", "single", LATERALITY, SIDES, f"{record.laterality.capitalize()} eye")
    if len(record.masks) and (test or rng("L3a").random() < settings.lesion_share):
        lesions, present = ANNOTATED[record.dataset], {mask["finding"] for mask in record.masks}
        for finding in lesions if test else [rng("finding").choice(lesions)]:
            ask("L3a", "yesno", lesion_question(finding), YES_NO, YES_NO[finding not in present], finding=finding)
    retinopathy = shows_retinopathy(record.dataset, list(record.labels))
    if test and retinopathy is not None and rng("L4a").random() < settings.modality_share:
        ask("L4a", "yesno", lesion_question("diabetic retinopathy"), YES_NO, YES_NO[not retinopathy])
    if isinstance(record.diagnosis, str) and len(known) > 1:
        level, draw = ("L4c" if record.dataset == "IDRiD" else "L4b"), rng("L4")
        others = [label for label in known if label != record.diagnosis]
        options = [record.diagnosis, *draw.sample(others, min(len(others), MOST_OPTIONS - 1))]
        draw.shuffle(options)
        ask(level, "single", GRADE if level == "L4c" else DIAGNOSIS, options, record.diagnosis, label=record.diagnosis)
    return rows


def write_reasoning_records(folder: Path, questions: pd.DataFrame) -> None:
    """MM-Retinal-Reason's record format, one JSON list a kind and modality; `reason` is empty until traces exist."""
    names = {"single": "single_choice", "yesno": "true_false"}
    for (kind, split, modality), rows in questions.groupby(["kind", "split", "modality"]):
        content = [{"image": [row.path], "conversations": [
            {"from": "human", "value": prompt(row.question, row.options)},
            {"from": "gpt", "value": f"<answer> {row.answer} </answer>"}], "reason": ""} for row in rows.itertuples()]
        file = folder / f"{names[kind]}_{split}_data_{modality}.json"
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
