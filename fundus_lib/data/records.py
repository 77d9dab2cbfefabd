"""One image on disk as a record, and how label files, pictures and masks are read without surprises."""

import functools
import hashlib
import io
import json
import os
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

HIDDEN = (".", "__MACOSX")  # how names begin that are no part of a data set
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)  # what Pillow raises
NO_TABLE = (OSError, ValueError, KeyError, SyntaxError, EOFError, RuntimeError, TypeError, AttributeError, zlib.error,
            zipfile.BadZipFile, pd.errors.ParserWarning)  # what pandas and openpyxl raise for a damaged table


class DataError(ValueError):
    """A file that cannot be read as what it claims to be; the message names it and the remedy."""


class Record(NamedTuple):
    """One labelled image, its files as absolute paths."""
    id: str
    path: Path
    dataset: str
    modality: str  # CFP | OCT | UWF | FFA
    labels: tuple[str, ...]  # canonical terms
    split: str  # train | val | test, as published
    patient: str | None = None
    masks: tuple[tuple[str, Path], ...] = ()  # (finding, file)
    laterality: str | None = None  # right | left


class Problem(NamedTuple):
    """Something left out, or contradicting itself. `row` counts the header of a label file as row 1."""
    dataset: str
    file: str | Path
    row: int | None
    reason: str


@functools.cache
def codes(dataset: str) -> dict[str, str]:
    """The label codes of a set of Fundus-R1 -> canonical label; a code means something inside its own set only."""
    table = json.loads((Path(__file__).parents[1] / "references/labels.json").read_text("utf-8"))
    entry = next((entry for entry in table["datasets"] if entry["dataset"] == dataset), {"labels": []})
    return {label["original"]: label["canonical"] for label in entry["labels"]}


def plain(name: str) -> str:
    """A folder name without what archives do to it: "A.%20Segmentation", "OCT2017 " (trailing blank)."""
    return unquote(name).strip()


def folders(root: Path, depth: int) -> list[Path]:
    """`root` and the folders below it down to `depth`, in order, none hidden. DataError: one may not be read."""
    try:
        inside = [entry for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(HIDDEN)]
    except PermissionError:
        raise DataError(f"{root} may not be read.\n  chmod -R u+rX '{root}'") from None
    return [root] + [f for e in sorted(inside, key=lambda e: e.name) if depth for f in folders(Path(e), depth - 1)]


def child(folder: Path, *names: str) -> Path | None:
    """The folder at names[0]/names[1]/... inside `folder`, however the archive spelt them; None when there is none."""
    for name in names:
        folder = next((f for f in folders(folder, 1)[1:] if plain(f.name).lower() == name.lower()), None)
        if folder is None:
            return None
    return folder


def pictures(folder: Path | None) -> dict[str, Path]:
    """File stem -> image file of one folder; nothing for a missing folder."""
    files = sorted(folder.iterdir()) if folder else []
    return {f.stem: f for f in files if f.suffix.lower() in (".jpg", ".jpeg", ".png") and not f.name.startswith(".")}


def read_table(file: Path, columns: list[str], separator: str = ",", header: int | None = 0,
               sheet: int | str = 0) -> pd.DataFrame:
    """A CSV, TSV or XLSX as text, indexed by row (the first is row 1), without BOM, outer blanks and empty rows.
    Without a header (None) the columns are called "0", "1"... Raises DataError when it is no table or one of `columns`
    is missing or there twice."""
    how = {"header": header, "dtype": str, "keep_default_na": False}
    try:
        if file.suffix.lower() in (".xlsx", ".xls"):
            table = pd.read_excel(file, sheet_name=sheet, **how)
        else:
            how |= {"encoding": "utf-8-sig", "index_col": False, "skip_blank_lines": False}
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # cells without a column would be dropped
                table = pd.read_csv(file, sep=separator, **how)
    except ImportError as error:
        raise DataError(f"{file} needs a library: {error}\n  .venv/bin/python -m pip install openpyxl, or save an old "
                        "workbook (.xls) as .xlsx") from None
    except NO_TABLE as error:
        remedy = "unpack the download again" + ", or save it as UTF-8" * isinstance(error, UnicodeError)
        raise DataError(f"{file} is not a readable table: {error}\n  {remedy}") from None
    names = table.columns.astype(str).str.strip()
    if twice := [column for column in columns if list(names).count(column) > 1 or f"{column}.1" in names]:
        raise DataError(f"{file} has the column {twice[0]!r} twice\n  take the label file from the official download")
    if missing := [column for column in columns if column not in names]:
        raise DataError(f"{file} has no column {', '.join(map(repr, missing))}; it has {', '.join(names)[:200]}.\n"
                        "  take the label file from the official download, unedited")
    table = table.set_axis(names, axis=1).fillna("").apply(lambda column: column.astype(str).str.strip())
    table.index += 1 if header is None else header + 2
    return table[table.ne("").any(axis=1)]


def fingerprint(picture: Path | bytes) -> tuple[str, str]:
    """(sha256 of a picture file, perceptual hash of what it shows) in hex. Raises DataError when it cannot be decoded.
    The perceptual hash is imagehash.phash with 16 x 16 bits on the middle of the picture without slow changes of
    brightness: with the usual 8 x 8 bits of the whole picture different IDRiD eyes come out at distance 0. Dark margins
    of a photograph (not of gray pictures) are cut first, by sixteenths of the frame, so that a smaller copy is cut
    alike. splits.py has the distances measured."""
    import imagehash
    try:
        content = picture if isinstance(picture, bytes) else picture.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.draft(None, (160, 160))  # a JPEG decodes at an eighth of its size; truncation still shows
            color = image.convert("RGB")
    except UNREADABLE as error:
        raise DataError(f"not a readable image: {error}") from None
    gray, tiles = color.convert("L"), np.asarray(color.resize((16, 16), Image.Resampling.BOX), int)
    left, top, right, bottom = 0.0, 0.0, 1.0, 1.0
    if np.ptp(tiles, axis=2).mean() > 4 and (bright := np.argwhere(tiles.mean(2) > 20)).size:
        (top, left), (bottom, right) = bright.min(0) / 16, (bright.max(0) + 1) / 16
    x, y = 0.15 * (right - left), 0.15 * (bottom - top)
    box = np.array([left + x, top + y, right - x, bottom - y]) * [*gray.size, *gray.size]
    middle = gray.resize((64, 64), Image.Resampling.LANCZOS, tuple(box))
    detail = np.asarray(middle, float) - np.asarray(middle.filter(ImageFilter.GaussianBlur(4)), float)
    local = Image.fromarray(np.clip(128 + 3 * detail, 0, 255).astype(np.uint8))
    return hashlib.sha256(content).hexdigest(), str(imagehash.phash(local, hash_size=16))


def read_mask(file: Path) -> np.ndarray:
    """A lesion mask as bool (height, width): any value but 0 of palette, gray or color; alpha (IDRiD_81_EX) does not
    count. DataError when it cannot be decoded."""
    try:
        with Image.open(file) as image:
            values = np.atleast_3d(np.asarray(image))
    except UNREADABLE as error:
        raise DataError(f"{file} is not a readable mask: {error}") from None
    return values[..., : {2: 1, 4: 3}.get(values.shape[-1])].any(axis=-1)


def same_shape(mask: np.ndarray, file: Path) -> bool:
    """Whether mask and picture have the same aspect ratio; an unreadable picture is reported elsewhere."""
    try:
        with Image.open(file) as image:
            return abs(mask.shape[1] / mask.shape[0] * image.height / image.width - 1) < 0.01
    except UNREADABLE:
        return True


def check_whole(path: str | Path) -> None:
    """Look at the first and last bytes of a picture only. Raises DataError when it is empty, cut or none at all.
    What has no end marker, or bytes behind it, is decoded, and 16-bit PNG."""
    try:
        os.fspath(path).encode()
        with open(path, "rb", buffering=0) as file:
            start, size = file.read(26), file.seek(0, os.SEEK_END)
            file.seek(max(size - 12, 0))
            end = file.read()
        jpeg, png = start.startswith(b"\xff\xd8\xff"), start.startswith(b"\x89PNG\r\n\x1a\n")
        wide = start[24:26] == b"\x10\x00"  # 16 bits, gray
        if not (jpeg and end.endswith(b"\xff\xd9") or png and end[4:8] == b"IEND" and not wide):
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):  # everything above 255 would come out white
                    raise DataError("gray values of 16 bits or more; save it with 8 bits, "
                                    "scaled to its brightest value")
                image.draft("L", (160, 160))
                image.load()
    except UnicodeEncodeError:
        raise DataError("its name is no UTF-8: rename it") from None
    except UNREADABLE as error:
        raise DataError(f"not a readable image: {error}") from None


def cache_folder() -> Path:
    """Where pictures are unpacked that are no files of their own: FUNDUS_CACHE, or ~/.cache/fundus_lab."""
    return Path(os.path.abspath(os.path.expanduser(os.environ.get("FUNDUS_CACHE") or "~/.cache/fundus_lab")))


def unpacked(name: str, home: Path) -> Path:
    """The folder that the data set `name` at `home` is unpacked into; made when it is not there."""
    folder = cache_folder() / f"{name}-{hashlib.sha256(os.fsencode(os.path.abspath(home))).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def image_path(root: Path, path: str) -> Path:
    """The file that a record's or a benchmark's `path` means, below `root` or in the cache folder; else DataError."""
    root = Path(os.path.abspath(root))
    file = Path(os.path.normpath(root / str(path).replace("\\", "/")))
    if not {root, cache_folder()} & set(file.parents):
        raise DataError(f"image path {path!r} leaves the folder {root}")
    return file
