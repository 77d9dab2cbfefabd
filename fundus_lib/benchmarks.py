"""FunBench, OmniMedVQA and GMAI-MMBench (their fundus parts): our test questions in their formats, and their readers.

Readers return the columns of questions.parquet plus benchmark and image (bytes, GMAI only); `task` is the benchmark's
own code. Option letters are mapped by text. Only a few of FunBench's file names are public; the others are ours.
"""

import base64
import binascii
import json
from pathlib import Path

import pandas as pd

from fundus_lib.data import DataError, image_path
from fundus_lib.data.records import read_table
from fundus_lib.questions import COLUMNS, YES_NO, as_options, option_texts

FUNBENCH_LESIONS = {"retinal hemorrhage": "L3a1-lesion_recognition-Haemorrhage",
                    "hard exudate": "L3a2-lesion_recognition-Hard_exudate",
                    "cotton-wool spot": "L3a3-lesion_recognition-Cotton_wool_spot",
                    "microaneurysm": "L3a5-lesion_recognition-Microaneurysm",
                    "neovascularization": "L3a6-lesion_recognition-Neovascularization"}
FUNBENCH_FILES = {"L1a": "L1-modality_perception/L1a-coarse_modality_perception",
                  "L2b": "L2-anatomy_perception/L2b-laterality_recognition",
                  "L3a": "L3-lesion_analysis/L3a-lesion_recognition",
                  "L4a": "L4-disease_diagnosis/L4a-binary_condition_diagnosis",
                  "L4b": "L4-disease_diagnosis/L4b-multi_condition_diagnosis",
                  "L4c": "L4-disease_diagnosis/L4c-dr_grading"}
FUNBENCH_PROMPT = ("Please choose the most suitable option and answer with its letter. [Description: {options}] "
                   "The question is: {question}")
OMNI_TASKS = {"MR": "Modality Recognition", "AI": "Anatomy Identification", "LG": "Lesion Grading",
              "DD": "Disease Diagnosis"}
OMNI_OF = {"L1a": "MR", "L2b": "AI", "L4c": "LG", "L4b": "DD"}  # level of a question -> task
OMNI_SETS = ("IDRiD", "UCSD", "TOP")
OMNI_MODALITIES = {"CFP": "Fundus Photography", "OCT": "OCT (Optical Coherence Tomography",  # as published, unclosed
                   "UWF": "Ultra-widefield Fundus Photography"}
GMAI_TASKS = {"AR": "attribute recognition", "BVR": "blood vessels recognition", "NT": "nervous tissue",
              "DD": "disease diagnosis", "SG": "severity grading"}
READ = [*COLUMNS, "benchmark", "image"]  # columns of what the readers return
GMAI_OF = {"L1a": "AR", "L2b": "AR", "L4c": "SG", "L4b": "DD"}


def write_all(folder: Path, questions: pd.DataFrame, root: Path) -> None:
    """The three test sets from the test questions; a benchmark without any question is simply absent.

    Drawn world: FunBench holds the training camera, the other two the screening camera, and only GMAI the label and
    modality pairs without training images. Real downloads know no camera: all three hold what was held out.
    """
    test = questions[questions["split"] == "test"]
    unseen = test[test["camera"] != "clinic"]
    write_funbench(folder / "funbench", test[test["camera"] != "screening"])
    write_omni(folder / "omni_fundus", unseen[unseen["dataset"].isin(OMNI_SETS)])
    write_gmai(folder / "gmai_fundus", unseen, root)


def read_all(folder: Path, root: Path) -> pd.DataFrame:
    """Every question of the three test sets; a benchmark that is absent adds no row."""
    return pd.concat([read_funbench(folder / "funbench", root), read_omni(folder / "omni_fundus", root),
                      read_gmai(folder / "gmai_fundus")], ignore_index=True)


def narrowed(question, most: int) -> tuple[list[dict[str, str]], str]:
    """(options, answer letter) with at most `most` options: wrong ones are dropped from the end, letters run anew."""
    texts = list(option_texts(question.options).values())
    for text in [text for text in reversed(texts) if text != question.answer_text][: max(0, len(texts) - most)]:
        texts.remove(text)
    return as_options(texts), as_options(texts)[texts.index(question.answer_text)]["letter"]


def row(file: Path, place, root: Path | None, *, question: str, options: dict[str, str], answer: str,
        path: str | None = None, **more) -> dict:
    """One question as read. DataError names file and row for an answer that is no option and a path out of `root`."""
    letters = str(answer).replace(" ", "").upper().split(",")
    if not set(letters) <= set(options):
        raise DataError(f"{file}, {place}: answer {answer!r} is none of the options {options}")
    try:
        if root is not None:
            image_path(root, path)
    except DataError as error:
        raise DataError(f"{file}, {place}: {error}") from None
    kind = "multi" if len(letters) > 1 else "yesno" if set(options.values()) == set(YES_NO) else "single"
    return {"split": "test", "path": path, "kind": kind, "question": question, "answer": ",".join(letters),
            "options": [{"letter": letter, "text": text} for letter, text in options.items()],
            "answer_text": ", ".join(options[letter] for letter in letters), **more}


def read_json(file: Path, kind: type):
    """The JSON content when it is a `kind`; DataError naming the file otherwise."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise DataError(f"{file} is not readable JSON: {error}") from None
    if not isinstance(content, kind):
        raise DataError(f"{file} should hold a {kind.__name__}, not a {type(content).__name__}")
    return content


def write_json(file: Path, content) -> None:
    """JSON with its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def write_funbench(folder: Path, questions: pd.DataFrame) -> None:
    """FunBench's tree: one file a task (L3a: a lesion), in it one question an image, found by the image's path."""
    files: dict[str, dict] = {}
    for question in questions.itertuples():
        name = FUNBENCH_FILES[question.level]
        if question.level == "L3a":
            name = f"{name}/{FUNBENCH_LESIONS[question.finding]}"
        options = option_texts(question.options)
        listed = "; ".join(f"{letter}. {text}" for letter, text in options.items())
        files.setdefault(name, {})[question.path] = {
            "gt": question.answer, "raw_data": {"gt": question.answer_text, "options": list(options.values())},
            "E-mode2": None, "E-mode3": FUNBENCH_PROMPT.format(options=listed, question=question.question)}
    for name, data in files.items():
        write_json(folder / f"{name}.json", {"info": {"questions": len(data)}, "data": data})


def read_funbench(folder: Path, root: Path) -> pd.DataFrame:
    """FunBench's tree. task and level: L1a...L4d; id: file in the tree without suffix, "::", image path."""
    lesions, rows = {name: finding for finding, name in FUNBENCH_LESIONS.items()}, []
    for file in sorted(folder.rglob("*.json")):
        level = file.stem[:3]
        for path, item in read_json(file, dict).get("data", {}).items():
            try:
                raw, text, answer = item["raw_data"], item["E-mode3"], item["gt"]
                options = option_texts(as_options(raw["options"]))
            except (KeyError, TypeError) as error:
                raise DataError(f"{file}, {path}: needs gt, raw_data.options and E-mode3 ({error})") from None
            new = row(file, path, root, benchmark="FunBench", task=level, level=level, options=options, answer=answer,
                      question=text.rpartition("The question is:")[2].strip(), finding=lesions.get(file.stem),
                      id=f"{file.relative_to(folder).with_suffix('').as_posix()}::{path}",
                      path=path)
            rows.append(new | ({"kind": "multi"} if isinstance(raw.get("gt"), list) else {}))
    return pd.DataFrame(rows, columns=READ)


def write_omni(folder: Path, questions: pd.DataFrame) -> None:
    """OmniMedVQA's lists, one file a data set: the answer as text, at most four options."""
    files: dict[str, list] = {}
    for question in questions[questions["level"].isin(OMNI_OF)].itertuples():
        options, _ = narrowed(question, 4)
        files.setdefault(question.dataset, []).append({
            "dataset": question.dataset, "question_id": question.id, "question": question.question,
            "question_type": OMNI_TASKS[OMNI_OF[question.level]], "gt_answer": question.answer_text,
            "image_path": question.path, **{f"option_{option['letter']}": option["text"] for option in options},
            "modality_type": OMNI_MODALITIES[question.modality]})
    for name, content in files.items():
        write_json(folder / "QA_information" / "Open-access" / f"{name}.json", content)


def read_omni(folder: Path, root: Path) -> pd.DataFrame:
    """OmniMedVQA's lists. options C, D may be absent; one published row says `modality` for `modality_type`."""
    codes, modalities = ({text: code for code, text in names.items()} for names in (OMNI_TASKS, OMNI_MODALITIES))
    rows = []
    for file in sorted(folder.rglob("*.json")):
        for number, item in enumerate(read_json(file, list), start=1):
            if missing := {"question_id", "question_type", "question", "gt_answer", "image_path"} - set(item):
                raise DataError(f"{file}, row {number}: no {', '.join(sorted(missing))}")
            options = {letter: item[f"option_{letter}"] for letter in "ABCD" if item.get(f"option_{letter}")}
            truth, task = item["gt_answer"], item["question_type"]
            kind = item.get("modality_type", item.get("modality"))
            rows.append(row(file, f"row {number}", root, benchmark="Omni-Fundus", task=codes.get(task, task),
                            answer=next((letter for letter, text in options.items() if text == truth), truth),
                            options=options, question=item["question"], id=item["question_id"], path=item["image_path"],
                            dataset=item.get("dataset"), modality=modalities.get(kind, kind)))
    return pd.DataFrame(rows, columns=READ)


def write_gmai(folder: Path, questions: pd.DataFrame, root: Path) -> None:
    """GMAI-MMBench's table with the image files in base64; a repeated image is the index of the row that holds it."""
    rows, holder = [], {}
    for index, question in enumerate(questions[questions["level"].isin(GMAI_OF)].itertuples()):
        options, letter = narrowed(question, 5)
        first = holder.setdefault(question.path, index)
        image = base64.b64encode(image_path(root, question.path).read_bytes()).decode() if first == index else first
        rows.append({"index": index, "image": image, "question": question.question, **dict.fromkeys("ABCDE"),
                     **{option["letter"]: option["text"] for option in options}, "answer": letter,
                     "category": question.answer_text, "clinical VQA task": GMAI_OF[question.level],
                     "department": "Ophthalmology", "perceptual granularity": "image level",
                     "modality": question.modality})
    if rows:
        folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(folder / "GMAI-Fundus_VAL.tsv", sep="\t", index=False)


def read_gmai(folder: Path) -> pd.DataFrame:
    """GMAI-MMBench's tables: rows of the department Ophthalmology, images as bytes; E may be empty, "None" or "nan"."""
    codes = {text: code for code, text in GMAI_TASKS.items()}
    rows = []
    for file in sorted(folder.rglob("*.tsv")):
        table = read_table(file, ["index", "image", "question", "A", "B", "answer", "clinical VQA task"], "\t")
        images = dict(zip(table["index"], table["image"], strict=True))
        for item in table.to_dict("records"):
            place = f"index {item['index']}"
            if item.get("department", "Ophthalmology").lower() != "ophthalmology":
                continue
            options = {letter: item[letter] for letter in "ABCDE"
                       if item.get(letter, "").lower() not in ("", "none", "nan")}
            try:
                image = base64.b64decode(images.get(item["image"], item["image"]), validate=True)
            except binascii.Error as error:
                raise DataError(f"{file}, {place}: the image is not base64: {error}") from None
            task = item["clinical VQA task"]
            rows.append(row(file, place, None, benchmark="GMAI-Fundus", task=codes.get(task.lower(), task), image=image,
                            options=options, question=item["question"], answer=item["answer"],
                            id=f"GMAI/{item['index']}", modality=item.get("modality")))
    return pd.DataFrame(rows, columns=READ)
