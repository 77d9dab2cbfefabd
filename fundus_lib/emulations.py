"""Answers as two other projects read them without a judge, and what that does to a score. Checked against their own
functions; nobody should score with these: they say why two papers' numbers differ."""

import re
from collections.abc import Callable, Mapping
from difflib import SequenceMatcher
from itertools import accumulate, combinations

import pandas as pd

from fundus_lib.answers import Answer
from fundus_lib.evaluation import COLUMNS, table_scores
from fundus_lib.questions import YES_NO, option_texts

READERS = ("ours", "VLMEvalKit", "MedEvalKit")
SPLIT = "VLMEvalKit, SPLIT_THINK"  # with that in its environment: it drops what stands before </think>
_BLANK = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_REFUSALS = ("Sorry, I can't help with images of people yet.", "I can't process this file.",
             "I'm sorry, but without the image provided", "Cannot determine the answer")
_STATED = re.compile(r"(?i)answer\s+is\s+\**([A-D])")
_CUES = ("**answer**:", "**answer**", "*answer*:", "**answer:**", "answer is", "answer:", "答案:", "final answer")


def vlmevalkit(response: str | None, options: Mapping[str, str], kind: str = "single") -> Answer:
    """VLMEvalKit at commit e8e78f0 (2026-08-18): `can_infer`, and for yesno `YOrN_Extraction` of its Y/N data sets.
    A choice is the only option letter among the words, if one of the last four; else a letter A to D after "answer
    is"; else the only option text that occurs in a short response. Yes or no is the one of these words that occurs.
    Status "refused": it reads Z. "missing": neither or both of yes and no. "random": no choice was read, which is wrong
    here; a judge that fails three times is replaced by a die of the n options and Z, right with 1/(n+1).
    Known bugs: "<answer>B</answer>" is not read, "<answer> B </answer>" is; "The answer is a normal fundus" is A, "...
    diabetic retinopathy" D; denial is not seen; text longer than twice all options is not read by its text; several
    answers are never right; "<think> x </think> <answer>yes</answer>" holds no word yes: it becomes "answeryes". Not
    emulated: options "None" and "NA", which its tables lose, and VERBOSE in the environment."""
    text, options = str(response or ""), option_texts(options)
    if kind == "yesno":
        words = _without_punctuation(text.lower()).split()
        return _yes_or_no("yes" in words, "no" in words, options)
    letter = _can_infer(text, options)
    value = None if letter in (None, "Z") else [letter] if kind == "multi" else letter
    return Answer(value, "ok" if value else "refused" if letter else "random")


def _can_infer(text: str, options: Mapping[str, str]) -> str | None:
    """A letter, "Z" for a refusal, None for what it does not read."""
    if "Failed to obtain answer via API" not in text:
        if any(refusal in text for refusal in _REFUSALS):
            return "Z"
        words = text.translate(_BLANK).split()
        named = [letter for letter in options if letter in words]
        if len(named) == 1 and words.index(named[0]) >= len(words) - 4:
            return named[0]
        if not named and "Z" in words:
            return "Z"
        if (stated := _STATED.search(text)) and stated[1].upper() in options:
            return stated[1].upper()
    named = [letter for letter, option in options.items() if option.lower() in text.lower()]
    return named[0] if len(named) == 1 and len(text.lower()) <= 2 * sum(map(len, options.values())) else None


def _without_punctuation(text: str) -> str:
    """A mark goes where it stands beside a blank anywhere, or where digits hold a comma; else a blank replaces it."""
    bare, comma = text, re.search(r"\d,\d", text)
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        bare = bare.replace(mark, "" if comma or f"{mark} " in text or f" {mark}" in text else " ")
    return re.sub(r"(?<!\d)\.(?!\d)", "", bare, count=32)  # its re.UNICODE, 32, stands where the count belongs


def _yes_or_no(yes: bool, no: bool, options: Mapping[str, str]) -> Answer:
    """The letter of the one that was found."""
    value = next((letter for letter, text in options.items() if yes != no and text == YES_NO[no]), None)
    return Answer(value, "ok" if value else "missing")


def medevalkit(response: str | None, options: Mapping[str, str], kind: str = "single") -> Answer:
    """MedEvalKit at commit 9b12e3b (2026-02-24): OmniMedVQA's `judge_multi_choice`, for yesno `judge_judgement` (as in
    SLAKE), for open `judge_close_end_vqa`. It holds a response against the truth; this is what it would call right.
    A choice is what the tags or the last box hold, after the last "answer is", up to a full stop; where that is no
    letter, the option that difflib finds most similar. Yes or no is the one of them that occurs, also inside a word.
    Known bugs: there is always an answer: "" is A, "I cannot tell" whichever option is spelt most like it. In responses
    above 200 characters difflib ignores the frequent ones. An unclosed box is "none". "normal" and "diagnosis" hold a
    no; in yesno a letter is no answer. Several answers are right only as "A,C". Not so here: the likest of several is
    right too, and OmniMedVQA stops at D."""
    text, options = str(response or ""), option_texts(options)
    if kind in ("yesno", "open"):
        boxed = _boxed(text)
        text = _parsed(_tagged(text) if boxed == "None" else boxed).replace("\n", "").replace(".", "")
        if kind == "open":  # in small letters, as it compares; "None", an unclosed box, equals no truth
            return Answer(None, "missing") if text == "None" else Answer(text, "ok")
        return _yes_or_no("yes" in text, "no" in text, options)
    letters = {letter.lower(): letter for letter in options}
    paragraphs = _tagged(text).lower().split("\n\n")
    alone = (one for one in (paragraphs[0], paragraphs[-1].split(".")[0]) if one in letters)
    text = _parsed(next(alone, "\n\n".join(paragraphs))).strip().lower().replace("\n", "")
    short = text.split(".")[0].split(":")[-1]
    if kind == "multi" and (several := short.split(",")) == sorted({*several} & {*letters}):
        return Answer([letters[one] for one in several], "ok")
    likest = max(letters, key=lambda one: SequenceMatcher(  # also where no character is shared: then the first
        None, f"{letters[one]}. {options[letters[one]]}".lower(), text).ratio()) if short not in letters else short
    return Answer([letters[likest]] if kind == "multi" else letters[likest], "ok")


def _boxed(text: str) -> str:
    """What the last \\boxed{} holds; the text "None" when there is none or it is open (mathruler 0.1.0 does it)."""
    _, found, content = text.rpartition("\\boxed{")
    depths = list(accumulate((sign == "{") - (sign == "}") for sign in content))
    return content[:depths.index(-1)].strip() if found and -1 in depths else "None"


def _tagged(text: str) -> str:
    """What all answer tags hold, in a row; all of the text when that is nothing."""
    return " ".join(re.findall(r"(?s)<answer>(.*?)</answer>", text)).strip() or text


def _parsed(text: str) -> str:
    """What stands in the box, else in the tags, after the last of its cues."""
    text = _boxed(text.lower()) if "boxed" in text.lower() else _tagged(text.lower())
    for cue in _CUES:
        text = text.split(cue)[-1]
    return text


def read_as(reader: Callable[..., Answer], questions: pd.DataFrame, responses: pd.Series) -> pd.DataFrame:
    """As `evaluation.score_predictions`, read by another reader: question_id, response, extracted, status, hit."""
    rows = []
    for question, response in zip(questions.itertuples(), responses, strict=True):
        value, status = reader(response, question.options, question.kind)
        extracted = ",".join(value) if isinstance(value, list) else value
        rows.append((question.id, response, extracted, status, (extracted or "").lower() == question.answer.lower()))
    return pd.DataFrame(rows, columns=["question_id", "response", "extracted", "status", "hit"])


def readings(questions: pd.DataFrame, predictions: pd.DataFrame) -> tuple[pd.DataFrame, dict, pd.DataFrame]:
    """(The questions in the order of the predictions, {reader: predictions as it reads them}, what each of READERS
    extracted, "" for nothing)."""
    asked = questions.set_index("id", drop=False).loc[predictions["question_id"]].reset_index(drop=True)
    said = predictions["response"].fillna("").reset_index(drop=True)
    split = said.map(lambda text: text.rpartition("</think>")[2].strip() if "</think>" in text else text)
    read = {"ours": predictions.reset_index(drop=True), "VLMEvalKit": read_as(vlmevalkit, asked, said),
            "MedEvalKit": read_as(medevalkit, asked, said), SPLIT: read_as(vlmevalkit, asked, split)}
    return asked, read, pd.DataFrame({reader: read[reader]["extracted"].fillna("") for reader in READERS})


def disagreement(questions: pd.DataFrame, predictions: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What the reader does to a score: setup, metric, benchmark, task ("all": all of them), n (questions), differ (% of
    them that READERS do not all read alike), "ours | VLMEvalKit".. (% that these two do not), a score (%) a reader.
    metric "accuracy" is the share of right answers, "Table 5" the benchmark's own score, for "all" Table 5's
    average. predictions: {setup: `evaluation.score_predictions`}."""
    parts = {}
    for setup, frame in predictions.items():
        asked, read, said = readings(questions, frame)
        each = asked[["benchmark", "task"]].assign(
            differ=said.nunique(axis=1) > 1, **{f"{a} | {b}": said[a] != said[b] for a, b in combinations(READERS, 2)},
            **{reader: rows["hit"] for reader, rows in read.items()})
        grouped = pd.concat([each, each.assign(task="all"), each.assign(benchmark="all", task="all")]).groupby(
            ["benchmark", "task"])
        means = 100 * grouped.mean()
        means.insert(0, "n", grouped.size())
        known = asked["benchmark"].isin(COLUMNS)
        table5 = pd.DataFrame({reader: table_scores(asked[known], rows[known]) for reader, rows in read.items()})
        parts[setup, "accuracy"] = means
        whole = means[means.index.isin(["all"], level="task")].drop(columns=[*read])
        whole["column"] = [(COLUMNS | {"all": "avg"}).get(benchmark) for benchmark, _ in whole.index]
        parts[setup, "Table 5"] = whole.join(table5, on="column", how="inner").drop(columns="column")
    return pd.concat(parts, names=["setup", "metric"]).reset_index()


def examples(questions: pd.DataFrame, predictions: pd.DataFrame, each: int = 2) -> pd.DataFrame:
    """Responses that READERS do not all read alike, the first `each` of every pattern of who is right: question_id,
    task, truth, response, and what each of them reads ("" for nothing)."""
    asked, read, said = readings(questions, predictions)
    shown = asked[["id", "task", "answer"]].set_axis(["question_id", "task", "truth"], axis=1).assign(
        response=read["ours"]["response"]).join(said)[said.nunique(axis=1) > 1]
    return shown.groupby([read[reader]["hit"].loc[shown.index] for reader in READERS]).head(each)
