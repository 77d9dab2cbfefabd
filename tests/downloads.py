"""Tiny data sets in the official layouts, for the tests: each function writes one download and returns its folder."""

import csv
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

RFMID = ("ID,Disease_Risk,DR,ARMD,MH,DN,MYA,BRVO,TSLN,ERM,LS,MS,CSR,ODC,CRVO,TV,AH,ODP,ODE,ST,AION,PT,RT,RS,CRS,EDN,"
         "RPEC,MHL,RP,CWS,CB,ODPM,PRH,MNF,HR,CRAO,TD,CME,PTCR,CF,VH,MCA,VS,BRAO,PLQ,HPED,CL")
TOP = "filename,ID,age,sex,LR,AMD,RVO,Gla,MH,DR,RD,RP,AO,DM"


def picture(file: Path, seed: int, size: tuple[int, int] = (96, 64)) -> Path:
    """A picture with blobs of its own: equal seeds give the same picture at any size."""
    rng = random.Random(seed)
    image = Image.new("RGB", (384, 256), (120, 70, 40))
    pen = ImageDraw.Draw(image)
    for _ in range(40):
        x, y, radius = rng.randrange(384), rng.randrange(256), rng.randrange(8, 40)
        color = tuple(rng.randrange(60, 256) for _ in range(3))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    file.parent.mkdir(parents=True, exist_ok=True)
    image.resize(size).save(file)
    return file


def mask(file: Path, pixels: int = 5, size: tuple[int, int] = (96, 64)) -> Path:
    """A palette TIFF as IDRiD has them, with `pixels` set."""
    values = np.zeros(size[::-1], np.uint8)
    values.flat[:pixels] = 1
    image = Image.fromarray(values, "P")
    image.putpalette([0, 0, 0, 255, 0, 0])
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return file


def idrid(root: Path, grades: dict[str, list[tuple[int, int]]], masked: dict[str, dict[int, str]]) -> Path:
    """grades: split -> [(grade, DME risk)], pictures numbered over both splits; masked: split -> {seed: "MA EX OD"}."""
    sets = {"train": ("a. Training Set", "a. IDRiD_Disease Grading_Training Labels.csv", 9),
            "test": ("b. Testing Set", "b. IDRiD_Disease Grading_Testing Labels.csv", 3)}
    seed = 0
    for split, rows in grades.items():
        folder, table, extra = sets[split]
        lines = ["Image name,Retinopathy grade,Risk of macular edema " + "," * extra]
        for number, (grade, risk) in enumerate(rows, start=1):
            seed += 1
            picture(root / "B. Disease Grading/1. Original Images" / folder / f"IDRiD_{number:03d}.jpg", seed)
            lines.append(f"IDRiD_{number:03d},{grade},{risk}" + "," * extra)
        file = root / "B. Disease Grading/2. Groundtruths" / table
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\r\n".join(lines) + "\r\n")
    names = {"MA": "1. Microaneurysms", "HE": "2. Haemorrhages", "EX": "3. Hard Exudates", "SE": "4. Soft Exudates",
             "OD": "5. Optic Disc"}
    for split, images in masked.items():
        for number, (seed, found) in enumerate(images.items(), start=1):
            folder = sets[split][0]
            picture(root / "A. Segmentation/1. Original Images" / folder / f"IDRiD_{number:02d}.jpg", seed, (192, 128))
            for code in found.split():
                truth = root / "A. Segmentation/2. All Segmentation Groundtruths" / folder / names[code]
                mask(truth / f"IDRiD_{number:02d}_{code}.tif", size=(192, 128))
    return root


def ucsd(root: Path, files: dict[str, list[str]], seed: int = 1000) -> Path:
    """files: split -> ["CNV-53018-2", ...]."""
    for split, stems in files.items():
        for stem in stems:
            seed += 1
            picture(root / "OCT2017 " / split / stem.split("-")[0] / f"{stem}.jpeg", seed)
    return root


def top(root: Path, rows: list[tuple[str, str, str]], seed: int = 2000) -> Path:
    """rows: (patient, LR, "AMD DR" or "")."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "data.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(TOP.split(","))
        for number, (patient, side, found) in enumerate(rows):
            picture(root / "img" / f"{number:06d}_00.jpg", seed + number)
            flags = [int(code in found.split()) for code in TOP.split(",")[5:]]
            table.writerow([f"{number:06d}_00.jpg", patient, 70, "F", side, *flags])
    return root


def rfmid(root: Path, rows: list[str], seed: int = 3000, listed_only: int = 0) -> Path:
    """rows: "DR ODC" or "" of the test split; `listed_only` further rows have no image."""
    file = root / "Test_Set/RFMiD_Testing_Labels.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [RFMID]
    for number, found in enumerate(rows + [""] * listed_only, start=1):
        if number <= len(rows):
            picture(root / "Test_Set/Test" / f"{number}.png", seed + number)
        flags = [int(code in found.split()) for code in RFMID.split(",")[2:]]
        lines.append(",".join(map(str, [number, int(any(flags)), *flags])))
    file.write_text("\n".join(lines), encoding="utf-8-sig")
    return root
