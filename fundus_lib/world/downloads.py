"""Folders of drawn eyes in the layouts of public data sets, label files and masks included, and the truth."""

import json
import zlib
from itertools import product
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from fundus_lib.world import draw
from fundus_lib.world.clinic import BLOOD, COTTON, HARD, LESIONS, MICRO, complete, sample_findings, table

MASKS = {MICRO: ("1. Microaneurysms", "MA"), BLOOD: ("2. Haemorrhages", "HE"), HARD: ("3. Hard Exudates", "EX"),
         COTTON: ("4. Soft Exudates", "SE"), "optic disc": ("5. Optic Disc", "OD")}


class Layout(NamedTuple):
    """One data set in one modality; the head of references/world/layouts.yaml explains the fields."""
    dataset: str
    modality: str
    splits: dict[str, str]
    place: str
    codes: dict[str, str | int]
    share: int = 1
    screened: bool = False
    unseen: tuple[str, ...] = ()
    tables: tuple[dict, ...] = ()


LAYOUTS = tuple(Layout(**entry) for entry in table("layouts"))


def plan(train: int, test: int, masked_share: float) -> list[dict]:
    """One row an image: where it goes and what it is. A patient has one label and stays in one camera and split. Images
    a label: a third of `test` for validation, all in one where no split is published; screening takes test images."""
    rows, counts = [], {"train": train, "val": -(-test // 3), "test": test}
    cells = [("clinic", layout, split, train + test // 2 if len(layout.splits) == 1 else counts[split])
             for layout in LAYOUTS for split in layout.splits]
    cells += [("screening", layout, list(layout.splits)[-1], test) for layout in LAYOUTS if layout.screened]
    for cell, (camera, layout, split, count) in enumerate(cells):
        part_a = 0  # number of the photograph in part A of IDRiD, whose images have masks
        for which, (label, code) in enumerate(layout.codes.items()):
            unseen = label in layout.unseen
            for i in range((2 * count if unseen else count) if camera == "screening" or not unseen else 0):
                masked = layout.dataset == "IDRiD" and ceil((i + 1) * masked_share) > ceil(i * masked_share)
                part_a, k = part_a + masked, i % layout.share + 1
                patient = 10_000 * (cell + 1) + i // layout.share * len(layout.codes) + which
                row = {"camera": camera, "dataset": layout.dataset, "modality": layout.modality, "label": label,
                       "split": split, "code": code, "k": k, "side": ("left", "right")[k - 1] if k < 3 else None,
                       "patient": patient, "n": i * len(layout.codes) + which + 1, "part_a": part_a * masked,
                       "folder": layout.splits[split], "age": 40 + patient % 50, "sex": ("Female", "Male")[patient % 2]}
                path = layout.place.format(**row, lower=str(code).lower())
                rows.append(row | {"path": f"{camera}/{layout.dataset}/{path}", "stem": Path(path).stem,
                                   "named_side": "{side" in layout.place})
    return rows


def save(image: Image.Image, file: Path, **how) -> None:
    """Save an image where no folder may be yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **how)


def write_image(root: Path, row: dict, seed: int, height: int, difficulty: float) -> dict:
    """Draw and save an eye that shows what the row's label explains, the same one whenever it is drawn again (in part A
    of IDRiD a second time, with masks); returns its facts."""
    rng, modality = np.random.default_rng([seed, zlib.crc32(row["path"].encode())]), row["modality"]
    lesions = set().union(*(sample_findings(rng, label, modality) for label in row["label"].split(" + ")))
    findings, drawing = complete(lesions & set(LESIONS[modality]), modality), None
    while drawing is None or row["named_side"] and drawing.laterality != row["side"]:  # the eye of the file's name
        drawing = draw(rng, modality, findings, camera=row["camera"], height=height, difficulty=difficulty)
    image = drawing.image.convert("L") if row["modality"] in ("OCT", "FFA") else drawing.image
    save(image, root / row["path"], quality=92)
    if row["part_a"]:
        base, name = root / row["camera"] / "IDRiD" / "A. Segmentation", f"IDRiD_{row['part_a']:02d}"
        save(image, base / "1. Original Images" / row["folder"] / f"{name}.jpg", quality=92)
        for finding, (lesion, code) in MASKS.items():
            mask = drawing.disc_mask if finding == "optic disc" else drawing.masks.get(finding)
            if mask is not None:
                picture = Image.fromarray(mask.astype(np.uint8))
                picture.putpalette([0, 0, 0, 255, 0, 0])
                file = base / "2. All Segmentation Groundtruths" / row["folder"] / lesion / f"{name}_{code}.tif"
                save(picture, file, compression="tiff_lzw")
    mm = np.array(drawing.image.size) * drawing.pixel_mm
    far = [np.hypot(*((np.array(c) - drawing.fovea) * mm)) for c in drawing.centres.get(HARD, [])]
    risk = 0 if not far else 2 if min(far) < 1.8 else 1  # of macular edema: exudates within one disc diameter or not
    return {"path": row["path"], "findings": sorted(findings), "laterality": drawing.laterality, "risk": risk}


def write_tables(base: Path, layout: Layout, rows: list[dict]) -> None:
    """The label files of one data set at `base`; rows: the plan of its images and what was drawn."""
    for sheet in layout.tables:
        flags, files = sheet.get("flags", {}), {}
        for row in rows:
            codes = str(row["code"]).split("，")
            facts = row | {"eye": str(row["laterality"])[0].upper(), "ill": int(row["label"] != "Normal"),
                           "flags": ",".join(str(int((code or name) in codes)) for name, code in flags.items())}
            if row["split"] == sheet.get("split", row["split"]):
                head = [sheet["head"].format(flags=",".join(flags))] if "head" in sheet else []
                files.setdefault(sheet["file"].format(**row), head).append(sheet["row"].format(**facts))
        for name, lines in files.items():
            (base / name).parent.mkdir(parents=True, exist_ok=True)
            (base / name).write_text("".join(line + sheet.get("end", "\n") for line in lines), "utf-8", newline="")


def build(root, *, seed: int, train_per_pair: int, test_per_pair: int, masked_share: float, height: int,
          difficulty: float) -> None:
    """Write root/clinic/<every layout>, root/screening/<the screened ones> and root/truth.parquet.
    Deterministic, as every image has a seed of its own; resumable, as a journal names the images drawn so far; the
    marker `.finished` is written last. Raises ValueError when `root` was begun with other settings."""
    root, journal = Path(root), Path(root) / ".journal.jsonl"
    root.mkdir(parents=True, exist_ok=True)
    settings = json.dumps([seed, train_per_pair, test_per_pair, masked_share, height, difficulty])
    lines = (journal.read_text().split("\n")[:-1] if journal.exists() else []) or [settings]  # without a torn last line
    if lines[0] != settings:
        raise ValueError(f"{root} was begun with settings {lines[0]}, not {settings}: remove it, or use another folder")
    rows = plan(train_per_pair, test_per_pair, masked_share)
    facts = {fact["path"]: fact for fact in map(json.loads, lines[1:])}
    with journal.open("w") as log:
        log.writelines(f"{line}\n" for line in lines)
        for row in tqdm([r for r in rows if r["path"] not in facts], desc="drawing eyes"):
            facts[row["path"]] = write_image(root, row, seed, height, difficulty)
            print(json.dumps(facts[row["path"]]), file=log, flush=True)
    rows = [row | facts[row["path"]] for row in rows]
    for camera, layout in product(("clinic", "screening"), LAYOUTS):
        own = [row for row in rows if (row["camera"], row["dataset"], row["modality"]) == (camera, *layout[:2])]
        write_tables(root / camera / layout.dataset, layout, own)
    columns = ["path", "modality", "label", "findings", "laterality", "camera"]
    pd.DataFrame(rows)[columns].to_parquet(root / "truth.parquet")
    (root / ".finished").touch()
