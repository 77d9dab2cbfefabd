"""Questions about images with answers that the labels or masks prove (VQA triplets), and the one prompt template.

Levels as in FunBench: L1a modality; L2a side of the optic disc, L2b eye; L3a presence of a lesion, L3b place, L3c size,
L3d count; L4a one disease, L4b diagnosis, L4c DR grade, L4d type of AMD. Kinds: single, multi, yesno, open."""

import random
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from fundus_lib.data import ANNOTATED, image_path, read_mask
from fundus_lib.lexicon import canonical_label, findings, key, reference

TEMPLATES = reference("questions.json")  # names of tasks, wordings, families of labels, what no image proves
MODALITIES, SIDES, YES_NO = ("CFP", "OCT", "UWF", "FFA"), ("Right eye", "Left eye"), ("Yes", "No")
HALVES, QUADRANTS = ("Left half", "Right half"), ("Upper left", "Upper right", "Lower left", "Lower right")
GRADES = ("No DR", "Mild NPDR", "Moderate NPDR", "Severe NPDR", "PDR")  # of IDRiD and others, in order
# Bins and limits are ours, no benchmark publishes its own. A bin ends below its number; IDRiD's lesions fall into all.
SIZES = {0.001: "Less than 0.1 %", 0.005: "0.1 to 0.5 %", 0.02: "0.5 to 2 %", 1.1: "2 % or more"}  # of the image's area
COUNTS = {2: "1", 6: "2 to 5", 21: "6 to 20", 51: "21 to 50", float("inf"): "More than 50"}  # regions; diagonals count
QUADRANT_PART = 0.1   # a quadrant shows a lesion when this part of one of its regions lies there: slivers do not count
DISC_MARGIN = 0.05    # a disc whose centre is nearer than this to the image's middle (in widths) lies on neither side
MASK_PIXELS = 1100    # longer side at which regions are counted; a 12-megapixel mask is pooled by 4 x 4
AMD_TYPES = {"Normal", "Polypoidal choroidal vasculopathy", *TEMPLATES["narrower"]["Age-related macular degeneration"]}
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


def prompt(question: str, options: Mapping[str, str] | Iterable[Mapping[str, str]] | None, kind: str = "single") -> str:
    """What the model reads. One short template for every question: the small model has to learn it too."""
    listed = ", ".join(f"{letter}. {text}" for letter, text in option_texts(options).items())
    wanted = ("every right option" if kind == "multi" else "one option") if listed else "the answer"
    return (f"{question}{f' Options: {listed}.' if listed else ''} Think in <think> </think>, then give {wanted} in "
            "<answer> </answer>.")


def lesion_question(finding: str) -> str:
    """The yes/no question about one finding or disease, in its first wording."""
    return TEMPLATES["wordings"]["L3a"][0].format(finding)


@cache
def lineage(label: str) -> list[str]:
    """The label and the wider ones it is always a case of: PDR, Severe NPDR or PDR, Diabetic retinopathy."""
    wider = [wide for wide, names in TEMPLATES["narrower"].items() if label in names]
    return [label, *(lineage(wider[0]) if wider else ())]


@cache
def related(a: str, b: str) -> bool:
    """Whether one image may rightly be called both: synonyms, a label and a wider one, or labels that overlap."""
    for absent, other in ((a, b), (b, a)):
        if absent.startswith("No ") and a != b:  # "No DR" rules out retinopathy and nothing else
            return not related(canonical_label(absent[3:]) or absent[3:], other)
    rows = [row for entry in reference("labels.json")["datasets"] for row in entry["labels"] if row["kind"] != "lesion"]
    mine, theirs = ({key(name), *(key(s) for row in rows if row["canonical"] == name for s in row["synonyms"])}
                    for name in (a, b))
    overlap = any(y in table.get(x, ()) for table in (TEMPLATES["overlap"], reference("rules.json")["wider_labels"])
                  for x, y in ((a, b), (b, a)))
    return overlap or a in lineage(b) or b in lineage(a) or not mine.isdisjoint(theirs)


def is_finding(label: str) -> bool:
    """Whether a label only names what is seen: such names are spelt small, except RPE atrophy and the like."""
    return label[0].islower() or label in findings()


@cache
def no_diagnoses(dataset: str) -> frozenset[str]:
    """Labels of the data set that are no diagnosis though they may look like one: second columns, quality, systemic."""
    rows = [row for entry in reference("labels.json")["datasets"] if entry["dataset"] == dataset
            for row in entry["labels"] if row["kind"] not in ("diagnosis", "grade")]
    return frozenset([*TEMPLATES["unproven"], *(row["canonical"] for row in rows)])


def diagnoses(dataset: str, labels: Iterable[str]) -> list[str]:
    """The most specific diagnoses or grades among an image's labels; beside a DR grade macular edema is no rival."""
    found = [label for label in labels if not is_finding(label) and label not in no_diagnoses(dataset)]
    if set(found) & {*GRADES, "Severe NPDR or PDR"}:
        found = [label for label in found if "DME" not in label]
    return [label for label in found if not any(label in lineage(name)[1:] for name in found)]


class Outline(NamedTuple):
    """What a mask tells in words."""
    quadrants: list[str]  # that hold a tenth of one region or more
    share: float          # of the image's area
    regions: int
    centre: float         # of all marked pixels, in widths from the left


def outline(mask: np.ndarray) -> Outline:
    """Place, size and count of what a bool (height, width) mask marks; it must mark something.
    The area is exact. Regions are counted after pooling to MASK_PIXELS, where gaps of a few pixels close."""
    from scipy import ndimage
    share, step = float(mask.mean()), -(-max(mask.shape) // MASK_PIXELS)
    for axis in (0, 1) if step > 1 else ():
        mask = np.logical_or.reduceat(mask, range(0, mask.shape[axis], step), axis=axis)
    numbers, count = ndimage.label(mask, np.ones((3, 3)))
    y, x = mask.nonzero()
    place = 2 * (2 * y >= mask.shape[0]) + (2 * x >= mask.shape[1])
    pixels = np.bincount(4 * (numbers[y, x] - 1) + place, minlength=4 * count).reshape(count, 4)
    held = (pixels >= QUADRANT_PART * pixels.sum(1, keepdims=True)).any(0)
    return Outline([QUADRANTS[i] for i in held.nonzero()[0]], share, count, (float(x.mean()) + 0.5) / mask.shape[1])


def binned(value: float, bins: Mapping[float, str]) -> tuple[list[str], list[str]]:
    """(the texts of all bins, that of the first bin whose end is above the value)."""
    return list(bins.values()), [text for end, text in bins.items() if value < end][:1]


def make_questions(records: pd.DataFrame, settings, seed: int, root: Path | None = None,
                   wordings: int = 3) -> pd.DataFrame:
    """questions.parquet from records with final splits; `settings` is the section `data`.
    Every image with provable diagnoses gets its L4b, L4c or L4d question; FFA, which has no knowledge pages, none of
    L3b-d and L4; images without labels nothing. Shares of the images: `modality_share` L1a and, of test images, L4a;
    `laterality_share` L2b; `lesion_share` L3a of one finding (of test images all, and every annotated finding);
    `mask_share` L2a and L3b-d of one outlined lesion, read from the masks below `root` (None: not asked); `open_share`
    the diagnosis without options and, of training images, L4a. Wrong options are labels of the same data set and
    modality, never `related` to a right one. `wordings`: how many of each task's are drawn from (the small model knows
    one). Each draw has a seed made of seed, image and task: one more image changes no other question. Raises DataError
    for a mask that cannot be read."""
    found = records[records["labels"].map(len) > 0]
    proven = [[] if row.modality == "FFA" else diagnoses(row.dataset, row.labels) for row in found.itertuples()]
    found = found.assign(diagnoses=proven)
    known: dict[tuple[str, str], tuple[set[str], set[str]]] = {}
    for row in found.itertuples():
        names, lesions = known.setdefault((row.dataset, row.modality), (set(), set(ANNOTATED.get(row.dataset, ()))))
        names.update(row.diagnoses)
        lesions.update(filter(is_finding, row.labels))
    rows = [question for row in found.itertuples() for question in
            questions_of(row, *map(sorted, known[row.dataset, row.modality]), settings, seed, root, wordings)]
    return pd.DataFrame(rows, columns=COLUMNS)


def questions_of(record, known: list[str], lesions: list[str], settings, seed: int, root: Path | None,
                 wordings: int) -> list[dict]:
    """The questions about one record; `known` diagnoses and `lesions` are what its data set tells apart."""
    def rng(name: str) -> random.Random:
        return random.Random(f"{seed}/{record.id}/{name}")

    def drawn(name: str, share: float) -> bool:
        return rng(name).random() < share

    def ask(level: str, kind: str, texts: Iterable[str], right: Iterable[str], about: str = "", **more) -> None:
        item = "-".join([level, *filter(None, [more.get("finding")]), *["open"] * (kind == "open")])
        texts, right = list(texts), list(right)
        rng(f"{item}/options").shuffle(texts)
        options, name = as_options(texts), f"{level}, several" if kind == "multi" and level == "L4b" else level
        answers = [option for option in options if option["text"] in right]
        rows.append({
            "id": f"{record.id}/{item}", "record_id": record.id, "path": record.path, "split": record.split,
            "modality": record.modality, "dataset": record.dataset, "camera": record.camera, "level": level,
            "task": TEMPLATES["tasks"][level], "kind": kind, "options": options or None, "label": None, "finding": None,
            "question": rng(f"{item}/wording").choice(TEMPLATES["wordings"][name][:wordings]).format(about),
            "answer": ",".join(option["letter"] for option in answers) or right[0],
            "answer_text": ", ".join(option["text"] for option in answers) or right[0], **more})

    rows, test, marked = [], record.split == "test", {mask["finding"]: mask["path"] for mask in record.masks}
    if drawn("L1a", settings.modality_share):
        ask("L1a", "single", MODALITIES, [record.modality])
    if isinstance(record.laterality, str) and drawn("L2b", settings.laterality_share):
        ask("L2b", "single", SIDES, [f"{record.laterality.capitalize()} eye"])
    judged = marked or any(map(is_finding, record.labels)) or set(record.labels) == {"Normal"}  # or unknown
    if lesions and judged and (test or drawn("L3a", settings.lesion_share)):
        for finding in lesions if test else [rng("finding").choice(lesions)]:
            present = finding in marked or finding in record.labels
            ask("L3a", "yesno", YES_NO, [YES_NO[not present]], finding, finding=finding)
    if root is not None:
        if "optic disc" in marked and drawn("L2a", settings.mask_share):
            centre = outline(read_mask(image_path(root, marked["optic disc"]))).centre
            if abs(centre - 0.5) >= DISC_MARGIN:
                ask("L2a", "single", HALVES, [HALVES[centre > 0.5]])
        outlined = [finding for finding in lesions if finding in marked and record.modality != "FFA"]
        if outlined and (levels := [level for level in ("L3b", "L3c", "L3d") if drawn(level, settings.mask_share)]):
            finding = rng("outlined").choice(outlined)
            seen = outline(read_mask(image_path(root, marked[finding])))
            asked = {"L3b": ("multi", QUADRANTS, seen.quadrants), "L3c": ("single", *binned(seen.share, SIZES)),
                     "L3d": ("single", *binned(seen.regions, COUNTS))}
            for level in levels:
                ask(level, *asked[level], finding, finding=finding)
    if (right := record.diagnoses) and (len(known) > 1 or right[0] in GRADES):  # GRAPE: one label, nothing to ask
        diseases = sorted({lineage(name)[-1] for name in known if name != "Normal" and not name.startswith("No ")})
        there = [disease for disease in diseases if any(disease in lineage(name) for name in right)]
        absent = [disease for disease in diseases if not any(related(disease, name) for name in right)]
        sides = [side for side in (there, absent) if side]
        if sides and drawn("L4a", settings.modality_share if test else settings.open_share):
            disease = rng("L4a/disease").choice(rng("L4a/side").choice(sides))
            named = disease.lower() if disease[1:].islower() else disease  # but: DME, Vogt-Koyanagi-Harada disease
            ask("L4a", "yesno", YES_NO, [YES_NO[disease in absent]], named)
        level, offered, beside = "L4d" if set(known) <= AMD_TYPES else "L4b", known, set(known) - set(GRADES)
        one_scale = not any("Diabetic retinopathy" in lineage(name) for name in beside)  # JSIEC pools grades: no scale
        if (grades := [name for name in right if name in GRADES]) and one_scale and (not beside or "No DR" in known):
            level, offered, right = "L4c", GRADES, grades
        others = [name for name in offered if not any(related(name, own) for own in right)]
        wrong = rng("L4").sample(others, max(0, min(len(others), MOST_OPTIONS - len(right))))
        label = right[0] if len(right) == 1 else None
        if wrong:
            ask(level, "single" if label else "multi", [*right, *wrong], right, label=label)
        if wrong and label and drawn("open", settings.open_share):
            ask(level, "open", (), right, label=label)
    return rows
