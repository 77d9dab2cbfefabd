"""OCT sets that must be unpacked, a function each, which `reader` of its entry names: B-scans and masks become PNGs."""

import hashlib
import math
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from fundus_lib.data.catalogue import DataSet
from fundus_lib.data.records import UNREADABLE, DataError, Problem, Record, folders, plain, unpacked

COLORS = {"full-thickness foveal defect": (255, 0, 0), "intraretinal fluid": (0, 0, 255)}  # yellow: choroid
SET = "RETOUCH-TrainingSet-"  # the test sets have no reference
FLUIDS = {"intraretinal fluid": 1, "subretinal fluid": 2, "pigment epithelial detachment": 3}
TYPES = {"MET_UCHAR": "u1", "MET_USHORT": "u2", "MET_SHORT": "i2", "MET_INT": "i4", "MET_FLOAT": "f4"}


def oimhs(entry: DataSet, home: Path) -> tuple[list[Record], list[Problem]]:
    """Every B-scan, unpacked once: the left half of a picture, whose right half are its areas in colours. All eyes have
    a hole, but only a B-scan that cuts it has the label Macular hole. `patient` is the eye: six of the 119 patients
    gave both, and the pictures' names do not tell which."""
    cache, records, problems = unpacked(entry.name, home), [], []
    files = sorted(home.glob("Images/[0-9]*/[0-9]*.png"))
    for file in tqdm(files, desc=entry.name, unit="image", leave=False, mininterval=2):
        eye, scan = file.parent.name, cache / file.parent.name / f"{file.stem}-{stamp(file)}.png"
        try:
            if not scan.is_file():
                with Image.open(file) as image:
                    left, right = image.crop((0, 0, 512, 512)), np.asarray(image.convert("RGB"))[:, 512:]
                if image.size != (1024, 512) or not (right == (0, 255, 0)).all(axis=-1).any():
                    raise DataError(f"{image.size} pixels, not (1024, 512), or no retina (pure green) on the right")
                write(scan, left, {name: (right == color).all(axis=-1) for name, color in COLORS.items()})
        except UNREADABLE as error:
            problems.append(Problem(entry.name, file, None, f"not readable: {error}"))
            continue
        masks = tuple((name, mask) for name, mask in mask_files(scan, COLORS).items() if mask.is_file())
        labels = tuple("Macular hole" if name == "full-thickness foveal defect" else name for name, _ in masks)
        records.append(Record(f"{entry.name}-{eye}-{file.stem}", scan, entry.name, "OCT", labels, "train", eye, masks))
    return records, problems


def retouch(entry: DataSet, home: Path) -> tuple[list[Record], list[Problem]]:
    """Every B-scan of every volume, unpacked once. Labels are the fluids outlined on it. A B-scan without fluid has no
    label, its eye is not normal; it is kept because Fundus-R1 counts it (5,697 images, 2,742 of them outlined)."""
    cache, records, problems = unpacked(entry.name, home), [], []
    volumes = [volume for f in folders(home, 1) if plain(f.name).startswith(SET) for volume in folders(f, 1)[1:]]
    for volume in tqdm(volumes, desc=entry.name, unit="volume", leave=False, mininterval=2):
        device = plain(volume.parent.name).removeprefix(SET)
        try:
            for scan in unpack(volume, cache):
                masks = tuple((name, mask) for name, mask in mask_files(scan, FLUIDS).items() if mask.is_file())
                records.append(Record(f"{entry.name}-{device}-{volume.name}-{scan.stem}", scan, entry.name, "OCT",
                                      tuple(name for name, _ in masks), "train", volume.name, masks))
        except (DataError, OSError) as error:
            problems.append(Problem(entry.name, volume, None, str(error)))
    return records, problems


def unpack(volume: Path, cache: Path) -> list[Path]:
    """The B-scans of a folder as 8-bit PNG files with masks; wider values are scaled to the volume's brightest one."""
    image, reference = (open_volume(volume / name) for name in ("oct.mhd", "reference.mhd"))
    folder = cache / f"{volume.name}-{stamp(*sorted(volume.iterdir()))}"
    scans = [folder / f"{k:03d}.png" for k in range(len(image))]
    if not all(scan.is_file() for scan in scans):
        if image.shape != reference.shape or not set(np.unique(reference).tolist()) <= {0, *FLUIDS.values()}:
            raise DataError(f"reference {reference.shape} does not outline oct {image.shape} with the values 0 to 3")
        scale = 1 if image.dtype == np.uint8 else 255 / max(image.max(), 1)
        for scan, values, fluid in zip(scans, image, reference, strict=True):
            gray = Image.fromarray((values.clip(0) * scale).round().astype(np.uint8))
            write(scan, gray, {name: fluid == value for name, value in FLUIDS.items()})
    return scans


def open_volume(header: Path) -> np.memmap:
    """A MetaImage volume (B-scans, rows, columns); the last line of its header names the data file, or is LOCAL.
    Raises DataError for compressed or other data, for a file in another folder or of another size."""
    fields = {}
    with header.open("rb") as file:
        while "ElementDataFile" not in fields and (line := file.readline(1000)):
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip()], start = value.strip(), file.tell()
    kind, name = TYPES.get(fields.get("ElementType")), fields.get("ElementDataFile", "")
    sizes = re.fullmatch(r"(\d+)\s+(\d+)\s+(\d+)", fields.get("DimSize", ""))
    other = fields.get("CompressedData", "").lower() == "true" or fields.get("BinaryData", "").lower() == "false"
    if other or not kind or not sizes or not name or name != os.path.basename(name.replace("\\", "/")):
        raise DataError(f"{header.name}: no uncompressed gray values in a file of the same folder: {str(fields)[:600]}")
    kind = np.dtype((">" if fields.get("BinaryDataByteOrderMSB", "").lower() == "true" else "<") + kind)
    data, start = (header, start) if name == "LOCAL" else (header.parent / name, 0)
    shape = tuple(map(int, sizes.groups()[::-1]))
    size, asked = data.stat().st_size - start, math.prod(shape) * kind.itemsize
    if size != asked or not size:
        raise DataError(f"{data.name} holds {size:,} bytes, {header.name} asks for {asked:,}: unpack the volume again")
    return np.memmap(data, kind, "r", start, shape)


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
