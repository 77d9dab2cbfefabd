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


def files(root: Path, pictures: list[str], texts: dict[str, str] | None = None, size=(96, 64)) -> Path:
    """A picture of its own at each path, and text files."""
    for seed, path in enumerate(pictures, start=5000):
        picture(root / path, seed, size)
    for path, text in (texts or {}).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def gray_mask(file: Path, values: list[int], size: tuple[int, int] = (96, 64)) -> Path:
    """A gray mask whose first pixels have these values."""
    pixels = np.zeros(size[::-1], np.uint8)
    pixels.flat[: len(values)] = values
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


def fgadr(root: Path) -> Path:
    """Two photographs; the first has microaneurysms and an empty mask of hemorrhages."""
    home = root / "Seg-set"
    files(home, ["Original_Images/0001_1.png", "Original_Images/0002_1.png"],
          {"DR_Seg_Grading_Label.csv": "0001_1.png,2\n0002_1.png,0\n"})
    gray_mask(home / "Microaneurysms_Masks/0001_1.png", [255, 255])
    gray_mask(home / "Hemohedge_Masks/0001_1.png", [])
    return root


def jsiec(root: Path) -> Path:
    """Three classes; a file name ends in ..JPG."""
    return files(root / "1000images", ["0.0.Normal/a..JPG", "0.3.DR1/b.JPG", "1.1.DR3/a..JPG"])


def retinal_lesions(root: Path) -> Path:
    """One photograph; of its masks only the value 255 counts."""
    grades = "image id,kaggle label,our label\n18059_left,2,3\n"
    files(root, ["images_896x896/18059_left.jpg"], {"dr_grades.csv": grades})
    gray_mask(root / "lesion_segs_896x896/18059_left/hard_exudate.png", [255, 127, 127])
    gray_mask(root / "lesion_segs_896x896/18059_left/microaneurysm.png", [127])
    return root


def ddr(root: Path) -> Path:
    """Graded photographs in two splits, one ungradable, one outlined; one is outlined and not graded."""
    graded = ["DR_grading/train/007-1.jpg", "DR_grading/train/007-2.jpg", "DR_grading/valid/007-3.jpg"]
    drawn = ["lesion_segmentation/valid/image/007-3.jpg", "lesion_segmentation/train/image/007-9.jpg"]
    files(root / "DDR-dataset", graded + drawn,
          {"DR_grading/train.txt": "007-1.jpg 0\n007-2.jpg 5\n", "DR_grading/valid.txt": "007-3.jpg 4\n"})
    mask(root / "DDR-dataset/lesion_segmentation/valid/segmentation label/HE/007-3.tif")
    mask(root / "DDR-dataset/lesion_segmentation/train/label/EX/007-9.tif")
    return root


def octid(root: Path) -> Path:
    """Class folders, file names without patients."""
    return files(root, ["NORMAL/NORMAL67.jpeg", "AMRD/AMRD1.jpeg", "CSR/CSR2.jpeg", "DR/DR3.jpeg", "MH/MH4.jpeg"])


def octdl(root: Path) -> Path:
    """Two B-scans of one patient, one of another, whose eye is known."""
    head = "file_name,disease,subcategory,condition,patient_id,eye,sex,year,image_width,image_hight"
    return files(root / "OCTDL", ["AMD/amd_1_1.jpg", "AMD/amd_1_2.jpg", "RVO/rvo_2_1.jpg"],
                 {"OCTDL_labels.csv": f"{head}\namd_1_1,AMD,early,drusen,1,0,0,0,9,9\n"
                                      "amd_1_2,AMD,late,MNV,1,0,0,0,9,9\nrvo_2_1,RVO,late,DRIL,2,OD,M,1999,9,9\n"})


def neh(root: Path) -> Path:
    """Patient 1 twice, once a class; a B-scan of the CNV patient shows drusen only."""
    folder = "NEH_UT_2021RetinalOCTDataset"
    paths = ["CNV/1/OD/001_CNV.jpg", "CNV/1/OD/002_Drusen.jpg", "NORMAL/1/001_Normal.jpg"]
    return files(root / "NEH", [f"{folder}/{path}" for path in paths],
                 {"data_information.csv": "Patient ID,Class,Eye,B-scan,Label,Directory\n"
                  f"1,CNV,OD,1,CNV,/{paths[0]}\n1,CNV,OD,2,DRUSEN,\\CNV\\1\\OD\\002_Drusen.jpg\n"
                  f"1,NORMAL,OS,1,NORMAL,{folder}/{paths[2]}\n"})
