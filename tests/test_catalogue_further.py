"""The further data sets of the catalogue: what each entry says, a miniature of each layout, public file lists."""

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

from fundus_lib import data
from fundus_lib.data import catalogue, readers

REFERENCES = Path(data.__file__).parents[1] / "references"
SHARED = Path(__file__).parents[2] / "shared"
ENTRIES = {entry["name"]: catalogue()[entry["name"]]
           for entry in yaml.safe_load((REFERENCES / "catalogue/ophthareason.yaml").read_text())}
# Terms that labels.json lacks: the absence of one disease, coarse codes, rare diagnoses of STARE, mask findings.
PLAIN = {"No AMD", "No glaucoma", "No laser scars", "No pathological myopia", "Simple diabetic retinopathy",
         "red lesion",
         "No hard exudates", "Arteriosclerotic retinopathy", "Cilioretinal artery occlusion", "Coats disease",
         "Ocular histoplasmosis",
         "Hemicentral retinal vein occlusion", "patchy chorioretinal atrophy", "retinal detachment"}
AMD, CNV, DR = "Age-related macular degeneration", "Choroidal neovascularization", "Diabetic retinopathy"
MESSIDOR_1 = "Image name,Ophthalmologic department,Retinopathy grade,Risk of macular edema "

# Data set -> path -> "split: label + label" of a picture, None of a mask or of what is ignored, the lines of a table.
EXAMPLES = {
    "PAPILA": {"PapilaDB/FundusImages/RET002OD.jpg": "Normal",
               "PapilaDB/FundusImages/RET002OS.jpg": "Possible glaucoma",
               "PapilaDB/ClinicalData/patient_data_od.xlsx": [",Age,Gender,Diagnosis", "ID,,,", "#002,47,0,0"],
               "PapilaDB/ClinicalData/patient_data_os.xlsx": [",Age,Gender,Diagnosis", "ID,,,", "#002,47,0,2"]},
    "PARAGUAY": {"1. No DR signs/14.jpg": "No DR", "2. Mild (or early) NPDR/2.jpg": "Mild NPDR",
                 "7. Advanced PDR/731.jpg": "PDR"},
    "ARIA": {"images/aria_d_23_1.tif": DR, "images/(0018)aria_d_26.tif": DR, "images/aria_c_3_a_2.tif": "Normal"},
    "APTOS": {"train_images/a.png": "No DR", "train_images/b.png": "PDR", "test_images/c.png": None,
              "train.csv": ["id_code,diagnosis", "a,0", "b,4"]},
    "HRF": {"images/01_dr.JPG": DR, "images/01_g.jpg": "Glaucoma", "images/01_h.jpg": "Normal",
            "manual1/01_h.tif": None, "mask/01_h_mask.tif": None},
    "G1020": {"Images/image_0.jpg": "Glaucoma", "Images/image_2.jpg": "Normal", "Images_Square/image_0.jpg": None,
              "G1020.csv": ["imageID,binaryLabels", "image_0.jpg,1", "image_2.jpg,0"]},
    "AMD": {"AMD/A0049.jpg": AMD, "Non-AMD/N0211.jpg": "No AMD"},
    "PALM": {"PALM/Training/Images/P0001.jpg": "Pathological myopia",
             "PALM/Validation/Images/V0001.jpg": "val: No pathological myopia",
             "PALM/Training/Lesion Masks/Atrophy/P0001.bmp": None, "PALM/Training/Disc Masks/P0001.bmp": None,
             "PALM/Training/Classification Labels.xlsx": ["imgName,Label", "P0001.jpg,1"],
             "PALM/Validation/Classification Labels.xlsx": ["imgName,Label", "V0001.jpg,0"]},
    "ORIGA": {"Images/001.jpg": "No glaucoma", "Images/650.jpg": "Glaucoma", "Masks/001.png": None,
              "OrigaList.csv": ["Eye,Filename,ExpCDR,Set,Glaucoma", "OD,001.jpg,0.7,A,0", "OS,650.jpg,0.7,B,1"]},
    "Drishti-GS1": {"Drishti-GS1_files/Training/Images/drishtiGS_002.png": "Glaucoma",
                    "Drishti-GS1_files/Test/Images/drishtiGS_001.png": "test: Normal",
                    "Drishti-GS1_diagnosis.xlsx": ["Drishti,,", ",,", ",,", "No,Drishti-GS File,Total", "x,x,x",
                                                   "1,drishtiGS_002',Glaucomatous", "2,drishtiGS_001',Normal"]},
    "CHAKSU": {**{f"{half}/1.0_Original_Fundus_Images/{file}": label for half, file, label in (
        ("Train", "Bosch/Image101.JPG", "Possible glaucoma"), ("Train", "Forus/35.png", "No glaucoma"),
        ("Train", "Remidio/IMG_4561.JPG", "No glaucoma"), ("Test", "Bosch/Image101.JPG", "test: No glaucoma"),
        ("Test", "Forus/35.png", "test: Possible glaucoma"))},
               **{f"{half}/6.0_Glaucoma_Decision/Glaucoma_Decision_Comparison_{camera}_majority.csv": [head, row]
                  for half, camera, head, row in (
        ("Train", "Bosch", "Images,Majority Decision", "Image101.jpg-Image101-1.jpg,GLAUCOMA  SUSUPECT"),
        ("Train", "Forus", "Images,Majority Decision", "35.png-35-1.png,NORMAL"),
        ("Train", "Remidio", "Images,Majority Decision", "IMG_4561.jpg-IMG_4561-1.jpg,NORMAL"),
        ("Test", "Bosch", "Images,Majority Decision", "Image101.jpg-Image101-1.jpg,NORMAL"),
        ("Test", "Forus", "Images,Glaucoma Decision", "35.png-35-1.png,GLAUCOMA SUSPECT"))},
               "Train/3.0_Doctors_Annotations_Binary_OD_OC/Expert 1/Bosch/Cup/Image101.tif": None},
    "Cataract": {"dataset/1_normal/NL_294.png": "Normal", "dataset/2_glaucoma/Glaucoma_001.png": "Glaucoma",
                 "dataset/2_cataract/cataract_001.png": "Cataract",
                 "dataset/3_retina_disease/Retina_052.png": "Other diseases"},
    "FUND-OCT": {"Dataset/OD/Glaucoma/P_11/Right Eye/109_Color_R_001#1.jpg": "Glaucoma",
                 "Dataset/Macula/ME/P_13/Left Eye/99145_Color_L_001.jpg": "Macular edema",
                 "Dataset/Macula/Healthy/P_3/Left Eye/1_Color_L_001.jpg": "Normal",
                 "Dataset/Macula/ME/P_13/Left Eye/scan.jpg": None},
    "MESSIDOR": {"IMAGES/20051020_43808_0100_PP.png": "No DR + No DME", "IMAGES/IM004832.JPG": "Severe NPDR + DME",
                 "messidor_data.csv": ["image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable",
                                       "20051020_43808_0100_PP.png,0,0,1", "IM004832.jpg,3,1,1"]},
    "MESSIDOR-1": {"Base11/20051019_38557_0100_PP.tif": "Severe NPDR or PDR + DME (mild risk)",
                   "Base12/20051216_44221_0200_PP.tif": "test: No DR + No DME",
                   "Base11/Annotation_Base11.xlsx": [MESSIDOR_1, "20051019_38557_0100_PP.tif,Lariboisiere,3,1"],
                   "some_grades.xlsx": [f"{MESSIDOR_1},,training/test", "20051216_44221_0200_PP.tif,CHU,0,0,,test"]},
    "STARE": {"all-images/im0001.ppm": f"{CNV} + Ocular histoplasmosis", "all-images/im0002.ppm": f"{CNV} + {AMD}",
              "all-images/im0003.ppm": "Other diseases", "all-images/im0004.ppm": "Normal",
              "all-mg-codes.txt": ["im0001\t13 14 \tChoroidal Neovascularization AND Histoplasmosis",
                                   "im0002\t13 14\t\tChoroidal Neovascularization AND Age Related Macular Degeneration",
                                   "im0003\t14\tDrusen, large", "im0004\t0\tNormal"]},
    "ROC": {"ROCtraining/image49_training.jpg": "microaneurysm", "images/image7_test.jpg": "test: microaneurysm"},
    "Retina": {"Retina/train/anormal/NL_001.png": "Normal", "Retina/train/bcataract/c.png": "Cataract",
               "Retina/test/ddretina_disease/r.png": "test: Other diseases"},
    "SUSTech-SYSU": {"originalImages/0667.jpg": "Moderate NPDR", "originalImages/0690.jpg": "Laser scars",
                     "originalImages/drLabels.csv": [
        "Fundus_images,left_versus_right_eye(left_0_right_1),DR_grade(International_Clinical_DR_Severity_Scale)",
        "0667.jpg,0,2", "0690.jpg,1,5"]},
    "JICHI": {"dmr/1_1_R.jpg": "Simple diabetic retinopathy", "dmr/942_1_L.jpg": "No DR",
              "dmr/list.csv": ["Image,Davis_grading_of_one_figure", "1_1_R.jpg,sdr", "942_1_L.jpg,ndr"]},
    "EYEPACS": {"train/10_left.jpeg": "No DR", "train/10_right.jpeg": "Mild NPDR",
                "trainLabels.csv": ["image,level", "10_left,0", "10_right,1"]},
    "LAG": {"non_glaucoma/image/3202.jpg": "No glaucoma", "suspicious_glaucoma/image/4147.jpg": "Glaucoma",
            "suspicious_glaucoma/attention_map/4147.jpg": None},
    "FIVES": {"train/Original/1_A.png": AMD, "test/Original/1_A.png": f"test: {AMD}",
              "test/Original/92_D.png": f"test: {DR}", "train/Groud truth/1_A.png": None},
    "E-ophta": {"e_optha_EX/EX/E0000404/C0021833.jpg": "hard exudate",
                "e_optha_EX/healthy/E0000043/D.JPG": "No hard exudates",
                "e_optha_MA/MA/E0000043/DS000DGS.JPG": "microaneurysm",
                "e_optha_MA/healthy/E0000475/C0001629.jpg": "Normal",
                "e_optha_EX/Annotation_EX/E0000404/C0021833_EX.png": None,
                "e_optha_MA/Annotation_MA/E0000043/DS000DGS.png": None},
    "REFUGE": {"REFUGE-Training400/g0001.jpg": "Glaucoma", "REFUGE-Training400/n0360.jpg": "No glaucoma",
               "REFUGE-Training400/V0001.jpg": None},
    "DR1-2": {"DR1-images-by-lesions/Red Lesions/IMG0293 (13).TIF": "red lesion",
              "DR2-images-by-lesions/Drusen/IM000795.JPG": "Drusen"},
    "ScarDat": {"laser_scar_dataset_448/train/positive/646-126006.jpg": "Laser scars",
                "laser_scar_dataset_448/val/positive/1-2.jpg": "val: Laser scars",
                "laser_scar_dataset_448/test/positive/1-3.jpg": "test: Laser scars",
                "laser_scar_dataset_448/test/negative/572-105918.jpg": "test: No laser scars"},
    "ACRIMA": {"Images/Im686_g_ACRIMA.jpg": "Glaucoma", "Images/Im001_ACRIMA.jpg": "Normal"},
    "Angiographic": {"Angiographic/Normal/001.jpg": "Normal", "Angiographic/Abnormal/001.jpg": DR},
    "GOALS": {"Train/Image/0001.png": "Normal", "Train/Image/0100.png": "Glaucoma", "Train/Layer_Masks/0001.png": None,
              "Train/Train_GC_GT.xlsx": ["ImgName,GC_Label", "1,0", "100,1"]},
    "GAMMA1": {"multi-modality_images/0001/0001/128_image.jpg": "Normal",
               "multi-modality_images/0010/0010/128_image.jpg": "Glaucoma",
               "multi-modality_images/0001/0001.jpg": None, "multi-modality_images/0001/0001/7_image.jpg": None,
               "glaucoma_grading_training_GT.xlsx": ["data,non,early,mid_advanced", "1,1,0,0", "10,0,0,1"]},
    "STAGE1": {"STAGE_training/training_images/0001/128_image.jpg": "Normal",
               "STAGE_validation/validation_images/0001/128_image.jpg": "val: Glaucoma",
               "STAGE_training/data_info_training.xlsx": ["ID,Glaucoma_stage", "1,normal"],
               "STAGE_validation/data_info_validation.xlsx": ["ID,Glaucoma_stage", "1,advanced"]},
    "STAGE2": {"train/training_images/0002/128_image.jpg": "Glaucoma",
               "valid/validation_images/0002/128_image.jpg": "val: Normal",
               "train/training_images/0002/0002.jpg": None,
               "train/data_info_training.xlsx": ["ID,Glaucoma_stage", "2,early"],
               "valid/data_info_val.xlsx": ["ID,Glaucoma_stage", "2,normal"]},
    "OCTA_500": {"OCTA_3mm/OCT/10301/152.bmp": "Normal", "OCTA_6mm/OCT/10001/200.bmp": AMD,
                 "OCTA_3mm/OCT/10301/1.bmp": None,
                 "OCTA_3mm/Text labels.xlsx": ["ID,Sex,OS/OD,Age,Disease", "10301,F,OD,12,NORMAL"],
                 "OCTA_6mm/Text labels.xlsx": ["ID,Sex,OS/OD,Age,Disease", "10001,F,OD,70,AMD"]},
    "DUKE_DME": {"AMD1/TIFFs/8bitTIFFs/001.tif": "Dry AMD", "DME15/TIFFs/8bitTIFFs/020.tif": "DME",
                 "NORMAL1/TIFFs/8bitTIFFs/001.tif": "Normal"},
    "RetinalOCT_C8": {"RetinalOCT_Dataset/train/CSR/csr_train_1.jpg": "Central serous chorioretinopathy",
                      "RetinalOCT_Dataset/train/DRUSEN/drusen_train_1.jpg": "Drusen",
                      "RetinalOCT_Dataset/train/MH/mh_train_1.jpg": "Macular hole",
                      "RetinalOCT_Dataset/test/NORMAL/normal_test_1.jpg": "test: Normal"},
    "glaucoma_detection": {"POAG-000123-OD/28.png": "Glaucoma", "Normal-000456-OS/28.png": "Normal"},
    "CHASEDB1": {"Image_01L.jpg": "", "Image_01L_1stHO.png": None, "Image_01L_2ndHO.png": None},
}
MASKS = {"HRF": {"retinal vessel"}, "PALM": {"patchy chorioretinal atrophy", "optic disc"}, "FIVES": {"retinal vessel"},
         "E-ophta": {"hard exudate", "microaneurysm"}, "CHASEDB1": {"retinal vessel"}}


def unpack(root: Path, example: dict) -> Path:
    """The example on disk: pictures of 8 x 8 pixels whose left half is 0, tables."""
    image = Image.new("L", (8, 8))
    image.paste(255, (4, 0, 8, 8))
    for path, content in example.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str | None):
            image.convert("RGB" if file.suffix == ".ppm" else "L").save(file)
        elif file.suffix == ".xlsx":
            pd.read_csv(io.StringIO("\n".join(content)), header=None).to_excel(file, header=False, index=False)
        else:
            file.write_text("\n".join(content) + "\n")
    return root


@pytest.mark.filterwarnings("ignore:Drishti-GS1")
@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_miniature_of_each_layout_is_read(tmp_path, monkeypatch, name):
    monkeypatch.setenv("FUNDUS_CACHE", str(tmp_path / "cache"))
    root = unpack(tmp_path / "downloads", EXAMPLES[name])
    inside = readers.Inside(root)
    assert [other for other, entry in catalogue().items() if readers.find(entry, inside)] == [name]  # no other
    table = data.load_dataset(name, root).with_format("arrow")[:].to_pandas()
    splits = ["" if split == "train" else f"{split}: " for split in table["split"]]
    found = {Path(image["path"]).relative_to(root).as_posix(): split + " + ".join(labels)
             for image, split, labels in zip(table["image"], splits, table["labels"], strict=True)}
    assert found == {path: label for path, label in EXAMPLES[name].items() if isinstance(label, str)}
    assert set(table["modality"]) == set(ENTRIES[name].modality)
    masks = [mask for row in table["masks"] for mask in row]
    assert {mask["finding"] for mask in masks} == MASKS.get(name, set())
    for mask in masks:  # PALM's masks are 0 where the lesion is
        columns = data.read_mask(Path(mask["path"])).mean(axis=0).tolist()
        assert columns == ([1, 1, 1, 1, 0, 0, 0, 0] if name == "PALM" else [0, 0, 0, 0, 1, 1, 1, 1])


def test_every_entry_is_complete():
    known = {label["canonical"] for entry in json.loads((REFERENCES / "labels.json").read_text())["datasets"]
             for label in entry["labels"]}
    assert len(ENTRIES) == 39 and set(EXAMPLES) == set(ENTRIES) - {"MPOS"}
    for name, entry in ENTRIES.items():
        assert all((entry.url.startswith("http"), entry.licence, entry.citation, entry.layout, entry.task)), name
        assert set(entry.labels.values()) <= known | PLAIN, name
        assert set(entry.annotated) <= set(entry.labels.values()), name
        assert entry.confidence != "memory" or "not verified" in entry.note, name
        assert entry.roles.get("ophthareason") or name in ("CHASEDB1", "MESSIDOR-1")
    assert not PLAIN - {label for entry in ENTRIES.values() for label in entry.labels.values()}


def test_a_layout_that_nobody_verified_is_refused(tmp_path):
    with pytest.raises(data.DataError, match="MPOS.*layout not verified"):
        data.load_dataset("MPOS", tmp_path)


@pytest.mark.parametrize(("name", "file", "line", "reason"), [
    ("APTOS", "train.csv", "b,7", "b: .*'7'"),
    ("PAPILA", "PapilaDB/ClinicalData/patient_data_os.xlsx", "#002,47,0,3", "RET002OS: diagnosis '3'"),
    ("STARE", "all-mg-codes.txt", "im0004\t0 99\tNormal", "im0004: codes '0 99'"),
    ("GAMMA1", "glaucoma_grading_training_GT.xlsx", "10,0,0,0", "10: "),
])
def test_an_unknown_code_is_a_problem_that_names_it(tmp_path, name, file, line, reason):
    root = unpack(tmp_path, {**EXAMPLES[name], file: EXAMPLES[name][file][:-1] + [line]})
    pictures = sum(isinstance(label, str) for label in EXAMPLES[name].values())
    with pytest.warns(UserWarning, match=reason):
        assert len(data.load_dataset(name, root)) == pictures - 1


@pytest.mark.parametrize(("name", "records"), [("HRF", 24), ("CHASEDB1", 28)])
def test_the_real_files_load(name, records):
    if not (SHARED / "real" / name).exists():
        pytest.skip("the real images are not beside this checkout")
    table = data.load_dataset(name, SHARED / "real" / name)
    assert len(table) == records and table[0]["image"].size[0] > 300


def test_every_row_of_the_real_sheet_of_messidor_1_is_read(tmp_path):
    sheet = SHARED / "labels/MESSIDOR/motatoes_grades.xlsx"
    if not sheet.exists():
        pytest.skip("the public label files are not beside this checkout")
    entry, rule = ENTRIES["MESSIDOR-1"], ENTRIES["MESSIDOR-1"].tables[1]
    rows, problems = readers.read_rows(entry, rule, sheet)
    assert not problems and len(rows) == 32  # 36 rows below the header, four of them empty
    own = pd.read_excel(sheet).dropna(subset="Image name")
    names = {0: "No DR", 1: "Mild NPDR", 2: "Moderate NPDR", 3: "Severe NPDR or PDR"}
    assert [row.labels[0] for row in rows.values()] == own["Retinopathy grade"].map(names).to_list()
    assert [row.split for row in rows.values()].count("test") == (own["training/test"] == "test").sum() == 16


# Public lists of file names, the folder of the download in front; each name must fit the entry's patterns.
LISTS = {"01_EYEPACS": "EYEPACS", "02_MESSIDOR": "MESSIDOR", "07_LAG": "LAG", "10_PARAGUAY": "PARAGUAY",
         "12_ARIA": "ARIA",
         "13_FIVES": "FIVES", "15_APTOS": "APTOS", "16_FUND-OCT": "FUND-OCT", "19_Drishti-GS1": "Drishti-GS1",
         "20_E-ophta": "E-ophta", "21_G1020": "G1020", "23_HRF": "HRF", "24_ORIGA": "ORIGA", "25_REFUGE": "REFUGE",
         "26_ROC": "ROC",
         "30_SUSTech-SYSU": "SUSTech-SYSU", "31_JICHI": "JICHI", "32_CHAKSU": "CHAKSU", "33_DR1-2": "DR1-2",
         "34_Cataract": "Cataract",
         "35_ScarDat": "ScarDat", "36_ACRIMA": "ACRIMA", "AMD": "AMD"}
SEVERAL = {"E-ophta": 434, "DR1-2": 1522}  # photographs that lie in several folders count once
BELOW = {"FUND-OCT": 1, "Cataract": 1, "ScarDat": 1}  # folders between the download's and the entry's home


@pytest.mark.parametrize("source", LISTS)
def test_the_published_file_names_fit(source):
    file, entry = SHARED / "labels/derived_MM-Retinal" / f"{source}.csv", ENTRIES[LISTS[source]]
    if not file.exists():
        pytest.skip("the public file lists are not beside this checkout")
    with file.open(newline="", encoding="utf-8-sig") as lines:
        named = [row["image"].replace("//", "/") for row in csv.DictReader(lines)]
    paths = [path.split("/", 1 + BELOW.get(entry.name, 0))[-1] for path in named]
    images, masks, problems = readers.sort_files(entry, {path: path for path in paths})
    assert not masks and not problems
    assert len(images) == SEVERAL.get(entry.name, len(paths))
