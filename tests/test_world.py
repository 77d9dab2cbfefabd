import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation, uniform_filter

from fundus_lib import world
from fundus_lib.world import clinic, downloads, scene

PAIRS = [(modality, label) for modality, labels in clinic.RULES.items() for label in labels]
VASCULAR = {"microaneurysm", "retinal hemorrhage", "hard exudate", "cotton-wool spot", "neovascularization",
            "extensive four-quadrant hemorrhage", "sectoral hemorrhage"}
SMALL = {"seed": 7, "train_per_pair": 2, "test_per_pair": 2, "masked_share": 0.5, "height": 48, "difficulty": 0.0}


def samples(label, modality, count=60):
    return [world.sample_findings(np.random.default_rng(i), label, modality) for i in range(count)]


@pytest.mark.parametrize(("modality", "label"), PAIRS)
def test_normal_findings_never_stand_beside_what_contradicts_them(modality, label):
    randomly = [world.random_findings(np.random.default_rng(i), modality) for i in range(60)]
    for found in samples(label, modality) + randomly:
        assert found <= set(world.FINDINGS[modality])
        for normal, against in clinic.NORMAL[modality].items():
            assert (normal in found) != bool(against & found)


def test_grades_of_diabetic_retinopathy():
    assert all(not found & VASCULAR for found in samples("No DR", "CFP"))
    assert all(found & VASCULAR == {"microaneurysm"} for found in samples("Mild NPDR", "CFP"))
    for found in samples("Moderate NPDR", "CFP"):
        assert found & VASCULAR - {"microaneurysm"}
        assert not found & {"extensive four-quadrant hemorrhage", "neovascularization"}
        assert found & {"microaneurysm", "retinal hemorrhage"}
    for found in samples("Severe NPDR", "CFP"):
        assert {"extensive four-quadrant hemorrhage", "retinal hemorrhage"} <= found
        assert "neovascularization" not in found
    assert all("neovascularization" in found for found in samples("PDR", "CFP"))


def test_an_image_carries_one_label_of_its_data_set():
    """The sign that makes another label of the same set must be absent: e.g. no drusen in a diabetic UWF image."""
    makes = {"drusen": "Age-related macular degeneration", "increased cup-to-disc ratio": "Glaucoma",
             "sectoral hemorrhage": "Retinal vein occlusion", "bone-spicule pigmentation": "Retinitis pigmentosa"}
    for label in clinic.RULES["UWF"]:
        for found in samples(label, "UWF"):
            assert {makes[f] for f in found & set(makes)} <= {label}
    for found in samples("Choroidal neovascularization", "OCT"):
        assert "pigment epithelial detachment" in found and found & {"intraretinal fluid", "subretinal fluid"}
    for found in samples("DME", "OCT"):
        assert "intraretinal fluid" in found and not found & {"drusen", "pigment epithelial detachment"}


def test_perception_needs_no_disease(monkeypatch):
    monkeypatch.setattr(clinic, "RULES", {})
    monkeypatch.setattr(clinic, "ONE_OF", {})
    for modality in world.FINDINGS:
        found = [world.random_findings(np.random.default_rng(i), modality) for i in range(200)]
        lesions = set().union(*found) - set(clinic.NORMAL[modality])
        assert lesions == set(clinic.LESIONS[modality])                     # every lesion is drawn
    assert not any({clinic.FOUR, clinic.SECTOR} <= f for f in found)


@pytest.mark.parametrize("modality", world.FINDINGS)
def test_the_same_seed_draws_the_same_eye(modality):
    findings = world.random_findings(np.random.default_rng(1), modality)
    first, again, other = (world.draw(np.random.default_rng(seed), modality, findings, camera="any", height=64)
                           for seed in (3, 3, 4))
    assert first.image.tobytes() == again.image.tobytes() and first.centres == again.centres
    assert first.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize(("modality", "finding"), [(m, f) for m in ("CFP", "UWF") for f in clinic.LESIONS[m]])
def test_a_finding_changes_the_same_eye_where_its_mask_is(modality, finding):
    """By a visible amount, inside the field; less so when it is drawn to be difficult."""
    lesions = clinic.complete({finding}, modality) - set(clinic.NORMAL[modality])
    how = {"camera": "clinic", "height": 96}
    without, easy, hard = (world.draw(np.random.default_rng(5), modality, found, difficulty=d, **how)
                           for found, d in ((set(), 0), (lesions, 0), (lesions, 1)))
    assert set(easy.masks) == set(easy.centres) == lesions and not without.masks and easy.disc == without.disc
    mask, (width, height) = easy.masks[finding], easy.image.size
    plain = np.asarray(without.image, float)
    assert mask.shape == (height, width) and 0.0005 < mask.mean() < 0.8
    assert (uniform_filter(plain.max(-1), 3)[mask] > 15).mean() > 0.98
    near = binary_dilation(mask, iterations=4)
    at = [(min(int(y * height), height - 1), min(int(x * width), width - 1)) for x, y in easy.centres[finding]]
    assert at and np.mean([near[spot] for spot in at]) > 0.8
    change, harder = (abs(np.asarray(drawing.image, float) - plain).mean(-1) for drawing in (easy, hard))
    assert change[mask].mean() > 12 and harder.mean() < 0.9 * change.mean()


@pytest.mark.parametrize("finding", clinic.LESIONS["OCT"][:6])
def test_a_lesion_of_a_scan_is_seen_where_its_mask_is(finding):
    """The mask is darker, or brighter, than the ring around it."""
    drawing = world.draw(np.random.default_rng(5), "OCT", {finding}, camera="clinic", height=128)
    mask, grey = drawing.masks[finding], np.asarray(drawing.image, float)[..., 1]
    ring = binary_dilation(mask, iterations=4) & ~binary_dilation(mask)
    contrast = grey[mask].mean() - grey[ring].mean()
    assert contrast > 8 if finding in ("drusen", "epiretinal membrane") else contrast < -8


def test_a_microaneurysm_is_seen_by_the_small_model():
    """At 96 x 96 pixels it stands out from what is around it, and is redder than a hemorrhage."""
    for seed in range(3):
        drawing = world.draw(np.random.default_rng(seed), "CFP", {"microaneurysm"}, camera="any", height=192)
        small = np.asarray(drawing.image.resize((96, 96), Image.Resampling.BICUBIC), float)
        small = np.pad(small, ((4, 4), (4, 4), (0, 0)))
        spots = [small[int(y * 96) :, int(x * 96) :][:9, :9] for x, y in drawing.centres["microaneurysm"]]
        contrast = [abs(spot[4, 4] - np.median(spot.reshape(-1, 3), axis=0)).mean() for spot in spots]
        assert np.mean(np.array(contrast) >= 12) > 0.8 and drawing.masks["microaneurysm"].mean() < 0.02


@pytest.mark.parametrize("modality", ("CFP", "UWF"))
def test_any_findings_are_drawn_together(modality):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        found = clinic.complete([f for f in clinic.LESIONS[modality] if rng.random() < 0.4], modality)
        drawing = world.draw(rng, modality, found, camera="any", height=48)
        assert set(drawing.masks) == found - set(clinic.NORMAL[modality])


def test_a_description_draws_at_any_size():
    small, large = (world.draw(np.random.default_rng(2), "CFP", {"hard exudate"}, camera="clinic", height=height)
                    for height in (128, 384))
    assert np.allclose(small.disc, large.disc, atol=0.02) and small.laterality == large.laterality
    assert small.pixel_mm / large.pixel_mm == pytest.approx(3, rel=0.01)
    shapes = [world.draw(np.random.default_rng(2), m, set(), camera=c, height=60).image.size
              for m, c in (("CFP", "clinic"), ("CFP", "screening"), ("OCT", "clinic"), ("UWF", "clinic"))]
    assert shapes == [(60, 60), (90, 60), (90, 60), (80, 60)]  # 1:1, 3:2, 3:2, 4:3


def test_any_camera_holds_the_other_two():
    for style in ("clinic", "screening"):
        assert [*scene.STYLES[style]] == [*scene.STYLES["any"]] == [*scene.Camera._fields]
        for setting, (low, high) in scene.STYLES[style].items():
            assert scene.STYLES["any"][setting][0] <= low <= high <= scene.STYLES["any"][setting][1]


def test_the_disc_is_nasal():
    for seed in range(6):
        drawing = world.draw(np.random.default_rng(seed), "UWF", set(), camera="any", height=48)
        assert (drawing.disc[0] > drawing.fovea[0]) == (drawing.laterality == "right")


def test_what_cannot_be_drawn_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="normal macula"):
        world.draw(rng, "CFP", {"drusen", "normal macula"}, camera="any")
    with pytest.raises(ValueError, match="intraretinal fluid"):
        world.draw(rng, "CFP", {"intraretinal fluid"}, camera="any")
    with pytest.raises(ValueError, match="hospital"):
        world.draw(rng, "CFP", set(), camera="hospital")
    with pytest.raises(KeyError, match=r"Glaucoma.*DME"):
        world.sample_findings(rng, "Glaucoma", "OCT")


def contents(root):
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    downloads.build(root, **SMALL)
    return root


def test_layouts_read_back(built):
    truth = pd.read_parquet(built / "truth.parquet").set_index("path")
    assert len(truth) == len(downloads.plan(2, 2, 0.5)) and all((built / p).exists() for p in truth.index)
    grading = built / "clinic/IDRiD/B. Disease Grading/2. Groundtruths"
    grades = pd.read_csv(grading / "a. IDRiD_Disease Grading_Training Labels.csv")
    assert grades.shape == (10, 12) and grades.columns[2] == "Risk of macular edema "
    names = ["No DR", "Mild NPDR", "Moderate NPDR", "Severe NPDR", "PDR"]
    for row in grades.itertuples():
        fact = truth.loc[f"clinic/IDRiD/B. Disease Grading/1. Original Images/a. Training Set/{row[1]}.jpg"]
        assert fact.label == names[row[2]] and (row[3] > 0) == ("hard exudate" in fact.findings)
    top = pd.read_csv(built / "clinic/TOP/data.csv", dtype={"ID": str})
    for row in top.itertuples():
        fact = truth.loc[f"clinic/TOP/img/{row.filename}"]
        assert fact.laterality[0].upper() == row.LR and row.DR == row.DM == (fact.label == "Diabetic retinopathy")
    rfmid = (built / "screening/RFMiD/Test_Set/RFMiD_Testing_Labels.csv").read_bytes()
    assert rfmid.startswith(b"\xef\xbb\xbfID,Disease_Risk,DR,ARMD,MH,") and rfmid.splitlines()[0].count(b",") == 46
    scans = list((built / "clinic/UCSD/OCT2017").rglob("*.jpeg"))
    patients = {split: {p.stem.split("-")[1] for p in scans if split in p.parts} for split in ("train", "test")}
    assert len(scans) == 16 and not patients["train"] & patients["test"]
    assert all(p.name.startswith(p.parent.name) and Image.open(p).mode == "L" for p in scans)


def test_masks_of_part_a(built):
    base = built / "clinic/IDRiD"
    truth = pd.read_parquet(built / "truth.parquet").set_index("path").findings
    part_b = {p.read_bytes(): str(p.relative_to(built)) for p in base.glob("B*/1*/a*/*.jpg")}
    photographs = list(base.glob("A*/1*/a*/*.jpg"))
    assert len(photographs) == 5                                            # half of two images for each of five grades
    for photograph in photographs:
        findings = truth[part_b[photograph.read_bytes()]]                   # the same photograph, another number
        for finding, (folder, code) in downloads.MASKS.items():
            file = base / "A. Segmentation/2. All Segmentation Groundtruths/a. Training Set" / folder
            file = file / f"{photograph.stem}_{code}.tif"
            assert file.exists() == (finding in {*findings, "optic disc"})
            if file.exists():
                mask = Image.open(file)
                assert mask.mode == "P" and mask.size == (48, 48) and mask.getextrema() == (0, 1)


def test_an_interrupted_build_resumes_to_the_same_bytes(built, tmp_path, monkeypatch):
    write, calls = downloads.write_image, []

    def dies_at_the_20th(*arguments):
        calls.append(arguments)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(downloads, "write_image", dies_at_the_20th)
    with pytest.raises(KeyboardInterrupt):
        downloads.build(tmp_path, **SMALL)
    assert not (tmp_path / ".finished").exists()
    journal = Path(tmp_path / ".journal.jsonl")
    journal.write_text(journal.read_text()[:-9])                            # the last line was torn
    downloads.build(tmp_path, **SMALL)
    assert len(calls) == 20 + len(downloads.plan(2, 2, 0.5)) - 18           # 18 of the images were not drawn again
    assert contents(tmp_path) == contents(built)
    with pytest.raises(ValueError, match="begun with settings"):
        downloads.build(tmp_path, **SMALL | {"seed": 8})
    assert json.loads(journal.read_text().split("\n")[0])[0] == 7
