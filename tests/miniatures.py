"""Tiny copies of the data sets whose layout needs code of its own; each function writes one and returns its folder."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

ODIR = ("ID,Patient Age,Patient Sex,Left-Fundus,Right-Fundus,Left-Diagnostic Keywords,Right-Diagnostic Keywords,"
        "N,D,G,C,A,H,M,O")
GREEN, RED, BLUE, YELLOW = (0, 255, 0), (255, 0, 0), (0, 0, 255), (255, 255, 0)


def picture(file: Path, shade: int = 1) -> Path:
    """A picture of one colour."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 16), (shade % 256, 90, 60)).save(file)
    return file


def text(file: Path, lines: list[str]) -> Path:
    """A text file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def sheets(file: Path, tables: dict[str, list[list]]) -> Path:
    """A workbook of sheets, their header rows included."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with pd.ExcelWriter(file) as book:
        for name, rows in tables.items():
            pd.DataFrame(rows).to_excel(book, sheet_name=name, header=False, index=False)
    return file


def odir(root: Path, rows: list[tuple[int, str, str, str]], table: str = "full_df.csv") -> Path:
    """rows: (patient, keywords left, keywords right, letters); the pictures go where `table` expects them."""
    cells = [[number, 60, "Male", f"{number}_left.jpg", f"{number}_right.jpg", left, right,
              *(int(letter in letters) for letter in "NDGCAHMO")] for number, left, right, letters in rows]
    if table.endswith(".csv"):
        text(root / table, [ODIR, *(",".join(f'"{cell}"' for cell in row) for row in cells)])
    else:
        sheets(root / table, {"Sheet1": [ODIR.split(","), *cells]})
    beside = (root / table).parents[1] / "Images" if "Annotation/" in table else root / "ODIR-5K/Training Images"
    for number, side in [(row[0], side) for row in rows for side in ("left", "right")]:
        picture(beside / f"{number}_{side}.jpg", number)
    return root


def deepdrid(root: Path, regular: list[str], wide: list[str], test: list[tuple[str, str]] = ()) -> Path:
    """regular: "56_r3 1 -" = grades left, right; wide: "1_r1 0"; test: (image_id, grade) of the regular test set."""
    lines = ["patient_id,image_id,image_path,Overall quality,left_eye_DR_Level,right_eye_DR_Level,patient_DR_Level,"
             "Clarity,Field definition,Artifact"]
    base = root / "regular_fundus_images"
    for name, left, right in map(str.split, regular):
        patient = name.split("_")[0]
        lines.append(f"{patient},{name},\\regular-fundus-training\\{patient}\\{name}.jpg,1,{left.strip('-')},"
                     f"{right.strip('-')},4,8,8,0")
        picture(base / "regular-fundus-training/Images" / patient / f"{name}.jpg")
    text(base / "regular-fundus-training/regular-fundus-training.csv", lines)
    text(base / "regular-fundus-validation/regular-fundus-validation.csv", lines[:1])
    for name, _ in test:
        picture(base / "Online-Challenge1&2-Evaluation/Images" / name.split("_")[0] / f"{name}.jpg")
    sheets(base / "Online-Challenge1&2-Evaluation/Challenge1_labels.xlsx",
           {"Sheet1": [["image_id", "DR_Levels"], *test]})
    base, lines = root / "ultra-widefield_images", ["patient_id,image_id,image_path,DR_level,position"]
    for name, grade in map(str.split, wide):
        patient = name.split("_")[0]
        lines.append(f"{patient},{name},ultra-widefield-training\\{patient}\\{name}.jpg,{grade},right_eye")
        picture(base / "ultra-widefield-training/Images" / patient / f"{name}.jpg")
    text(base / "ultra-widefield-training/ultra-widefield-training.csv", lines)
    text(base / "ultra-widefield-validation/ultra-widefield-validation.csv", lines[:1])
    sheets(base / "Online-Challenge3-Evaluation/Challenge3_labels.xlsx", {"Sheet1": [["image_id", "UWF_DR_Levels"]]})
    return root


def mmc_amd(root: Path, lists: dict[str, list[str]], way: str = "mmc-amd-splitA") -> Path:
    """lists: "train/cfp" -> ["f-w-1544817 3"]; others are not there."""
    places = {"cfp": "cfp-clahe-448x448", "oct": "oct-median3x3-448x448"}
    for split, modality in [(split, modality) for split in ("train", "val", "test") for modality in places]:
        if lines := lists.get(f"{split}/{modality}", []):
            text(root / f"{way}-{split}/annotations/{modality}.txt", lines)
        for line in filter(str.strip, lines):
            picture(root / "mmc-amd/ImageData" / places[modality] / f"{line.split()[0]}.jpg")
    return root


def oimhs(root: Path, areas: dict[str, list[tuple]]) -> Path:
    """areas: "7/3" (eye and number) -> the colours of the mask, a 10 x 10 square each."""
    for name, colors in areas.items():
        pixels = np.zeros((512, 1024, 3), np.uint8)
        pixels[:, :512] = 90
        for k, color in enumerate(colors):
            pixels[100:110, 512 + 20 * k:522 + 20 * k] = color
        file = root / "Images" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file, compress_level=1)
    return root


def metaimage(header: Path, values: np.ndarray, local: bool = False, **fields: str) -> Path:
    """A volume as SimpleITK writes it; `fields` replace lines of the header. values: (B-scans, rows, columns)."""
    types = {"uint8": "MET_UCHAR", "uint16": "MET_USHORT", "float32": "MET_FLOAT"}
    lines = {"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
             "CompressedData": "False", "ElementSpacing": "0.01 0.002 0.05",
             "DimSize": " ".join(map(str, reversed(values.shape))), "ElementType": types[values.dtype.name],
             **fields, "ElementDataFile": fields.get("ElementDataFile", "LOCAL" if local else f"{header.stem}.raw")}
    header.parent.mkdir(parents=True, exist_ok=True)
    head = "".join(f"{key} = {value}\n" for key, value in lines.items() if value is not None).encode()
    header.write_bytes(head + values.tobytes() if local else head)
    if not local:
        header.with_suffix(".raw").write_bytes(values.tobytes())
    return header


def retouch(root: Path, volumes: dict[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    """volumes: "Cirrus/TRAIN001" -> values of the scan and of its reference."""
    for name, (scan, reference) in volumes.items():
        for file, values in (("oct.mhd", scan), ("reference.mhd", reference)):
            metaimage(root / f"RETOUCH-TrainingSet-{name}" / file, values)
    return root


def grape(root: Path, baseline: list[list], follow_up: list[list]) -> Path:
    """baseline: [patient, eye, PLR2, PLR3, MD, photograph]; follow_up: [patient, eye, visit, photograph]."""
    tops = ["Subject Number", "Laterality", "Progression Status", None, None, "RNFL", "Corresponding CFP", "VF", None]
    first = [[*row[:5], 80.5, row[5], 21, "/"] for row in baseline]
    later = [[*row[:3], 15.2, row[3], 21] for row in follow_up]
    heads = ["Subject Number", "Laterality", "Visit Number", "IOP", "Corresponding CFP", "VF"]
    sheets(root / "VF and clinical information.xlsx", {
        "Baseline": [tops, [None, None, "PLR2", "PLR3", "MD", "Mean", None, 0, 1], *first],
        "Follow-up": [heads, [None] * 5 + [0], *later]})
    for name in {str(row[-1]) for row in baseline + follow_up} - {"/"}:
        picture(root / "CFPs" / name)
    return root
