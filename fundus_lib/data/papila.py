"""PAPILA: CFP of both eyes of a patient; one sheet an eye holds the diagnosis."""

from pathlib import Path

from fundus_lib.data.catalogue import catalogue
from fundus_lib.data.records import DataError, Problem, Record, child, folders, matched, pictures, read_table

SHEETS = {"OD": "right", "OS": "left"}


def find(root: Path) -> list[Path]:
    """Folders with FundusImages and ClinicalData in them."""
    return [home for home in folders(root, 3) if child(home, "FundusImages") and child(home, "ClinicalData")]


def read(home: Path) -> tuple[list[Record], list[Problem]]:
    """Every eye with a diagnosis. Below a sheet's header stand two rows of sub-headers, which name no patient."""
    records, problems, labels = [], [], catalogue()["PAPILA"].labels
    images = pictures(child(home, "FundusImages"))
    for code, laterality in SHEETS.items():
        file = child(home, "ClinicalData") / f"patient_data_{code.lower()}.xlsx"
        eyes = {name: path for name, path in images.items() if name.upper().endswith(code)}
        try:
            table = read_table(file, ["Unnamed: 0", "Diagnosis"])[["Unnamed: 0", "Diagnosis"]]
        except DataError as error:
            problems.append(Problem("PAPILA", file, None, str(error)))
            continue
        table = table[table["Unnamed: 0"].str.startswith("#")]
        names = [f"RET{patient[1:]}{code}" for patient in table["Unnamed: 0"]]
        for name, (row, patient, diagnosis) in zip(names, table.itertuples(), strict=True):
            if diagnosis not in labels:
                problems.append(Problem("PAPILA", file, row, f"{name}: diagnosis {diagnosis!r}"))
            elif name in eyes:
                records.append(Record(f"PAPILA-{name}", eyes[name], "PAPILA", "CFP", (labels[diagnosis],), "train",
                                      patient=patient[1:], laterality=laterality))
        problems += matched("PAPILA", file, names, eyes)
    return records, problems
