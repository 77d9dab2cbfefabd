"""TOP (Tsukazaki Optos): ultra-widefield, nine 0/1 labels, patient and side of every image; no splits."""

from pathlib import Path

from fundus_lib.data.records import Problem, Record, child, codes, folders, listed, matched, pictures, read_table

SIDES = {"L": "left", "R": "right"}


def find(root: Path) -> list[Path]:
    """Folders with data.csv and img."""
    return [f for f in folders(root, 3) if (f / "data.csv").is_file() and child(f, "img")]


def read(home: Path) -> tuple[list[Record], list[Problem]]:
    """Every listed image; all nine zero means Normal. Patient numbers keep their leading zeros."""
    diseases = {code: name for code, name in codes("TOP").items() if not code.startswith("(")}
    file, images = home / "data.csv", pictures(child(home, "img"))
    table = read_table(file, ["filename", "ID", "LR", *diseases])
    stems = [Path(name).stem for name in table["filename"]]
    records, problems = [], []
    for (row, cells), stem in zip(table.iterrows(), stems, strict=True):
        labels = listed(cells, diseases)
        if labels is None or cells["LR"] not in SIDES or not cells["ID"]:
            reason = f"{stem}: a label neither 0 nor 1, or LR neither L nor R, or no patient"
            problems.append(Problem("TOP", file, row, reason))
        elif stem in images:
            labels = labels or (codes("TOP")["(all nine zero)"],)
            records.append(Record(f"TOP-{stem}", images[stem], "TOP", "UWF", labels, "train", patient=cells["ID"],
                                  laterality=SIDES[cells["LR"]]))
    return records, problems + matched("TOP", file, stems, images)
