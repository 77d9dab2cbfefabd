"""FunBench, OmniMedVQA and GMAI-MMBench (their fundus parts) and VLMEvalKit's table: our test questions, and theirs.

Readers return the columns of questions.parquet plus benchmark, image (bytes, tables only) and department (GMAI only);
`task` is the benchmark's own code. Option letters are mapped by text. Only a few of FunBench's file names are public;
the others are ours. A bad row raises DataError, or goes to the list `problems` when one is given (official downloads).
VLMEvalKit's columns (GMAI-MMBench is such a table): index, image (base64; a short cell is the index of the row that
holds it) or image_path, question, A, B.., answer, category, l2-category, split; its prediction files (tsv, xlsx) repeat
them without image and add prediction."""

import base64
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from string import ascii_uppercase
from typing import NamedTuple

import pandas as pd
from tqdm import tqdm

from fundus_lib.data import DataError, fingerprint, image_path
from fundus_lib.data.records import Problem, folders, read_table
from fundus_lib.lexicon import reference
from fundus_lib.questions import COLUMNS, YES_NO, as_options, option_texts
from fundus_lib.runs import write as write_json

FUNBENCH, OMNI, GMAI = (reference("benchmarks.json")[name] for name in ("funbench", "omni", "gmai"))
OMNI_LISTS = "QA_information/Open-access"
ONE_ANSWER = ("single", "yesno")  # kinds of question that OmniMedVQA and GMAI-MMBench have
EYE = "Ophthalmology"  # GMAI-MMBench's department
READ = [*COLUMNS, "benchmark", "image", "department"]  # columns of questions that were read
MOST_IN_A_CELL = 32_767  # characters in one cell of an xlsx file


class Selection(NamedTuple):
    """Which questions of a download are taken: the rule in words, what it took and left, the hash of what it took."""
    rule: str
    counts: pd.DataFrame  # questions by group and task before the selection; the last columns say what is kept
    sha256: str


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
    DataError when it is no table, lacks a column or has an index twice. An option may be empty, "None" or "nan"."""
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


def write_all(folder: Path, questions: pd.DataFrame, root: Path) -> None:
    """The three test sets from the test questions; a benchmark without any question is simply absent.
    Drawn world: FunBench holds the training camera, the other two the screening camera, and only GMAI the label and
    modality pairs without training images. Real downloads know no camera: all three hold what was held out."""
    test = questions[questions["split"] == "test"]
    unseen = test[test["camera"] != "clinic"]
    write_funbench(folder / "funbench", test[test["camera"] != "screening"])
    write_omni(folder / "omni_fundus", unseen[unseen["dataset"].isin(OMNI["sources"])])
    write_gmai(folder / "gmai_fundus", unseen, root)


def read_all(folder: Path, root: Path) -> pd.DataFrame:
    """Every question of the three test sets; a benchmark that is absent adds no row."""
    return pd.concat([read_funbench(folder / "funbench", root), read_omni(folder / "omni_fundus", root),
                      read_gmai(folder / "gmai_fundus")], ignore_index=True)


def read_json(file: Path, kind: type):
    """The JSON content when it is a `kind`; DataError naming the file otherwise, or when a key is there twice."""
    def once(pairs: list[tuple]) -> dict:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError(f"{Counter(key for key, _ in pairs).most_common(1)[0][0]!r} is there twice")
        return found
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{file} is not readable JSON: {error}") from None
    if not isinstance(content, kind):
        raise DataError(f"{file} should hold a {kind.__name__}, not a {type(content).__name__}")
    return content


def write_funbench(folder: Path, questions: pd.DataFrame) -> None:
    """FunBench's tree: a file a task and finding, in it one question an image. It has no place for open questions."""
    files: dict[str, dict] = {}
    for question in questions[questions["kind"] != "open"].itertuples():
        name, finding = FUNBENCH["files"][question.level], question.finding
        if isinstance(finding, str):
            part = FUNBENCH["lesions"].get(finding) if question.level == "L3a" else None
            name = f"{name}/{part or f'{Path(name).name}-{finding}'.replace(' ', '_')}"
        options = option_texts(question.options)
        listed = "; ".join(f"{letter}. {text}" for letter, text in options.items())
        truth = [options[letter] for letter in question.answer.split(",")]
        if question.path in files.setdefault(name, {}):
            raise DataError(f"{question.id} is the second question about {question.path} in {name}.json; FunBench's "
                            "format holds one: give the question a finding of its own, or ask it of another image")
        files[name][question.path] = {
            "gt": question.answer, "E-mode2": None,
            "raw_data": {"gt": truth if question.kind == "multi" else truth[0], "options": list(options.values())},
            "E-mode3": FUNBENCH["prompt"].format(options=listed, question=question.question)}
    for name, data in files.items():
        write_json(folder / f"{name}.json", {"info": {"questions": len(data)}, "data": data})


def read_funbench(folder: Path, root: Path, problems: list[Problem] | None = None) -> pd.DataFrame:
    """FunBench's tree. task and level: L1a...L4d; id: file in the tree without suffix, "::", image path."""
    lesions, rows = {name: finding for finding, name in FUNBENCH["lesions"].items()}, []
    for file in sorted(folder.rglob("L*.json")):
        level, part = file.stem[:3], file.stem.split("-", 2)[2:]
        name = file.relative_to(folder).with_suffix("").as_posix()
        finding = lesions.get(file.stem, part[0].replace("_", " ") if part else None)

        def build(path: str, item: dict, level=level, name=name, finding=finding) -> dict:
            raw, text = item["raw_data"], item["E-mode3"]
            if not (isinstance(raw, dict) and isinstance(raw.get("options") or 0, list) and isinstance(text, str)):
                raise DataError("needs gt, raw_data.options and E-mode3")
            options, several = option_texts(as_options(map(str, raw["options"]))), isinstance(raw.get("gt"), list)
            question = text.rpartition("The question is:")[2].strip()
            new = question_row(root, question=question, options=options, answer=item["gt"], path=path,
                               id=f"{name}::{path}", task=level, level=level, finding=finding)
            texts = [options[letter] for letter in new["answer"].split(",")]
            if sorted(map(str, raw["gt"] if several else [raw.get("gt", texts[0])])) != sorted(texts):
                raise DataError(f"gt {item['gt']!r} means {texts}, raw_data.gt is {raw['gt']!r}")
            return new | ({"kind": "multi"} if several else {})
        if not isinstance(items := read_json(file, dict).get("data"), dict):
            raise DataError(f"{file} has no object `data`: {{image path: question}}")
        rows += collect("FunBench", file, items.items(), {"gt", "raw_data", "E-mode3"}, build, problems)
    return pd.DataFrame(rows, columns=READ)


def write_omni(folder: Path, questions: pd.DataFrame) -> None:
    """OmniMedVQA's lists, one file a data set: the answer as text, at most four options, one right."""
    tasks = OMNI["levels"]
    asked = questions[questions["level"].isin(tasks) & questions["kind"].isin(ONE_ANSWER)]
    for name, rows in asked.groupby("dataset"):
        write_json(folder / OMNI_LISTS / f"{name}.json", [{
            "dataset": name, "question_id": question.id, "question": question.question,
            "question_type": OMNI["tasks"][tasks[question.level]], "gt_answer": question.answer_text,
            "image_path": question.path,
            **{f"option_{option['letter']}": option["text"] for option in narrowed(question, 4)[0]},
            "modality_type": OMNI["modalities"].get(question.modality, question.modality)}
            for question in rows.itertuples()])


def read_omni(folder: Path, root: Path, problems: list[Problem] | None = None) -> pd.DataFrame:
    """OmniMedVQA's lists. options C, D may be absent; one published row says `modality` for `modality_type`."""
    codes = {text: code for code, text in OMNI["tasks"].items()}
    modalities = {text.rstrip(")"): name for name, text in OMNI["modalities"].items()}

    def build(place: str, item: dict) -> dict:
        options = {x: item[f"option_{x}"].strip() for x in "ABCD" if isinstance(item.get(f"option_{x}"), str)}
        options = {letter: text for letter, text in options.items() if text}
        truth, task = str(item["gt_answer"]).strip(), item["question_type"]
        kind = str(item.get("modality_type", item.get("modality")))
        letter = next((letter for letter, text in options.items() if text == truth), truth)
        return question_row(root, question=item["question"], options=options, answer=letter, path=item["image_path"],
                            id=item["question_id"], task=codes.get(task, task), dataset=item.get("dataset"),
                            modality=modalities.get(kind.rstrip(")"), kind))
    rows = []
    for file in sorted(folder.rglob("*.json")):
        items = ((f"row {number}", item) for number, item in enumerate(read_json(file, list), start=1))
        needed = {"question_id", "question_type", "question", "gt_answer", "image_path", "option_A"}
        rows += collect("Omni-Fundus", file, items, needed, build, problems)
    return pd.DataFrame(rows, columns=READ)


def write_gmai(folder: Path, questions: pd.DataFrame, root: Path) -> None:
    """GMAI-MMBench's table: at most five options, one right."""
    tasks = GMAI["levels"]
    asked = questions[questions["level"].isin(tasks) & questions["kind"].isin(ONE_ANSWER)].reset_index(drop=True)
    if len(asked):
        folder.mkdir(parents=True, exist_ok=True)
        base64_table(asked, root, 5).assign(**{
            "category": asked["answer_text"], "clinical VQA task": asked["level"].map(tasks), "department": EYE,
            "perceptual granularity": "image level", "modality": asked["modality"],
        }).to_csv(folder / "GMAI-Fundus_VAL.tsv", sep="\t", index=False)


def gmai_rows(folder: Path, problems: list[Problem] | None = None) -> pd.DataFrame:
    """Every question of GMAI-MMBench's VAL table (TEST has no answers); images as bytes, those of the eye only."""
    codes = {text: code for code, text in GMAI["tasks"].items()}

    def build(item: dict) -> dict:
        task, department = item["clinical vqa task"], item.get("department", EYE)
        if not item["image"]:
            raise DataError("no image")
        return {"id": f"GMAI/{item['index']}", "task": codes.get(task.lower(), task), "department": department,
                "modality": item.get("modality")} | ({} if department.lower() == EYE.lower() else {"image": None})
    rows = [row for file in sorted(folder.rglob("*VAL.tsv"))
            for row in read_rows("GMAI-Fundus", file, {"image", "A", "B", "clinical vqa task"}, build, problems)]
    return pd.DataFrame(rows, columns=READ)


def read_gmai(folder: Path, problems: list[Problem] | None = None) -> pd.DataFrame:
    """GMAI-MMBench's fundus part."""
    return select_gmai(gmai_rows(folder, problems))[0]


def digest(questions: pd.DataFrame) -> str:
    """sha256 of the sorted questions: image path (GMAI: id), question and answer text, one line each."""
    lines = questions["path"].fillna(questions["id"]) + "\t" + questions["question"] + "\t" + questions["answer_text"]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def selected(rule: str, questions: pd.DataFrame, kept: pd.Series, groups: list) -> tuple[pd.DataFrame, Selection]:
    """The questions that are `kept`, and the Selection with its counts by `groups` and task."""
    counts = pd.crosstab(groups, questions["task"]).assign(kept=kept.groupby(groups).sum())
    return questions[kept].reset_index(drop=True), Selection(rule, counts, digest(questions[kept]))


def select_omni(items: pd.DataFrame) -> tuple[pd.DataFrame, Selection]:
    """OmniMedVQA's fundus part by its rule; items: read_omni of the whole benchmark. counts has what is published."""
    eye = items["dataset"].isin(OMNI["datasets"]) & items["modality"].isin(OMNI["modalities"])
    groups = items["dataset"].where(eye, "not of the eye")
    rule, kept = OMNI["rule"].format(", ".join(OMNI["datasets"])), eye & items["task"].isin(OMNI["tasks"])
    questions, selection = selected(rule, items, kept, [groups])
    return questions, selection._replace(counts=selection.counts.assign(published=pd.Series(OMNI["datasets"])))


def select_gmai(rows: pd.DataFrame) -> tuple[pd.DataFrame, Selection]:
    """GMAI-MMBench's fundus part by its rule; rows: gmai_rows."""
    modality = rows["modality"].fillna("").astype(str)
    retinal = modality.str.contains(r"fundus|\boct\b|coherence|^$|^cfp$|^uwf$|^ffa$", case=False)
    kept = (rows["department"].str.lower() == EYE.lower()) & retinal & rows["task"].isin(GMAI["tasks"])
    return selected(GMAI["rule"], rows, kept, [rows["department"], modality])


def find(root: Path) -> dict[str, Path]:
    """Benchmark -> its folder below `root`, known by FunBench's L1-*, QA_information/Open-access or the VAL table."""
    signs = {"FunBench": "L[1-4]-*/*.json", "Omni-Fundus": f"{OMNI_LISTS}/*.json", "GMAI-Fundus": "*VAL.tsv"}
    homes = reversed(folders(root, 3))  # the first in order wins
    return {name: home for home in homes for name, sign in signs.items() if any(home.glob(sign))}


def read_official(root: Path) -> tuple[pd.DataFrame, dict[str, Selection], list[Problem]]:
    """(questions of the fundus parts, benchmark -> Selection, problems) of the official downloads below `root`.
    Images are looked for in the folders that `find` returns; questions whose image is missing stay, with a problem."""
    parts, selections, problems = [pd.DataFrame(columns=READ)], {}, []
    for name, home in find(root).items():
        try:
            if name == "FunBench":
                part = read_funbench(home, home, problems)
            elif name == "Omni-Fundus":
                part, selections[name] = select_omni(read_omni(home / OMNI_LISTS, home, problems))
            else:
                part, selections[name] = select_gmai(gmai_rows(home, problems))
        except DataError as error:
            problems.append(Problem(name, home, None, str(error)))
            continue
        if lost := [path for path in part["path"].dropna().unique() if not image_path(home, path).exists()]:
            problems.append(Problem(name, home, None, f"{len(lost)} images are missing, first: {lost[0]}"))
        parts.append(part)
    return pd.concat(parts, ignore_index=True), selections, problems


def image_prints(questions: pd.DataFrame, root: Path) -> pd.DataFrame:
    """The readable images of `read_official`'s questions, each once: benchmark, path (GMAI: id), sha256, phash."""
    homes, rows = find(root), []
    images = questions.assign(key=questions["path"].fillna(questions["id"])).drop_duplicates(["benchmark", "key"])
    for image in tqdm(images.itertuples(), total=len(images), desc="benchmark images", unit="image"):
        try:
            stored = image.image if isinstance(image.image, bytes) else image_path(homes[image.benchmark], image.path)
            rows.append((image.benchmark, image.key, *fingerprint(stored)))
        except DataError:
            continue  # a missing image is a problem that read_official has reported
    return pd.DataFrame(rows, columns=["benchmark", "path", "sha256", "phash"])


def table4(questions: pd.DataFrame) -> pd.DataFrame:
    """Our Table 4: benchmark, task ("all": its sum), questions, images (distinct), sha256 (`digest`)."""
    both = pd.concat([questions, questions.assign(task="all")])
    return pd.DataFrame([{"benchmark": benchmark, "task": task, "questions": len(part), "sha256": digest(part),
                          "images": part["path"].fillna(part["image"]).nunique()}
                         for (benchmark, task), part in both.groupby(["benchmark", "task"])])


def write_vlmevalkit(file: Path, questions: pd.DataFrame, root: Path | None) -> None:
    """A TSV for VLMEvalKit: category is the task, l2-category the benchmark or level; our own columns follow.
    VLMEvalKit judges one letter only: questions with several answers and open ones are to be scored here."""
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
