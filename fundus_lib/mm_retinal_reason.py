"""MM-Retinal-Reason (OphthaReason): its basic part written from our questions, and the reader of its records."""

import base64
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from string import ascii_uppercase

import pandas as pd

from fundus_lib.benchmarks import READ, collect, question_row, read_json, write_json
from fundus_lib.data import DataError, image_path
from fundus_lib.data.records import read_table
from fundus_lib.questions import MODALITIES, prompt

# Kind of a question -> first words of its file. The first two are published for test files, the others are ours.
KINDS = {"single": "single_choice", "multi": "multi_choice", "yesno": "true_false", "open": "open_ended"}


def write_basic(folder: Path, questions: pd.DataFrame, roles: Mapping[str, str | None] | None = None) -> pd.DataFrame:
    """The basic part: one JSON list a kind, split and modality, such as single_choice_test_data_CFP.json.
    roles: data set -> in-domain | out-of-domain (None: what the catalogue says of OphthaReason): in the files of every
    split, or in test files only; sets without a role are in none. A record holds image (paths), conversations and
    reason (empty until traces exist) as published, and dataset and domain, which the scores need. Returns the number of
    questions of each dataset, domain, split and kind, `written` or not."""
    if roles is None:
        from fundus_lib.data.catalogue import catalogue
        roles = {name: entry.roles.get("ophthareason") for name, entry in catalogue().items()}
    table = questions.assign(domain=questions["dataset"].map(roles).astype(object))
    inside, outside = table["domain"] == "in-domain", table["domain"] == "out-of-domain"
    table["written"] = inside | (outside & (table["split"] == "test"))
    for (kind, split, modality), rows in table[table["written"]].groupby(["kind", "split", "modality"]):
        write_json(folder / f"{KINDS[kind]}_{split}_data_{modality}.json", [{
            "image": [row.path],
            "conversations": [{"from": "human", "value": prompt(row.question, row.options, row.kind)},
                              {"from": "gpt", "value": f"<answer> {row.answer} </answer>"}],
            "reason": "", "dataset": row.dataset, "domain": row.domain} for row in rows.itertuples()])
    return table.groupby(["dataset", "domain", "split", "kind", "written"], dropna=False).size().reset_index(
        name="questions")


MOST_IMAGES = 6  # of one record
KEPT = ("reason", "pmcid", "title", "caption", "domain")
OPTION = re.compile(r"(?:^|(?<=[\s,;]))\(?([A-J])[.):]\s*")


def asked(text: str) -> tuple[str, dict[str, str]]:
    """(question, options by letter) of a prompt: ours, or one that lists "A. text" or "A) text"."""
    text = text.replace("<image>", "").partition(" Think in <think>")[0].strip()
    head, named, tail = re.split(r"\s*((?:Options|Choices)\s*:|$)", text, maxsplit=1, flags=re.IGNORECASE)
    listed, marks = (tail, []) if named else (head, [])
    for found in OPTION.finditer(listed):
        if found[1] == ascii_uppercase[len(marks)]:
            marks.append(found)
    if len(marks) < 2:
        return text, {}
    ends = [mark.start() for mark in marks[1:]] + [len(listed)]
    texts = [listed[mark.end():end].strip(" ,;\n") for mark, end in zip(marks, ends, strict=True)]
    texts[-1] = texts[-1].partition("\n")[0].removesuffix(".")
    return (head if named else listed[: marks[0].start()].strip()), dict(zip(ascii_uppercase, texts, strict=False))


def picture(folder: Path, name: str, table: Mapping[str, str]) -> str | bytes:
    """One entry of `image`: a key of `table` or base64 as bytes, without table a path; DataError if neither."""
    if not table and str(name).lower().endswith((".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")):
        image_path(folder, name)
        return name
    try:
        content = base64.b64decode(table.get(name, name).rpartition("base64,")[2], validate=True)
    except (ValueError, TypeError, AttributeError):
        content = b""
    if not content:
        raise DataError(f"image {name!r:.60} is no path, no base64 and not in the .csv of the same name")
    return content


def as_question(folder: Path, name: str, table: Mapping[str, str], place: str, item: dict) -> dict:
    """One record of the file `name`.json as a question; `table`: path -> base64. DataError when it is malformed."""
    names = [item["image"]] if isinstance(item["image"], str) else item["image"]
    try:
        said = {turn["from"]: turn["value"] for turn in item["conversations"]}
        (question, options), reply, count = asked(said["human"]), said["gpt"].strip(), len(names)
    except (KeyError, TypeError, AttributeError):
        raise DataError("needs a list of images and conversations with a human and a gpt turn") from None
    if not 1 <= count <= MOST_IMAGES:
        raise DataError(f"{count} images; a record has 1 to {MOST_IMAGES}")
    answer = (reply.partition("<answer>")[2].partition("</answer>")[0] or reply).strip()
    answer = next((letter for letter, text in options.items() if text == answer), answer)
    if not options and re.fullmatch(r"[A-J](\s*,\s*[A-J])*", answer):
        raise DataError(f"answer {answer!r}, but no options are listed in the question")
    images = [picture(folder, image, table) for image in names]
    new = question_row(None, question=question, options=options, answer=answer, id=f"{name}::{place}", images=images,
                       path=images[0] if isinstance(images[0], str) else None, dataset=item.get("dataset"),
                       image=images[0] if isinstance(images[0], bytes) else None,
                       modality=name[-3:] if name[-3:] in MODALITIES else None,
                       task="complex" if item.get("pmcid") or name.startswith("complex") else "basic",
                       **{key: item.get(key) for key in KEPT})
    split = re.search("_(train|val|test)(_|$)", name)
    several = options and name.startswith(KINDS["multi"])
    return new | ({"split": split[1]} if split else {}) | ({"kind": "multi"} if several else {})


def read_mm_retinal_reason(folder: Path) -> pd.DataFrame:
    """MM-Retinal-Reason's JSON lists as questions, with images (paths or bytes), reason, pmcid, title, caption, domain.
    path or image holds the first image. kind comes from the answer (a letter, several, a name) and the file's name.
    Raises DataError naming file and row of a malformed record."""
    rows = []
    for file in sorted(folder.glob("*.json")):
        table, csv = {}, file.with_suffix(".csv")
        if csv.exists():
            lines = read_table(csv, ["base64"])
            table = dict(zip(lines.iloc[:, 0], lines["base64"], strict=True))
        items = ((f"row {number}", item) for number, item in enumerate(read_json(file, list), start=1))
        rows += collect("MM-Retinal-Reason", file, items, {"image", "conversations"},
                        partial(as_question, folder, file.stem, table), None)
    return pd.DataFrame(rows, columns=[*READ, "images", *KEPT])
