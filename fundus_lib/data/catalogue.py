"""What is known about each public data set: one entry of references/catalogue/*.yaml says how it is found and read."""

import functools
import re
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from fundus_lib.data import records as disk
from fundus_lib.settings import Section

FOLDER = Path(__file__).parents[1] / "references/catalogue"
Modality = Literal["CFP", "OCT", "UWF", "FFA"]
Split = Literal["train", "val", "test"]


def pattern(text: str) -> str:
    """A regular expression whose groups mean something to the readers. Raises ValueError otherwise."""
    try:
        unknown = re.compile(text).groupindex.keys() - {"name", "part", "split", "code", "patient", "eye"}
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    if unknown:
        raise ValueError(f"{text!r}: no such group: {', '.join(unknown)}")
    return text


Pattern = Annotated[str, AfterValidator(pattern)]
Columns = Annotated[list[str], BeforeValidator(lambda names: [names] if isinstance(names, str) else names)]


class Table2(Section):
    images: int
    pixel_labelled: int
    rule: str                              # how the paper's number comes about, in words; then the same for the machine
    splits: list[Split] = ["train", "val", "test"]
    share: float = 1                       # of the images in these splits
    less: int = 0                          # images fewer


class Counts(Section):
    images: int | None = None
    pixel_labelled: int | None = None
    table2: Table2 | None = None


class Home(Section):
    """Which folder a data set is read from, see readers.find."""
    has: list[str]
    lacks: list[str] = []
    only: str = ""


class Images(Section):
    path: Pattern
    split: Split | None = None
    modality: Modality | None = None
    code: str | None = None


class Masks(Section):
    path: Pattern
    finding: str | None = None
    value: Literal["nonzero", "zero"] | int = "nonzero"


class LabelTable(Section):
    file: str
    name: str
    name_pattern: Pattern | None = None
    header: int | None = 0
    code: Columns = []
    codes: dict[str, dict[str, str | None]] = {}
    one_hot: list[str] = []
    none: str | None = None
    must: dict[str, str] = {}
    patient: Columns = []
    eye: str | None = None
    split: Split | None = None
    split_column: str | None = None


class DataSet(Section):
    """One data set; the file's head explains the fields."""
    name: str
    modality: Annotated[list[Modality], Field(min_length=1)]
    task: str
    licence: str
    access: Literal["open", "form", "challenge"]
    url: str
    citation: str
    confidence: Literal["measured", "code", "memory"]
    roles: dict[Literal["fundus_r1", "ophthareason", "benchmark"], str | list[str]] = {}
    counts: Counts = Counts()
    layout: str
    note: str = ""
    home: Home | None = None
    reader: str = "files"
    codes: dict[str, str] = {}
    leave_out: dict[str, str] = {}
    images: list[Images] = []
    splits: dict[str, Split] = {}
    per_split: bool = False
    tables: list[LabelTable] = []
    eyes: dict[str, Literal["left", "right"] | None] = {}
    masks: list[Masks] = []
    ignore: list[Pattern] = []
    annotated: list[str] = []

    @functools.cached_property
    def labels(self) -> dict[str, str]:
        """Own code in lower case -> canonical label."""
        return {code.lower(): label for code, label in {**disk.codes(self.name), **self.codes}.items()}


@functools.cache
def catalogue() -> dict[str, DataSet]:
    """Every data set by name. Raises DataError that names file, set and key when an entry is malformed."""
    found: dict[str, DataSet] = {}
    for file in sorted(FOLDER.glob("*.yaml")):
        for entry in yaml.load(file.read_text("utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or []:
            try:
                known = DataSet.model_validate(entry)
            except ValidationError as error:
                wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
                raise disk.DataError(f"{file}: {entry.get('name', 'an entry without a name')}: {wrong}") from None
            if known.name in found:
                raise disk.DataError(f"{file}: {known.name} is there twice")
            found[known.name] = known
    return found


def table2(records: pd.DataFrame) -> pd.DataFrame:
    """Fundus-R1's Table 2 from the records of read_downloads; published numbers and rule beside. samples:
    images with a diagnosis or grade (all for segmentation). pixel_labelled: images with lesion masks, copies once."""
    rows = []
    for entry in (entry for entry in catalogue().values() if entry.counts.table2):
        paper, here = entry.counts.table2, records[records["dataset"] == entry.name]
        lesions, inside = set(entry.annotated), here["split"].isin(paper.splits)
        outlined = here["masks"].map(lambda masks, of=lesions: min((m["path"] for m in masks if m["finding"] in of),
                                                                   default=None))
        graded = here["labels"].map(lambda labels, of=lesions: not set(labels) <= of) | ("segmentation" in entry.task)
        drawn = outlined.notna() & ~outlined.duplicated()
        rows.append({
            "modality": "+".join(entry.modality), "dataset": entry.name,
            "samples": max(round((inside & graded).sum() * paper.share) - paper.less, 0),
            "pixel_labelled": round((inside & drawn).sum() * paper.share), "task": entry.task,
            "published_samples": paper.images, "published_pixel_labelled": paper.pixel_labelled, "rule": paper.rule})
    return pd.DataFrame(rows)
