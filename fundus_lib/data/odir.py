"""OIA-ODIR / ODIR-5K: CFP of both eyes; the eight categories are the patient's, an eye's own come from its keywords."""

import os
import re
from itertools import compress
from pathlib import Path

from fundus_lib.data.records import Problem, Record, child, codes, folders, matched, pictures, plain, read_table

# Kaggle's table, the competition's, the repository's three (both sets beside its training set are tests).
TABLE = re.compile(r"full_df\.csv|ODIR-5K_Training_Annotations.*V2\.xlsx|(training|o(ff|n)-site test) annotation "
                   r"\(English\)\.xlsx", re.IGNORECASE)
COLUMNS = ["ID", "Left-Fundus", "Right-Fundus", "Left-Diagnostic Keywords", "Right-Diagnostic Keywords"]
SEPARATOR = re.compile("[\uff0c?,]")  # a full-width comma; "?" in a copy that lost it; a plain comma twice
# On all 3,358 patients of full_df.csv these give the published letters; a disease that fits none is O, drusen too.
DISEASES = {"N": "^normal fundus$", "D": "diabetic|proliferative", "G": "glaucoma", "C": "cataract",
            "A": "age-related macular", "H": "hypertensive", "M": "myopi",
            "": "^$|lens dust|image|photographically invisible"}  # low image quality, no fundus image, image offset...


def find(root: Path) -> list[Path]:
    """Folders with full_df.csv or ODIR-5K_Training_Annotations*V2.xlsx and, in it or below, Training Images; or with
    Training Set/Annotation/training annotation (English).xlsx and Training Set/Images."""
    tables = [f for f in folders(root, 5) if any(map(TABLE.fullmatch, os.listdir(f)))]
    homes = {f.parents[1] if plain(f.name) == "Annotation" else f for f in tables}
    return sorted(home for home in homes if not homes & set(home.parents))


def letters_of(keywords: str) -> set[str]:
    """The categories of one eye: N only without any disease, none where all that is named is the picture's quality."""
    said = [word.strip() for word in SEPARATOR.split(keywords.lower())]
    found = {letter for word in said for letter in [c for c, term in DISEASES.items() if re.search(term, word)] or "O"}
    return found - {"N", ""} or found & {"N"}


def read(home: Path) -> tuple[list[Record], list[Problem]]:
    """Every eye whose keywords name a category, where both eyes together give the patient's columns."""
    records, problems = [], []
    for file in [f / name for f in folders(home, 3) for name in os.listdir(f) if TABLE.fullmatch(name)]:
        split = "test" if "site test" in file.name.lower() else "train"
        beside = child(file.parents[1], "Images") if plain(file.parent.name) == "Annotation" else None
        images = pictures(beside or next((f for f in folders(home, 3) if plain(f.name) == "Training Images"), None))
        table = read_table(file, COLUMNS).drop_duplicates(COLUMNS)  # Kaggle repeats the patient for the second eye
        given = table.iloc[:, table.columns.get_loc(COLUMNS[-1]) + 1:].eq("1").to_numpy()  # N to O, by place
        rows = zip(table.index, table[COLUMNS].to_numpy(), given, strict=True)
        for row, (patient, *files, left, right), columns in rows:
            told, both = set(compress("NDGCAHMO", columns)), letters_of(f"{left},{right}") or {"N"}
            for photo, side, words in zip(files, ("left", "right"), (left, right), strict=True):
                name, letters = Path(photo).stem, letters_of(words)
                if told != both or not letters:
                    why = "no category" if told == both else f"the eyes mean {sorted(both)}, the columns {sorted(told)}"
                    problems.append(Problem("OIA-ODIR", file, row, f"{name}, {words!r}: {why}"))
                elif name in images:
                    labels = tuple(codes("OIA-ODIR")[letter] for letter in "NDGCAHMO" if letter in letters)
                    records.append(Record(f"OIA-ODIR-{split}-{name}", images[name], "OIA-ODIR", "CFP", labels, split,
                                          patient, laterality=side))
        problems += matched("OIA-ODIR", file, [Path(name).stem for name in table[COLUMNS[1:3]].to_numpy().flat], images)
    return records, problems
