"""MMC-AMD: CFP and OCT of the same eyes in four classes; two published ways to split them."""

import re
from pathlib import Path

from fundus_lib.data.records import Problem, Record, child, codes, folders, matched, pictures, read_table

IMAGES = {"CFP": "cfp-clahe-448x448", "OCT": "oct-median3x3-448x448"}  # published only after this processing
CLASSES, LETTERS = ("normal", "dryAMD", "PCV", "wetAMD"), "hdpw"  # 0 to 3 in the lists; the same in an image's name
WAYS = ("mmc-amd-splitAP", "mmc-amd-splitA")  # no patient, or only no eye, is in two splits
NAME = re.compile(r"[fo]-(?:(?P<letter>[hdpw])-)?(?P<eye>[^_.]+)(?:_[^.]*)?")  # f-w-1544817, o-w-1544817_2


def find(root: Path) -> list[Path]:
    """Folders with mmc-amd-splitAP-train or mmc-amd-splitA-train, and ImageData or mmc-amd/ImageData."""
    return [f for f in folders(root, 3) if any(child(f, f"{way}-train") for way in WAYS)]


def read(home: Path) -> tuple[list[Record], list[Problem]]:
    """Every listed image, in the split by patient where it is there: its 2,381 - 211 test images are Fundus-R1's 2,170.
    The lists do not tell whose eye it is, so `patient` is the eye."""
    way = next(way for way in WAYS if child(home, f"{way}-train"))
    data = child(home, "mmc-amd", "ImageData") or child(home, "ImageData")
    known = {code: at for at, name in enumerate(CLASSES) for code in (str(at), name.lower())}
    records, problems = [], []
    for modality, place in IMAGES.items():
        images, names = pictures(data and child(data, place)), []
        lists = [(s, home / f"{way}-{s}/annotations/{modality.lower()}.txt") for s in ("train", "val", "test")]
        for split, file in filter(lambda part: part[1].is_file(), lists):
            for row, (name, code) in read_table(file, ["0", "1"], " ", header=None)[["0", "1"]].iterrows():
                names.append(name := name.removesuffix(".jpg"))
                match, at = NAME.fullmatch(name), known.get(code.lower())
                if not match or at is None or match["letter"] not in (None, LETTERS[at]):
                    reason = f"{name!r} has class {code!r}: not 0 to 3, or not that of the letter in the name"
                    problems.append(Problem("MMC-AMD", file, row, reason))
                elif name in images:
                    records.append(Record(f"MMC-AMD-{name}", images[name], "MMC-AMD", modality,
                                          (codes("MMC-AMD")[CLASSES[at]],), split, match["eye"]))
        problems += matched("MMC-AMD", home / f"{way}-*" / "annotations", names, images, f"{modality} rows")
    return records, problems
