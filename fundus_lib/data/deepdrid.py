"""DeepDRiD: DR grade of every eye on CFP (regular fundus) and UWF; splits as published, test labels in workbooks."""

import re
from pathlib import Path

from fundus_lib.data.records import Problem, Record, child, codes, folders, matched, pictures, read_table

PARTS = {"CFP": "regular_fundus_images", "UWF": "ultra-widefield_images"}
EYES = ("left_eye_DR_Level", "right_eye_DR_Level")  # one of them is empty
SETS = (  # modality, split, folder, label file, columns that may hold the grade
    ("CFP", "train", "regular-fundus-training", "regular-fundus-training.csv", EYES),
    ("CFP", "val", "regular-fundus-validation", "regular-fundus-validation.csv", EYES),
    ("CFP", "test", "Online-Challenge1&2-Evaluation", "Challenge1_labels.xlsx", ("DR_Levels",)),
    ("UWF", "train", "ultra-widefield-training", "ultra-widefield-training.csv", ("DR_level",)),
    ("UWF", "val", "ultra-widefield-validation", "ultra-widefield-validation.csv", ("DR_level",)),
    ("UWF", "test", "Online-Challenge3-Evaluation", "Challenge3_labels.xlsx", ("UWF_DR_Levels",)))
NAME = re.compile(r"(?P<patient>\d+)_(?P<side>[lr])\d+")


def find(root: Path) -> list[Path]:
    """Folders with regular_fundus_images or ultra-widefield_images."""
    return [f for f in folders(root, 3) if any(child(f, part) for part in PARTS.values())]


def read(home: Path) -> tuple[list[Record], list[Problem]]:
    """Every graded image. The grade is in the column that is filled, the side in the file's name, even of 56_r3 (graded
    as left) and 56_l3 (as right). `patient` names the part: whether both number the same patients nobody says."""
    records, problems = [], []
    for modality, split, place, table, columns in [row for row in SETS if child(home, PARTS[row[0]])]:
        folder = child(home, PARTS[modality], place) or home / PARTS[modality] / place
        if not (file := folder / table).is_file():
            problems.append(Problem("DeepDRiD", file, None, "no such label file: half unpacked?"))
            continue
        rows = read_table(file, ["image_id", *columns])
        images = {stem: f for d in folders(child(folder, "Images") or folder, 1) for stem, f in pictures(d).items()}
        for row, cells in rows.iterrows():
            grades = [cells[column].removesuffix(".0") for column in columns if cells[column]]
            match = NAME.fullmatch(name := cells["image_id"])
            if not match or len(grades) != 1 or grades[0] not in tuple("01234"):
                reason = "not one of 0 to 4 (5 = ungradable)" if match else "but this is no name like 12_l1"
                problems.append(Problem("DeepDRiD", file, row, f"{name!r} has the grades {grades}, {reason}"))
            elif name in images:
                key, side = f"DeepDRiD-{modality}-{split}-{name}", {"l": "left", "r": "right"}[match["side"]]
                records.append(Record(key, images[name], "DeepDRiD", modality, (codes("DeepDRiD")[grades[0]],), split,
                                      f"{modality}-{match['patient']}", laterality=side))
        problems += matched("DeepDRiD", file, list(rows["image_id"]), images)
    return records, problems
