"""IDRiD: part A (segmentation) holds lesion masks, part B (grading) DR grades; partly the same photographs."""

from pathlib import Path

from fundus_lib.data import records as disk
from fundus_lib.data.records import DataError, Problem, Record, child, folders, matched, pictures, plain

GRADES = ("No DR", "Mild NPDR", "Moderate NPDR", "Severe NPDR", "PDR")
DME_RISKS = ("No DME", "DME (mild risk)", "DME (severe risk)")
LESIONS = {"MA": "microaneurysm", "HE": "retinal hemorrhage", "EX": "hard exudate", "SE": "cotton-wool spot"}
FINDING_OF = {**LESIONS, "OD": "optic disc"}  # every annotated photograph has a disc mask
PARTS = ("A. Segmentation", "B. Disease Grading")
SETS = {"train": "a. Training Set", "test": "b. Testing Set"}


def find(root: Path) -> list[Path]:
    """Folders with `A. Segmentation` or `B. Disease Grading` (each may lie in a folder of its own name)."""
    parts = [f for f in folders(root, 4) if plain(f.name) in PARTS and plain(f.parent.name) not in PARTS]
    return sorted({part.parent for part in parts})


def read(home: Path) -> tuple[list[Record], list[Problem]]:
    """Every photograph of both parts: grades in B, masks and the names of the lesions they show in A."""
    records, problems = [], []
    for name, read_part in zip(PARTS, (read_masks, read_grades), strict=True):
        if part := child(home, name):
            part = child(part, name) or part
            both = [read_part(part, split, pictures(child(part, "1. Original Images", SETS[split]))) for split in SETS]
            if not any(found for found, _ in both):
                problems.append(Problem("IDRiD", part, None, "no image with its ground truth: half unpacked?"))
            records += [record for found, _ in both for record in found]
            problems += [problem for _, wrong in both for problem in wrong]
    return records, problems


def read_grades(part: Path, split: str, images: dict[str, Path]) -> tuple[list[Record], list[Problem]]:
    """Part B, one split. The label file carries empty extra columns, and a blank after one column's name."""
    file = next(iter(part.glob(f"2. Groundtruths/{SETS[split][0]}. *.csv")), None)
    if file is None:
        return [], matched("IDRiD", part, [], images, f"the label file of {SETS[split]!r}")
    columns = ["Image name", "Retinopathy grade", "Risk of macular edema"]
    table = disk.read_table(file, columns)[columns]
    records, problems = [], []
    for row, name, grade, risk in table.itertuples():
        if grade not in tuple("01234") or risk not in tuple("012"):
            problems.append(Problem("IDRiD", file, row, f"{name}: grade {grade!r}, DME risk {risk!r}"))
        elif name in images:
            labels = (GRADES[int(grade)], DME_RISKS[int(risk)])
            records.append(Record(f"IDRiD-B-{split}-{name}", images[name], "IDRiD", "CFP", labels, split))
    return records, problems + matched("IDRiD", file, list(table["Image name"]), images)


def read_masks(part: Path, split: str, images: dict[str, Path]) -> tuple[list[Record], list[Problem]]:
    """Part A, one split. A mask file exists only where the lesion does; an empty mask counts as no lesion."""
    masks, problems = {}, []
    for file in sorted(part.glob(f"2. All Segmentation Groundtruths/{SETS[split]}/*/*.tif")):
        name, _, code = file.stem.rpartition("_")
        try:
            if code not in FINDING_OF:
                raise DataError(f"{code!r} is none of the mask codes {', '.join(FINDING_OF)}")
            mask = disk.read_mask(file)
            if name in images and not disk.same_shape(mask, images[name]):
                raise DataError(f"a mask of {mask.shape[1]} x {mask.shape[0]} pixels does not fit {images[name].name}")
            if mask.any():
                masks.setdefault(name, []).append((FINDING_OF[code], file))
        except DataError as error:
            problems.append(Problem("IDRiD", file, None, str(error)))
    records = [
        Record(f"IDRiD-A-{split}-{name}", images[name], "IDRiD", "CFP", split=split, masks=tuple(found),
               labels=tuple(finding for finding, _ in found if finding != "optic disc"))
        for name, found in masks.items() if name in images
    ]
    return records, problems + matched("IDRiD", part, sorted(masks), images, f"masks in {SETS[split]!r}")
