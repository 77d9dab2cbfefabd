"""How the drawn eyes lie on disk: the layouts of public data sets, their codes, their label files."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

DR, AMD, RP = "Diabetic retinopathy", "Age-related macular degeneration", "Retinitis pigmentosa"
CNV, CSC, MH = "Choroidal neovascularization", "Central serous chorioretinopathy", "Macular hole"
GRADES = {"No DR": 0, "Mild NPDR": 1, "Moderate NPDR": 2, "Severe NPDR": 3, "PDR": 4}


class Layout(NamedTuple):
    """One data set in one modality. A label may name several diseases, joined by " + "."""

    dataset: str
    modality: str
    splits: dict[str, str]  # published split -> its name in the paths; {"train": ""} where none is published
    place: str  # of an image, below the folder of the data set
    codes: dict[str, str | int]  # label -> the data set's own code
    share: int = 1  # images a patient


ODIR_WORDS = {"Normal": "normal fundus", DR: "diabetic retinopathy", "Glaucoma": "glaucoma", "Cataract": "cataract",
              AMD: "age-related macular degeneration"}  # what a reader of the photograph wrote down
LAYOUTS = (
    Layout("IDRiD", "CFP", {"train": "a. Training Set", "test": "b. Testing Set"},
           "B. Disease Grading/1. Original Images/{folder}/IDRiD_{n:03d}.jpg", GRADES),
    Layout("RFMiD", "CFP", {"train": "Training_Set/Training", "val": "Evaluation_Set/Validation",
                            "test": "Test_Set/Test"}, "{folder}/{n}.png", {
        "Normal": "", DR: "DR", AMD: "ARMD", "Media haze": "MH", "Pathological myopia": "MYA",
        "Branch retinal vein occlusion": "BRVO", "Tessellated fundus": "TSLN", "Epiretinal membrane": "ERM",
        "Laser scars": "LS", CSC: "CSR", "Central retinal vein occlusion": "CRVO", "Asteroid hyalosis": "AH",
        "Optic disc edema": "ODE", MH: "MHL", RP: "RP", "Cotton-wool spots": "CWS", "Coloboma": "CB",
        "Preretinal hemorrhage": "PRH", "Myelinated nerve fiber": "MNF", "Central retinal artery occlusion": "CRAO",
        "Vitreous hemorrhage": "VH", "Branch retinal artery occlusion": "BRAO"}),
    Layout("JSIEC", "CFP", {"train": ""}, "{code}/{patient:08x}-{n:04d}..JPG", {
        "Normal": "0.0.Normal", "Large optic cup": "0.2.Large optic cup", "Optic atrophy": "10.1.Optic atrophy",
        "Rhegmatogenous retinal detachment": "4.Rhegmatogenous RD"}),
    Layout("OIA-ODIR", "CFP", {"train": ""}, "ODIR-5K/Training Images/{patient}_{side}.jpg", {
        label: "，".join(ODIR_WORDS[part] for part in label.split(" + "))
        for label in ("Normal", "Glaucoma", "Cataract", f"Glaucoma + {DR}", f"Cataract + {AMD}")}, 2),
    Layout("MMC-AMD", "CFP", {"train": "train", "val": "val", "test": "test"},
           "ImageData/cfp-clahe-448x448/f-{patient}-{n}.jpg",
           {"Normal": "normal", "Dry AMD": "dryAMD", "Wet AMD": "wetAMD"}),
    Layout("MMC-AMD", "OCT", {"train": "train", "val": "val", "test": "test"},
           "ImageData/oct-median3x3-448x448/o-{patient}-{n}.jpg",
           {"Normal": "normal", "Dry AMD": "dryAMD", "Wet AMD": "wetAMD", "Polypoidal choroidal vasculopathy": "PCV"}),
    Layout("UCSD", "OCT", {"train": "train", "test": "test"}, "OCT2017/{folder}/{code}/{code}-{patient}-{k}.jpeg",
           {"Normal": "NORMAL", "Drusen": "DRUSEN", CNV: "CNV", "DME": "DME"}, 3),
    Layout("OCTID", "OCT", {"train": ""}, "{code}/{code}{n}.jpeg",
           {"Normal": "NORMAL", AMD: "AMRD", CSC: "CSR", MH: "MH"}),
    Layout("OCTDL", "OCT", {"train": ""}, "OCTDL/{code}/{stem}_{patient}_{k}.jpg", {
        "Normal": "NO", "DME": "DME", "Epiretinal membrane": "ERM", "Retinal artery occlusion": "RAO",
        "Vitreomacular interface disease": "VID"}, 2),
    Layout("TOP", "UWF", {"train": ""}, "img/{patient:06d}_{k:02d}.jpg", {
        "Normal": "", DR: "DR", "Retinal vein occlusion": "RVO", "Glaucoma": "Gla", RP: "RP", AMD: "AMD",
        "Retinal artery occlusion": "AO", MH: "MH", "Retinal detachment": "RD"}, 2),
    Layout("DeepDRiD", "UWF", {"train": "training", "val": "validation"},
           "ultra-widefield_images/ultra-widefield-{folder}/Images/{patient}/{patient}_{side[0]}1.jpg", GRADES, 2),
    Layout("Angiographic", "FFA", {"train": ""}, "{code}/{n:03d}.jpg", {"Normal": "Normal", DR: "Abnormal"}),
)
SCREENED = ("IDRiD", "UCSD", "TOP", "RFMiD", "DeepDRiD")  # data sets that the other camera took, too
# No training image of the modality carries the label: only what is known in words can help with these. (CFP, AMD) has
# training images, but only with a cataract in front of it, so that it is not counted among the unseen.
UNSEEN = {("CFP", RP), ("CFP", MH), ("CFP", CSC), ("CFP", AMD), ("UWF", "Severe NPDR"), ("UWF", "PDR")}
IDRID_TABLES = {"train": ("a. IDRiD_Disease Grading_Training Labels.csv", 9),  # and its number of empty columns
                "test": ("b. IDRiD_Disease Grading_Testing Labels.csv", 3)}
TOP = "AMD RVO Gla MH DR RD RP AO DM"
RFMID_TABLES = {"train": "RFMiD_Training_Labels.csv", "val": "RFMiD_Validation_Labels.csv",
                "test": "RFMiD_Testing_Labels.csv"}
RFMID = ("DR ARMD MH DN MYA BRVO TSLN ERM LS MS CSR ODC CRVO TV AH ODP ODE ST AION PT RT RS CRS EDN RPEC MHL RP CWS CB "
         "ODPM PRH MNF HR CRAO TD CME PTCR CF VH MCA VS BRAO PLQ HPED CL")


def write_idrid(base: Path, rows: pd.DataFrame) -> None:
    """With the empty columns and the trailing blank of the original."""
    for split, part in rows.groupby("split"):
        name, empty = IDRID_TABLES[split]
        lines = ["Image name,Retinopathy grade,Risk of macular edema "]
        lines += [f"IDRiD_{r.n:03d},{r.code},{r.risk}" for r in part.itertuples()]
        file = base / "B. Disease Grading" / "2. Groundtruths" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{line}{',' * empty}\r\n" for line in lines), newline="")


def write_rfmid(base: Path, rows: pd.DataFrame) -> None:
    """One table a split, beside its images, with the byte order mark of the original."""
    for split, part in rows.groupby("split"):
        sheet = pd.DataFrame({"ID": part.n, "Disease_Risk": (part.code != "").astype(int)})
        sheet = sheet.assign(**{column: (part.code == column).astype(int) for column in RFMID.split()})
        file = base / LAYOUTS[1].splits[split]
        sheet.to_csv(file.parent / RFMID_TABLES[split], index=False, encoding="utf-8-sig")


def write_odir(base: Path, rows: pd.DataFrame) -> None:
    """The table of the Kaggle edition: a row an image, the keywords of both eyes in each."""
    words = {"left": "Left-Diagnostic Keywords", "right": "Right-Diagnostic Keywords"}
    sheet = pd.DataFrame({"ID": rows.patient, "Patient Age": 40 + rows.patient % 50,
                          "Patient Sex": np.where(rows.patient % 2, "Male", "Female"),
                          "Left-Fundus": rows.patient.astype(str) + "_left.jpg",
                          "Right-Fundus": rows.patient.astype(str) + "_right.jpg"})
    sheet = sheet.assign(**dict.fromkeys(words.values(), rows.code))  # both eyes of a patient have one label
    for letter, word in zip("NDGCAHMO", (*(ODIR_WORDS[name] for name in ("Normal", DR, "Glaucoma", "Cataract", AMD)),
                                         "hypertensive", "myopia", "other"), strict=True):
        sheet[letter] = rows.code.str.split("，").map(lambda said, word=word: int(word in said))
    sheet["filename"] = rows.path.str.rsplit("/").str[-1]
    sheet.to_csv(base / "full_df.csv", index=False)


def write_mmc(base: Path, rows: pd.DataFrame) -> None:
    """For every split and modality a list of images and a list of images with their class."""
    for (split, modality), part in rows.groupby(["split", "modality"]):
        stems = part.path.map(lambda path: Path(path).stem)
        for folder, lines in (("ImageSets", stems), ("annotations", stems + " " + part.code)):
            file = base / f"mmc-amd-splitA-{split}" / folder / f"{modality.lower()}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(lines) + "\n")


def write_octdl(base: Path, rows: pd.DataFrame) -> None:
    """With the spelling "image_hight" of the original, and names without their ending."""
    stems = rows.path.map(lambda path: Path(path).stem)
    pd.DataFrame({"file_name": stems, "disease": rows.code, "subcategory": 0, "condition": 0,
                  "patient_id": rows.patient, "eye": 0, "sex": 0, "year": 0, "image_width": 0, "image_hight": 0},
                 ).to_csv(base / "OCTDL_labels.csv", index=False)


def write_top(base: Path, rows: pd.DataFrame) -> None:
    """Nine 0/1 columns; an eye with diabetic retinopathy is an eye of a diabetic."""
    sheet = pd.DataFrame({"filename": rows.path.str[-13:], "ID": rows.patient.map("{:05d}".format)})
    sheet["age"], sheet["sex"] = 40 + rows.patient % 50, np.where(rows.patient % 2, "M", "F")
    sheet["LR"] = rows.laterality.str[0].str.upper()
    for column in TOP.split():
        sheet[column] = ((rows.code == column) | ((rows.code == "DR") & (column == "DM"))).astype(int)
    sheet.to_csv(base / "data.csv", index=False)


def write_deepdrid(base: Path, rows: pd.DataFrame) -> None:
    """The ultra-widefield tables: backslashes, and no folder `Images` in the path that has one."""
    for split, part in rows.groupby("split"):
        folder = f"ultra-widefield-{LAYOUTS[10].splits[split]}"
        stems = part.path.map(lambda path: Path(path).stem)
        pd.DataFrame({"patient_id": part.patient, "image_id": stems,
                      "image_path": folder + "\\" + part.patient.astype(str) + "\\" + stems + ".jpg",
                      "DR_level": part.code, "position": part.side + "_eye"},
                     ).to_csv(base / "ultra-widefield_images" / folder / f"{folder}.csv", index=False)


TABLES = {"IDRiD": write_idrid, "RFMiD": write_rfmid, "OIA-ODIR": write_odir, "MMC-AMD": write_mmc,
          "OCTDL": write_octdl, "TOP": write_top, "DeepDRiD": write_deepdrid}  # the others have their class in the path
