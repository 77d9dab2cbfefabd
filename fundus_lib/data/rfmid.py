"""RFMiD 1.0: CFP, 46 labels; image numbers restart at 1 in every split; two layouts are in circulation."""

import re
from pathlib import Path

from fundus_lib.data import records as disk
from fundus_lib.data.records import Problem, Record, child, codes, folders, listed, matched, pictures, plain

TABLE = re.compile(r"(?:[abc]\. )?RFMiD_(Training|Validation|Testing)_Labels\.csv")
# word in the file name -> split, image folder beside the table (challenge release), in "1. Original Images" (DataPort)
IMAGES = {"Training": ("train", "Training", "a. Training Set"), "Testing": ("test", "Test", "c. Testing Set"),
          "Validation": ("val", "Validation", "b. Validation Set")}


def tables(root: Path, depth: int) -> list[Path]:
    """The label files at and below `root`."""
    return [t for f in folders(root, depth) for t in sorted(f.glob("*RFMiD_*.csv")) if TABLE.fullmatch(t.name)]


def find(root: Path) -> list[Path]:
    """Folders with Training_Set, Evaluation_Set, Test_Set or `2. Groundtruths` that hold RFMiD_Training_Labels.csv."""
    inside = [table.parent for table in tables(root, 4)]
    return sorted({f.parent.parent if plain(f.parent.name) == plain(f.name) else f.parent for f in inside})


def read(home: Path) -> tuple[list[Record], list[Problem]]:
    """Every listed image; `Disease_Risk` 0 is the label Normal."""
    diseases = {code: name for code, name in codes("RFMiD").items() if "=" not in code}
    records, problems = [], []
    for file in tables(home, 2):
        split, beside, elsewhere = IMAGES[TABLE.fullmatch(file.name)[1]]
        images = pictures(child(file.parent, beside) or child(home, "1. Original Images", elsewhere))
        table = disk.read_table(file, ["ID", "Disease_Risk", *diseases])
        for row, cells in table.iterrows():
            labels = listed(cells, diseases)
            if labels is None or cells["Disease_Risk"] != str(int(bool(labels))):
                reason = f"{cells['ID']}: a cell is neither 0 nor 1, or Disease_Risk contradicts the other columns"
                problems.append(Problem("RFMiD", file, row, reason))
            elif cells["ID"] in images:
                records.append(Record(f"RFMiD-{split}-{cells['ID']}", images[cells["ID"]], "RFMiD", "CFP",
                                      labels or (codes("RFMiD")["Disease_Risk=0"],), split))
        problems += matched("RFMiD", file, list(table["ID"]), images)
    return records, problems
