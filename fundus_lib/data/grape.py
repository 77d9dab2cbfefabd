"""GRAPE: CFP of glaucoma eyes at several visits; a workbook tells whether their visual field got worse."""

from pathlib import Path

import pandas as pd

from fundus_lib.data.records import DataError, Problem, Record, child, folders, matched, pictures, read_table

WORKBOOK = "VF and clinical information.xlsx"
COLUMNS = ["Subject Number", "Laterality", "Corresponding CFP"]
SHEETS = {"Follow-up": [], "Baseline": [f"Progression Status/{criterion}" for criterion in ("PLR2", "PLR3", "MD")]}
SIDES = {"OD": "right", "OS": "left"}


def find(root: Path) -> list[Path]:
    """Folders with `VF and clinical information.xlsx` and CFPs."""
    return [f for f in folders(root, 3) if (f / WORKBOOK).is_file() and child(f, "CFPs")]


def read(home: Path) -> tuple[list[Record], list[Problem]]:
    """Every photograph that a visit names; some are named on both sheets. All eyes have glaucoma. A second label says
    whether the eye gets worse by any of three criteria over all visits, which one photograph cannot prove."""
    file, folder = home / WORKBOOK, child(home, "CFPs")
    images, eyes, course, problems = pictures(child(folder, "CFPs") or folder), {}, {}, []
    for sheet, criteria in SHEETS.items():
        for row, (number, side, photograph, *told) in read_sheet(file, sheet, COLUMNS + criteria).iterrows():
            eye, name = f"{number.removesuffix('.0')}_{side}", Path(photograph).stem  # "/" = no photograph
            told = {cell.removesuffix(".0") for cell in told}
            if side not in SIDES or told - {"0", "1", "/", ""} or (name or f"{eye}_").rpartition("_")[0] != eye:
                reason = f"{sheet}: eye {eye}, photograph {photograph!r}, progression {sorted(told)} do not fit"
                problems.append(Problem("GRAPE", file, row, reason))
            elif name:
                eyes[name] = eye
            if told and told <= {"0", "1"}:
                course[eye] = ("Visual field progression" if "1" in told else "No visual field progression",)
    records = [Record(f"GRAPE-{name}", images[name], "GRAPE", "CFP", ("Glaucoma", *course.get(eye, ())), "train",
                      eye[:-3], laterality=SIDES[eye[-2:]]) for name, eye in eyes.items() if name in images]
    return records, problems + matched("GRAPE", file, list(eyes), images)


def read_sheet(file: Path, sheet: str, columns: list[str]) -> pd.DataFrame:
    """`columns` of a sheet as text; its two header rows are joined: "Progression Status/PLR2", "Laterality"."""
    table = read_table(file, ["0"], header=None, sheet=sheet)
    above = table.iloc[0].where(table.iloc[0].ne("")).ffill().fillna("")
    names = [f"{top}/{name}" if name else top for top, name in zip(above, table.iloc[:2].iloc[-1], strict=True)]
    if missing := [name for name in columns if names.count(name) != 1]:
        raise DataError(f"{file}, sheet {sheet}: no {', '.join(missing)} in its two header rows; take the official one")
    return table.iloc[2:].set_axis(names, axis=1)[columns]
