"""Predictions made elsewhere, joined to our questions: `python -m fundus_lib.predictions QUESTIONS PREDICTIONS`.

Read are VLMEvalKit's tables (tsv, xlsx), MedEvalKit's results (json, or one JSON object a line), OphthaReason's pickle
([response, prompt, answer, images] a row, in the order of what was asked) and our own parquet and progress files."""

import argparse
import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fundus_lib.benchmarks import read_all, read_vlmevalkit
from fundus_lib.data import DataError
from fundus_lib.evaluation import COLUMNS, image_keys, ophthareason_scores, score_predictions
from fundus_lib.mm_retinal_reason import asked, read_mm_retinal_reason
from fundus_lib.questions import option_texts


class Found(NamedTuple):
    """One response as it was found. id: of the question, else question and image say which it is."""
    place: str
    response: str
    id: str | None = None
    question: str | None = None
    options: dict[str, str] | None = None
    image: str = ""


class PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, strings and numbers. Whatever would import or call something is refused, unexecuted."""
    def find_class(self, module: str, name: str):
        raise DataError(f"it asks for {module}.{name}, which plain data do not need")


def _pickled(file: Path) -> Iterable[Found]:
    try:
        with file.open("rb") as content:
            rows = PlainUnpickler(content).load()
        return [Found(f"{file}, row {number}", response, f"{file.stem}::row {number}", *asked(prompt))
                for number, (response, prompt, _, _) in enumerate(rows, start=1)]
    except Exception as error:  # a broken or hostile pickle fails in any way; nothing of it was executed
        raise DataError(f"{file} is refused: {error}\n  it should hold rows of [response, prompt, answer, images] as "
                        "text; convert anything else to JSON where you trust it") from None


def _table(file: Path) -> Iterable[Found]:
    read = read_vlmevalkit(file)
    if read["prediction"].isna().all():
        raise DataError(f"{file} has no predictions: its column `prediction` is missing or empty")
    return [Found(f"{file}, index {row.id}", row.prediction, row.id, row.question, option_texts(row.options))
            for row in read[read["prediction"].notna()].itertuples()]


def _json(file: Path) -> Iterable[Found]:
    text = file.read_text("utf-8-sig").strip()
    try:
        content = json.loads(text if text.startswith("[") else f"[{','.join(filter(str.strip, text.split(chr(10))))}]")
    except ValueError as error:
        raise DataError(f"{file} is neither a JSON list nor one JSON object a line: {error}") from None
    if not content or not all(isinstance(item, dict) and "response" in item for item in content):
        raise DataError(f"{file} holds no predictions: objects with `response` were expected")
    return [Found(f"{file}, item {number}", item["response"], item.get("question_id"), item.get("question"),
                  {x: item[f"option_{x}"] for x in "ABCD" if item.get(f"option_{x}")}, item.get("image_path") or "")
            for number, item in enumerate(content, start=1)]


def _parquet(file: Path) -> Iterable[Found]:
    read = pd.read_parquet(file)
    if not {"question_id", "response"} <= set(read):
        raise DataError(f"{file} holds no predictions: its columns are {', '.join(map(str, read))}")
    return [Found(f"{file}, row {i}", said, name) for i, name, said in read[["question_id", "response"]].itertuples()]


READERS = {".tsv": _table, ".xlsx": _table, ".pkl": _pickled, ".parquet": _parquet, ".jsonl": _json, ".json": _json}


def read_predictions(path: Path) -> tuple[list[Found], list[str]]:
    """(responses of a file or of every file below a folder, why a file was not read). DataError when none was."""
    files = sorted(file for file in path.rglob("*") if file.suffix in READERS) if path.is_dir() else [path]
    found, left = [], []
    for file in files:
        try:
            if file.suffix not in READERS:
                raise DataError(f"{file}: predictions end in {', '.join(READERS)}")
            found += READERS[file.suffix](file)
        except DataError as error:
            left.append(str(error))
    if not found:
        raise DataError("\n".join(left) or f"{path} holds no predictions")
    return found, left


def joined(questions: pd.DataFrame, found: Iterable[Found]) -> tuple[list[str | None], pd.DataFrame]:
    """(response to each question, None without one; what did not fit: columns what, question_id, place).
    Matched by the question's id (VLMEvalKit's index and OphthaReason's file name included), else by question and image;
    a question and options that it repeats have to be ours. Of two different responses to one question none counts."""
    rows, known = list(questions.itertuples()), {}
    for i, row in enumerate(rows):
        for key in {row.id, row.id.removeprefix("GMAI/"), (row.question, row.path)}:
            known.setdefault(key, []).append(i)
    asked_in, given, problems = {row.id.partition("::row ")[0] for row in rows if "::row " in row.id}, {}, []
    for one in found:
        name, _, number = str(one.id).rpartition("::row ")
        parts = Path(one.image).parts
        keys = [str(one.id), *(f"{file}::row {number}" for file in asked_in if name.endswith(f"_{file}")),
                *((one.question, "/".join(parts[i:])) for i in range(len(parts)))]
        fits = next((known[key] for key in keys if key in known), [])
        row = rows[fits[0]] if len(fits) == 1 else None
        problem = "fits several questions" if len(fits) > 1 else "fits no question" if row is None else \
            "is no text" if not isinstance(one.response, str) else ""
        if row and ((one.question or row.question).split() != row.question.split()
                    or (one.options and one.options != option_texts(row.options))):
            problem = "was asked something else"
        if problem:
            problems.append((problem, row.id if row else one.id, one.place))
        else:
            given.setdefault(fits[0], []).append(one)
    responses = [None] * len(rows)
    for i, row in enumerate(rows):
        said, several = {one.response for one in given.get(i, ())}, given.get(i, ())
        responses[i] = said.pop() if len(said) == 1 else None
        problem = "contradicts another: none counts" if said else "is there twice"
        problems += [(problem, row.id, one.place) for one in several[1:]] or [
            ("has no prediction", row.id, "")] * (not several)
    return responses, pd.DataFrame(problems, columns=["what", "question_id", "place"])


def read_questions(path: Path) -> pd.DataFrame:
    """Our three benchmarks' folder, MM-Retinal-Reason's folder, questions.parquet or a VLMEvalKit table."""
    if path.is_dir():
        ours = any((path / name).exists() for name in ("funbench", "omni_fundus", "gmai_fundus"))
        return read_all(path, path) if ours else read_mm_retinal_reason(path)
    return pd.read_parquet(path) if path.suffix == ".parquet" else read_vlmevalkit(path)


def scores(questions: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """Scores in percent with n: Table 5's columns, OphthaReason's, or else the accuracy of each benchmark's task."""
    from fundus_lib.intervals import score_intervals, wilson_interval
    if set(questions["benchmark"]) == {"MM-Retinal-Reason"}:
        return ophthareason_scores(questions, predictions)
    if set(questions["benchmark"]) <= set(COLUMNS):
        return score_intervals(questions.assign(content=image_keys(questions)), [predictions], 2000, 0)
    hits = predictions["hit"].groupby([questions["benchmark"].to_numpy(), questions["task"].to_numpy()])
    return pd.DataFrame([(*key, 100 * hit.mean(), *(100 * end for end in wilson_interval(hit)), len(hit))
                         for key, hit in hits], columns=["benchmark", "task", "score", "low", "high", "n"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m fundus_lib.predictions", description=__doc__.splitlines()[0])
    parser.add_argument("questions", type=Path, help=read_questions.__doc__)
    parser.add_argument("predictions", type=Path, help="a file, or a folder of them")
    args = parser.parse_args()
    questions, (found, left) = read_questions(args.questions), read_predictions(args.predictions)
    responses, problems = joined(questions, found)
    judged = score_predictions(questions, responses)
    print(scores(questions, judged).round(1).to_string(index=False))
    print(f"\n{len(found)} predictions, {len(questions)} questions; read as {judged.status.value_counts().to_dict()}")
    for what, part in problems.groupby("what"):
        print(f"{len(part)} x {what}: {', '.join(part.place.where(part.place != '', part.question_id).head(3))}")
    print(*(f"not read: {reason}" for reason in left), sep="\n")
