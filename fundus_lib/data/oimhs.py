"""OIMHS: OCT of eyes with a macular hole; left half of a picture = B-scan, right half = its areas in colours."""

import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from fundus_lib.data.records import UNREADABLE, DataError, Problem, Record, folders, unpacked

COLORS = {"full-thickness foveal defect": (255, 0, 0), "intraretinal fluid": (0, 0, 255)}  # yellow: choroid
PICTURES = "Images/[0-9]*/[0-9]*.png"


def find(root: Path) -> list[Path]:
    """Folders with Images/<number of the eye>/<number>.png."""
    return [f for f in folders(root, 3) if any(f.glob(PICTURES))]


def read(home: Path) -> tuple[list[Record], list[Problem]]:
    """Every B-scan, unpacked once. All eyes have a hole, but only a B-scan that cuts it has the label Macular hole.
    `patient` is the eye: six of the 119 patients gave both, and the pictures' names do not tell which."""
    cache, records, problems = unpacked("OIMHS", home), [], []
    for file in tqdm(sorted(home.glob(PICTURES)), desc="OIMHS", unit="image", leave=False, mininterval=2):
        eye, scan = file.parent.name, cache / file.parent.name / f"{file.stem}-{stamp(file)}.png"
        try:
            if not scan.is_file():
                with Image.open(file) as image:
                    left, right = image.crop((0, 0, 512, 512)), np.asarray(image.convert("RGB"))[:, 512:]
                if image.size != (1024, 512) or not (right == (0, 255, 0)).all(axis=-1).any():
                    raise DataError(f"{image.size} pixels, not (1024, 512), or no retina (pure green) on the right")
                write(scan, left, {name: (right == color).all(axis=-1) for name, color in COLORS.items()})
        except UNREADABLE as error:
            problems.append(Problem("OIMHS", file, None, f"not readable: {error}"))
            continue
        masks = tuple((name, mask) for name, mask in mask_files(scan, COLORS).items() if mask.is_file())
        labels = tuple("Macular hole" if name == "full-thickness foveal defect" else name for name, _ in masks)
        records.append(Record(f"OIMHS-{eye}-{file.stem}", scan, "OIMHS", "OCT", labels, "train", eye, masks))
    return records, problems


def stamp(*files: str | Path) -> str:
    """A part of a name that is another one once a file has another size or time."""
    return hashlib.sha256(repr([(os.stat(f).st_size, os.stat(f).st_mtime_ns) for f in files]).encode()).hexdigest()[:12]


def mask_files(scan: Path, findings: dict) -> dict[str, Path]:
    """Where the masks of an unpacked B-scan lie; only what it shows has one."""
    return {name: scan.with_name(f"{scan.stem}-{name.replace(' ', '-')}.png") for name in findings}


def write(scan: Path, image: Image.Image, masks: dict[str, np.ndarray]) -> None:
    """Write the masks that are not empty beside `scan`, then `scan`: where it is there, all of it is."""
    scan.parent.mkdir(parents=True, exist_ok=True)
    shown = {file: Image.fromarray(masks[name]) for name, file in mask_files(scan, masks).items() if masks[name].any()}
    for file, picture in {**shown, scan: image}.items():
        part = file.with_suffix(f".{os.getpid()}.part")
        picture.save(part, "PNG", compress_level=1)
        os.replace(part, file)
