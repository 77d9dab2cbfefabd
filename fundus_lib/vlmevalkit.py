"""Questions read from other people's files, and VLMEvalKit's table (GMAI-MMBench is one): one row a question.

Its columns: index (unique), image (base64; a short cell is the index of the row that holds it) or image_path, question,
A, B.., answer, category, l2-category, split. Its prediction files (tsv, xlsx) repeat them without image, and add
prediction.
"""

import base64
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from string import ascii_uppercase

import pandas as pd

from fundus_lib.data import DataError, image_path
from fundus_lib.data.records import Problem, read_table
from fundus_lib.questions import COLUMNS, YES_NO, as_options, option_texts

READ = [*COLUMNS, "benchmark", "image", "department"]  # columns of questions that were read
MOST_IN_A_CELL = 32_767  # characters in one cell of an xlsx file


def question_row(root: Path | None, *, question: str, options: dict[str, str], answer: str, path: str | None = None,
                 **more) -> dict:
    """One question as read; open when it has no options. DataError: an answer that is none, a path out of `root`."""
    letters = str(answer).replace(" ", "").upper().split(",") if options else []
    if not set(letters) <= set(options):
        raise DataError(f"answer {answer!r} is none of the options {options}")
    if root is not None:
        image_path(root, path)
    kind = "multi" if len(letters) > 1 else "yesno" if set(options.values()) == set(YES_NO) else "single"
    return {"split": "test", "path": path, "kind": kind if options else "open", "question": question,
            "options": [{"letter": letter, "text": text} for letter, text in options.items()],
            "answer": ",".join(letters) or answer,
            "answer_text": ", ".join(options[letter] for letter in letters) or answer, **more}


def collect(benchmark: str, file: Path, items: Iterable[tuple[str, dict]], needed: set[str], build: Callable,
            problems: list[Problem] | None) -> list[dict]:
    """build(place, item) of every item. A bad one raises DataError naming file and place, or is added to `problems`."""
    rows = []
    for place, item in items:
        try:
            if missing := needed - set(item if isinstance(item, dict) else ()):
                raise DataError(f"no {', '.join(sorted(missing))}")
            rows.append({"benchmark": benchmark} | build(place, item))
        except DataError as error:
            if problems is None:
                raise DataError(f"{file}, {place}: {error}") from None
            problems.append(Problem(benchmark, file, None, f"{place}: {error}"))
    return rows


def narrowed(question, most: int) -> tuple[list[dict[str, str]], str]:
    """(options, answer letters) with at most `most` options: wrong ones are dropped from the end, letters run anew."""
    options = option_texts(question.options)
    right = [letter for letter in question.answer.split(",") if letter in options]
    kept = sorted([*right, *[letter for letter in options if letter not in right][: most - len(right)]])
    return as_options(options[letter] for letter in kept), ",".join(ascii_uppercase[kept.index(x)] for x in right)


def base64_table(questions: pd.DataFrame, root: Path | None, most: int = 26) -> pd.DataFrame:
    """Columns index, image, question, A.., answer. Pictures: the questions' own bytes, else the files below `root`."""
    rows, holder = [], {}
    for index, question in enumerate(questions.itertuples()):
        (options, letters), content = narrowed(question, most), getattr(question, "image", None)
        content = content if isinstance(content, bytes) else None
        cell = holder.setdefault(content or question.path, index)
        if cell == index:
            cell = base64.b64encode(content or image_path(root, question.path).read_bytes()).decode()
        rows.append({"index": index, "image": cell, "question": question.question,
                     **{option["letter"]: option["text"] for option in options}, "answer": letters or question.answer})
    letters = ascii_uppercase[: max((len(row) for row in rows), default=4) - 4]
    return pd.DataFrame(rows, columns=["index", "image", "question", *letters, "answer"])


def read_rows(benchmark: str, file: Path, needed: set[str], build: Callable[[dict], dict],
              problems: list[Problem] | None = None) -> list[dict]:
    """The questions of a table, column names in any case; build(row) gives what else is known of one.

    DataError when it is no table, lacks a column or has an index twice. An option may be empty, "None" or "nan".
    """
    table = read_table(file, [], "\t")
    table.columns = [name.upper() if len(name) == 1 else name.lower() for name in table.columns.astype(str)]
    if missing := {"index", "question", "answer", *needed} - set(table.columns):
        raise DataError(f"{file} has no column {', '.join(sorted(missing))}; it has {', '.join(table.columns)[:200]}")
    if len(twice := table.loc[table["index"].duplicated(), "index"]):
        raise DataError(f"{file} has the index {twice.iloc[0]} twice")
    images = dict(zip(table["index"], table["image"], strict=True)) if "image" in table else {}

    def question(_, item: dict) -> dict:
        options = {x: item[x] for x in ascii_uppercase if item.get(x, "").lower() not in ("", "none", "nan")}
        more, cell = build(item), images.get(item.get("image"), item.get("image", ""))
        if cell.isdigit():
            raise DataError(f"image {cell} is the index of no row that holds a picture")
        try:
            more = {"image": base64.b64decode(cell, validate=True) or None} | more
        except ValueError as error:  # binascii.Error is one
            raise DataError(f"the image is not base64: {error}") from None
        return question_row(None, question=item["question"], options=options, answer=item["answer"], **more)
    items = ((f"index {item['index']}", item) for item in table.to_dict("records"))
    return collect(benchmark, file, items, set(), question, problems)


def write_vlmevalkit(file: Path, questions: pd.DataFrame, root: Path | None) -> None:
    """A TSV for VLMEvalKit: category is the task, l2-category the benchmark or level; our own columns follow.

    VLMEvalKit judges one letter only: questions with several answers and open ones are to be scored here.
    """
    ours = questions.reset_index(drop=True).drop(columns=["image", "options", "question", "answer"], errors="ignore")
    group = ours["benchmark"] if "benchmark" in ours else ours["level"].str[:2]
    base64_table(questions, root).assign(**{"category": ours["task"], "l2-category": group}).join(ours).to_csv(
        file, sep="\t", index=False)


def read_vlmevalkit(file: Path) -> pd.DataFrame:
    """Questions of a VLMEvalKit table, or of its predictions (then with column prediction), whoever wrote it."""
    def build(item: dict) -> dict:
        known = {name: item[name] for name in {*READ, "prediction"} - {"question", "answer", "image"} if item.get(name)}
        return {"id": item["index"], "task": item.get("category"), "path": item.get("image_path")} | known
    read = pd.DataFrame(read_rows("VLMEvalKit", file, set(), build), columns=[*READ, "prediction"])
    if cut := sum(len(text) >= MOST_IN_A_CELL for text in read["prediction"].dropna()):
        warnings.warn(f"{file}: {cut} predictions fill their cell of an xlsx file and are cut there.\n"
                      "  run VLMEvalKit again with PRED_FORMAT=tsv", stacklevel=2)
    return read
