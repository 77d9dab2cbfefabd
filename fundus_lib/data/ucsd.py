"""UCSD (Kermany OCT2017): OCT B-scans, one folder per class, the patient's number in the file name."""

from pathlib import Path

from fundus_lib.data.records import Problem, Record, child, codes, folders, pictures, plain

SPLITS = ("train", "val", "test")


def find(root: Path) -> list[Path]:
    """Folders whose train, val or test holds class folders CNV, DME, DRUSEN, NORMAL and no other (OCT-C8 has eight)."""
    def classes(home: Path) -> set[str]:
        inside = [child(home, split) for split in SPLITS]
        return {plain(f.name) for split in inside if split for f in folders(split, 1)[1:]}

    return [home for home in folders(root, 3) if (found := classes(home)) and found <= set(codes("UCSD"))]


def read(home: Path) -> tuple[list[Record], list[Problem]]:
    """Every B-scan; one whose name says another class than its folder has no label and is left out."""
    records, problems = [], []
    for split in SPLITS:
        for folder in folders(child(home, split), 1)[1:] if child(home, split) else []:
            for stem, file in pictures(folder).items():
                label, *numbers = stem.split("-")  # CNV-53018-2: class, patient, number
                if label != plain(folder.name) or len(numbers) != 2 or not numbers[0].isdecimal():
                    reason = f"the name should read {plain(folder.name)}-patient-number"
                    problems.append(Problem("UCSD", file, None, reason))
                    continue
                labels = (codes("UCSD")[label],)
                records.append(Record(f"UCSD-{split}-{stem}", file, "UCSD", "OCT", labels, split, patient=numbers[0]))
    if not records:
        problems.append(Problem("UCSD", home, None, "class folders without any B-scan: half unpacked?"))
    return records, problems
