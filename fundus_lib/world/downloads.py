"""Folders of drawn eyes in the layouts of public data sets, label files and masks included, and the truth."""

import json
import zlib
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from fundus_lib.world.clinic import BLOOD, COTTON, HARD, LESIONS, MICRO, complete, sample_findings
from fundus_lib.world.drawing import draw
from fundus_lib.world.layouts import LAYOUTS, SCREENED, TABLES, UNSEEN, Layout
from fundus_lib.world.scene import Drawing

MASKS = {MICRO: ("1. Microaneurysms", "MA"), BLOOD: ("2. Haemorrhages", "HE"), HARD: ("3. Hard Exudates", "EX"),
         COTTON: ("4. Soft Exudates", "SE"), "optic disc": ("5. Optic Disc", "OD")}


def cells(train: int, test: int) -> list[tuple[str, Layout, str, int]]:
    """(camera, layout, split, images a label): a third as many for validation, all in one where no split is published.

    The screening camera only takes test images.
    """
    counts = {"train": train, "val": -(-test // 3), "test": test}
    clinic = [("clinic", layout, split, train + test // 2 if len(layout.splits) == 1 else counts[split])
              for layout in LAYOUTS for split in layout.splits]
    return clinic + [("screening", layout, list(layout.splits)[-1], test) for layout in LAYOUTS
                     if layout.dataset in SCREENED]


def plan(train: int, test: int, masked_share: float) -> list[dict]:
    """One row an image: where it goes and what it is. A patient has one label and stays in one camera and split."""
    rows = []
    for cell, (camera, layout, split, count) in enumerate(cells(train, test)):
        part_a = 0  # number of the photograph in part A of IDRiD, whose images have masks
        for which, (label, code) in enumerate(layout.codes.items()):
            unseen = (layout.modality, label) in UNSEEN
            for i in range((2 * count if unseen else count) if camera == "screening" or not unseen else 0):
                masked = layout.dataset == "IDRiD" and ceil((i + 1) * masked_share) > ceil(i * masked_share)
                part_a, k = part_a + masked, i % layout.share + 1
                row = {"camera": camera, "dataset": layout.dataset, "modality": layout.modality, "label": label,
                       "split": split, "code": code, "k": k, "side": ("left", "right")[k - 1] if k < 3 else None,
                       "patient": 10_000 * (cell + 1) + i // layout.share * len(layout.codes) + which,
                       "n": i * len(layout.codes) + which + 1, "part_a": part_a * masked}
                path = layout.place.format(**row, folder=layout.splits[split], stem=str(code).lower())
                rows.append(row | {"path": f"{camera}/{layout.dataset}/{path}", "named_side": "{side" in layout.place})
    return rows


def save(image: Image.Image, file: Path, **how) -> None:
    """Save an image where no folder may be yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **how)


def draw_labelled(row: dict, seed: int, height: int, difficulty: float) -> tuple[frozenset[str], Drawing]:
    """The findings that the row's label explains, and an eye that shows them; the same whenever it is drawn again."""
    rng = np.random.default_rng([seed, zlib.crc32(row["path"].encode())])
    lesions = set().union(*(sample_findings(rng, label, row["modality"]) for label in row["label"].split(" + ")))
    findings = complete(lesions & set(LESIONS[row["modality"]]), row["modality"])
    while True:  # until the eye is the one that the file's name says
        drawing = draw(rng, row["modality"], findings, camera=row["camera"], height=height, difficulty=difficulty)
        if not row["named_side"] or drawing.laterality == row["side"]:
            return findings, drawing


def write_image(root: Path, row: dict, seed: int, height: int, difficulty: float) -> dict:
    """Draw and save one image, in part A of IDRiD again and with masks; returns its facts."""
    findings, drawing = draw_labelled(row, seed, height, difficulty)
    image = drawing.image.convert("L") if row["modality"] in ("OCT", "FFA") else drawing.image
    save(image, root / row["path"], quality=92)
    if row["part_a"]:
        base, name = root / row["camera"] / "IDRiD" / "A. Segmentation", f"IDRiD_{row['part_a']:02d}"
        folder = LAYOUTS[0].splits[row["split"]]
        save(image, base / "1. Original Images" / folder / f"{name}.jpg", quality=92)
        for finding, (lesion, code) in MASKS.items():
            mask = drawing.disc_mask if finding == "optic disc" else drawing.masks.get(finding)
            if mask is not None:
                picture = Image.fromarray(mask.astype(np.uint8))
                picture.putpalette([0, 0, 0, 255, 0, 0])
                file = base / "2. All Segmentation Groundtruths" / folder / lesion / f"{name}_{code}.tif"
                save(picture, file, compression="tiff_lzw")
    mm = np.array(drawing.image.size) * drawing.pixel_mm
    far = [np.hypot(*((np.array(c) - drawing.fovea) * mm)) for c in drawing.centres.get(HARD, [])]
    risk = 0 if not far else 2 if min(far) < 1.8 else 1  # of macular edema: exudates within one disc diameter or not
    return {"path": row["path"], "findings": sorted(findings), "laterality": drawing.laterality, "risk": risk}


def build(root, *, seed: int, train_per_pair: int, test_per_pair: int, masked_share: float, height: int,
          difficulty: float) -> None:
    """Write root/clinic/<every layout>, root/screening/<those of SCREENED> and root/truth.parquet.

    Deterministic, as every image has a seed of its own; resumable, as a journal names the images drawn so far; the
    marker `.finished` is written last. Raises ValueError when `root` was begun with other settings.
    """
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
    table = pd.DataFrame([row | facts[row["path"]] for row in rows])
    for (camera, dataset), part in table.groupby(["camera", "dataset"]):
        if dataset in TABLES:
            TABLES[dataset](root / camera / dataset, part)
    table[["path", "modality", "label", "findings", "laterality", "camera"]].to_parquet(root / "truth.parquet")
    (root / ".finished").touch()
