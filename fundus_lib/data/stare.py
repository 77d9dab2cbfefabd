"""STARE: CFP with numbered diagnoses and the diagnosis in words, in a text file of its own kind."""

from pathlib import Path

from fundus_lib.data.catalogue import catalogue
from fundus_lib.data.records import Problem, Record, folders, matched

CODES, OTHER = "all-mg-codes.txt", "14"


def find(root: Path) -> list[Path]:
    """Folders with all-mg-codes.txt in them (the images im0001.ppm beside it or below)."""
    return [home for home in folders(root, 3) if (home / CODES).is_file()]


def read(home: Path) -> tuple[list[Record], list[Problem]]:
    """Every image with its diagnoses. A line: im0001, tab, codes with blanks between, tabs, words.

    Code 14 is any other diagnosis: it gives way to what the words name.
    """
    records, problems, names, entry = [], [], [], catalogue()["STARE"]
    images = {f.stem: f for folder in folders(home, 3) for f in sorted(folder.glob("im[0-9]*.ppm"))}
    words = {code: label for code, label in entry.labels.items() if not code.isdigit()}
    for row, line in enumerate((home / CODES).read_text("latin-1").splitlines(), 1):
        name, *cells = (cell.strip() for cell in line.split("\t"))
        if not name:
            continue
        names.append(name)
        codes = cells[0].split() if cells else []
        named = [label for word, label in words.items() if word in cells[-1].lower()] if OTHER in codes else []
        labels = [entry.labels.get(code) for code in codes if code != OTHER or not named] + named
        if not labels or None in labels:
            problems.append(Problem("STARE", home / CODES, row, f"{name}: codes {' '.join(codes)!r}"))
        elif name in images:
            records.append(Record(f"STARE-{name}", images[name], "STARE", "CFP", tuple(dict.fromkeys(labels)), "train"))
    return records, problems + matched("STARE", home / CODES, names, images)
