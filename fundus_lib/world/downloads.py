"""Folders of drawn eyes in the layouts of IDRiD, UCSD (OCT2017), TOP and RFMiD, with the truth beside them."""

import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from fundus_lib.world.clinic import BLOOD, COTTON, HARD, MICRO, sample_findings
from fundus_lib.world.drawing import draw

DR, RP, AMD = "Diabetic retinopathy", "Retinitis pigmentosa", "Age-related macular degeneration"
SETS = {  # data set -> modality, images a patient, where an image lies, its code of each label
    "IDRiD": ("CFP", 1, "B. Disease Grading/1. Original Images/{folder}/IDRiD_{n:03d}.jpg",
              {"No DR": 0, "Mild NPDR": 1, "Moderate NPDR": 2, "Severe NPDR": 3, "PDR": 4}),
    "UCSD": ("OCT", 3, "OCT2017/{split}/{code}/{code}-{patient}-{k}.jpeg",
             {"Normal": "NORMAL", "Drusen": "DRUSEN", "Choroidal neovascularization": "CNV", "DME": "DME"}),
    "TOP": ("UWF", 2, "img/{patient:06d}_{k:02d}.jpg",
            {"Normal": "", DR: "DR", "Retinal vein occlusion": "RVO", "Glaucoma": "Gla", RP: "RP", AMD: "AMD"}),
    "RFMiD": ("CFP", 1, "Test_Set/Test/{n}.png", {"Normal": "", DR: "DR", RP: "RP", AMD: "ARMD"}),
}
CELLS = [("clinic", name, split) for name in ("IDRiD", "UCSD", "TOP") for split in ("train", "test")]
CELLS += [("screening", name, "test") for name in SETS]
FOLDERS = {"train": "a. Training Set", "test": "b. Testing Set"}
GRADES = {"train": ("a. IDRiD_Disease Grading_Training Labels.csv", 9),  # and its number of empty columns
          "test": ("b. IDRiD_Disease Grading_Testing Labels.csv", 3)}
MASKS = {MICRO: ("1. Microaneurysms", "MA"), BLOOD: ("2. Haemorrhages", "HE"), HARD: ("3. Hard Exudates", "EX"),
         COTTON: ("4. Soft Exudates", "SE"), "optic disc": ("5. Optic Disc", "OD")}
TOP = "AMD RVO Gla MH DR RD RP AO DM"
RFMID = ("DR ARMD MH DN MYA BRVO TSLN ERM LS MS CSR ODC CRVO TV AH ODP ODE ST AION PT RT RS CRS EDN RPEC MHL RP CWS CB "
         "ODPM PRH MNF HR CRAO TD CME PTCR CF VH MCA VS BRAO PLQ HPED CL")


def plan(train: int, test: int, masked_share: float) -> list[dict]:
    """One row an image: where it goes and what it is. A patient has one label and stays in one camera and split."""
    rows = []
    for cell, (camera, dataset, split) in enumerate(CELLS):
        modality, share, place, codes = SETS[dataset]
        part_a = 0  # number of the photograph in part A of IDRiD, whose images have masks
        for i in range(train if split == "train" else test):
            masked = dataset == "IDRiD" and int((i + 1) * masked_share) > int(i * masked_share)
            for which, (label, code) in enumerate(codes.items()):
                part_a, n = part_a + masked, i * len(codes) + which + 1
                patient = 10_000 * (cell + 1) + i // share * len(codes) + which
                row = {"camera": camera, "dataset": dataset, "split": split, "modality": modality, "label": label}
                row |= {"code": code, "patient": patient, "n": n, "k": i % share + 1, "part_a": part_a * masked}
                path = place.format(**row, folder=FOLDERS[split])
                rows.append(row | {"path": f"{camera}/{dataset}/{path}"})
    return rows


def save(image: Image.Image, file: Path, **how) -> None:
    """Save an image where no folder may be yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **how)


def write_image(root: Path, row: dict, seed: int, height: int) -> dict:
    """Draw and save one image from a seed of its own, in part A of IDRiD again and with masks; returns its facts."""
    rng = np.random.default_rng([seed, zlib.crc32(row["path"].encode())])
    findings = sample_findings(rng, row["label"], row["modality"])
    drawing = draw(rng, row["modality"], findings, camera=row["camera"], height=height)
    save(drawing.image.convert("L") if row["modality"] == "OCT" else drawing.image, root / row["path"], quality=92)
    if row["part_a"]:
        base, name = root / row["camera"] / "IDRiD" / "A. Segmentation", f"IDRiD_{row['part_a']:02d}"
        save(drawing.image, base / "1. Original Images" / FOLDERS[row["split"]] / f"{name}.jpg", quality=92)
        for finding, (lesion, code) in MASKS.items():
            mask = drawing.disc_mask if finding == "optic disc" else drawing.masks.get(finding)
            if mask is not None:
                picture = Image.fromarray(mask.astype(np.uint8))
                picture.putpalette([0, 0, 0, 255, 0, 0])
                file = base / "2. All Segmentation Groundtruths" / FOLDERS[row["split"]] / lesion / f"{name}_{code}.tif"
                save(picture, file, compression="tiff_lzw")
    mm = np.array(drawing.image.size) * drawing.pixel_mm
    far = [np.hypot(*((np.array(c) - drawing.fovea) * mm)) for c in drawing.centres.get(HARD, [])]
    risk = 0 if not far else 2 if min(far) < 1.8 else 1  # of macular edema: exudates within one disc diameter or not
    return {"path": row["path"], "findings": sorted(findings), "laterality": drawing.laterality, "risk": risk}


def write_labels(base: Path, dataset: str, rows: pd.DataFrame) -> None:
    """The label file of a data set: IDRiD with its empty columns and trailing blank, RFMiD with its byte order mark."""
    if dataset == "IDRiD":
        for split, part in rows.groupby("split"):
            name, empty = GRADES[split]
            lines = ["Image name,Retinopathy grade,Risk of macular edema "]
            lines += [f"IDRiD_{r.n:03d},{r.code},{r.risk}" for r in part.itertuples()]
            file = base / "B. Disease Grading" / "2. Groundtruths" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"{line}{',' * empty}\r\n" for line in lines), newline="")
    if dataset == "TOP":
        sheet = pd.DataFrame({"filename": rows.path.str[-13:], "ID": rows.patient.map("{:05d}".format)})
        sheet["age"], sheet["sex"] = 40 + rows.patient % 50, np.where(rows.patient % 2, "M", "F")
        sheet["LR"] = rows.laterality.str[0].str.upper()
        for column in TOP.split():  # an eye with diabetic retinopathy is an eye of a diabetic
            sheet[column] = ((rows.code == column) | ((rows.code == "DR") & (column == "DM"))).astype(int)
        sheet.to_csv(base / "data.csv", index=False)
    if dataset == "RFMiD":
        sheet = pd.DataFrame({"ID": rows.n, "Disease_Risk": (rows.code != "").astype(int)})
        sheet = sheet.assign(**{column: (rows.code == column).astype(int) for column in RFMID.split()})
        sheet.to_csv(base / "Test_Set" / "RFMiD_Testing_Labels.csv", index=False, encoding="utf-8-sig")


def build(root, *, seed: int, train_per_pair: int, test_per_pair: int, masked_share: float, height: int) -> None:
    """Write root/clinic/{IDRiD,UCSD,TOP}, root/screening/{IDRiD,UCSD,TOP,RFMiD} and root/truth.parquet.

    Deterministic, as every image has a seed of its own; resumable, as a journal names the images drawn so far; the
    marker `.finished` is written last. Raises ValueError when `root` was begun with other settings.
    """
    root, journal = Path(root), Path(root) / ".journal.jsonl"
    root.mkdir(parents=True, exist_ok=True)
    settings = json.dumps([seed, train_per_pair, test_per_pair, masked_share, height])
    lines = (journal.read_text().split("\n")[:-1] if journal.exists() else []) or [settings]  # without a torn last line
    if lines[0] != settings:
        raise ValueError(f"{root} was begun with settings {lines[0]}, not {settings}: remove it, or use another folder")
    rows = plan(train_per_pair, test_per_pair, masked_share)
    facts = {fact["path"]: fact for fact in map(json.loads, lines[1:])}
    with journal.open("w") as log:
        log.writelines(f"{line}\n" for line in lines)
        for row in tqdm([r for r in rows if r["path"] not in facts], desc="drawing eyes"):
            facts[row["path"]] = write_image(root, row, seed, height)
            print(json.dumps(facts[row["path"]]), file=log, flush=True)
    table = pd.DataFrame([row | facts[row["path"]] for row in rows])
    for (camera, dataset), part in table.groupby(["camera", "dataset"]):
        write_labels(root / camera / dataset, dataset, part)
    table[["path", "modality", "label", "findings", "laterality", "camera"]].to_parquet(root / "truth.parquet")
    (root / ".finished").touch()
