"""Which findings an eye with a label shows: the clinical rules of the embedded world, and draws that ignore them."""

from collections.abc import Iterable

MICRO, BLOOD, HARD, COTTON = "microaneurysm", "retinal hemorrhage", "hard exudate", "cotton-wool spot"
FOUR, SECTOR = "extensive four-quadrant hemorrhage", "sectoral hemorrhage"  # both imply BLOOD
VESSELS, CUP = "neovascularization", "increased cup-to-disc ratio"
DRUSEN, SPICULES, TORTUOUS = "drusen", "bone-spicule pigmentation", "venous dilation and tortuosity"
PALLOR, EDEMA, PERIPAPILLARY = "optic disc pallor", "optic disc edema", "peripapillary atrophy"
MYELINATED, COLOBOMA = "myelinated nerve fiber", "coloboma"
WHITENING, CHERRY = "retinal whitening", "cherry-red spot"  # the spot is what the whitening spares
TESSELLATED, PATCHY = "tessellated fundus", "patchy chorioretinal atrophy"
GEOGRAPHIC, SUBRETINAL_BLOOD = "geographic atrophy", "subretinal hemorrhage"
DETACHMENT, LASER = "retinal detachment", "laser scar"
PRERETINAL, VITREOUS = "preretinal hemorrhage", "vitreous hemorrhage"
HAZE, ASTEROID = "media opacity", "asteroid bodies"
IRF, SRF, PED = "intraretinal fluid", "subretinal fluid", "pigment epithelial detachment"
ERM, HOLE, VMT = "epiretinal membrane", "full-thickness foveal defect", "vitreomacular traction"
INNER_BRIGHT, SHRM = "inner retinal hyperreflectivity", "subretinal hyperreflective material"
THICK_CHOROID, PEAKED = "choroidal thickening", "sharply peaked PED"  # PEAKED implies PED

UWF = (MICRO, BLOOD, FOUR, SECTOR, HARD, COTTON, VESSELS, CUP, DRUSEN, SPICULES, WHITENING, CHERRY, HOLE, DETACHMENT,
       LASER, VITREOUS)
CFP = (*UWF, PALLOR, EDEMA, PERIPAPILLARY, TESSELLATED, PATCHY, GEOGRAPHIC, SUBRETINAL_BLOOD, ERM, SRF, PRERETINAL,
       HAZE, ASTEROID, MYELINATED, COLOBOMA, TORTUOUS)
OCT = (IRF, SRF, PED, DRUSEN, ERM, HOLE, GEOGRAPHIC, INNER_BRIGHT, VMT, SHRM, THICK_CHOROID, PEAKED)
LESIONS = {"CFP": CFP, "OCT": OCT, "UWF": UWF, "FFA": (MICRO, BLOOD, VESSELS)}
IMPLIES = {FOUR: BLOOD, SECTOR: BLOOD, CHERRY: WHITENING, PEAKED: PED}
NORMAL_EN_FACE = {
    "normal optic disc": {CUP, VESSELS, PALLOR, EDEMA, PERIPAPILLARY, MYELINATED, COLOBOMA},
    "normal macula": {DRUSEN, HARD, WHITENING, HOLE, GEOGRAPHIC, SUBRETINAL_BLOOD, ERM, SRF, PATCHY},
    "normal retinal vasculature": {MICRO, BLOOD, VESSELS, SPICULES, WHITENING, TORTUOUS},
}
NORMAL_OCT = {"normal foveal contour": {IRF, SRF, ERM, HOLE, PED, VMT, SHRM, INNER_BRIGHT},
              "intact retinal layers": set(OCT) - {THICK_CHOROID}}
# Findings that are there when none of these lesions is.
NORMAL = {"CFP": NORMAL_EN_FACE, "OCT": NORMAL_OCT, "UWF": NORMAL_EN_FACE, "FFA": {}}
FINDINGS = {modality: (*lesions, *NORMAL[modality]) for modality, lesions in LESIONS.items()}

NOTHING, BY_CHANCE = ((), {}), {DRUSEN: 0.15, CUP: 0.15}  # by chance only where neither is a label of the data set
DIABETIC = {MICRO: 0.85, BLOOD: 0.7, HARD: 0.5, COTTON: 0.4}
ANY_GRADE = ((), DIABETIC | {FOUR: 0.25, VESSELS: 0.2})
GRADES = {"No DR": NOTHING, "Mild NPDR": ((MICRO,), {}), "Moderate NPDR": ((), DIABETIC),
          "Severe NPDR": ((FOUR,), DIABETIC), "PDR": ((VESSELS,), DIABETIC | {FOUR: 0.15})}
RULES = {  # modality -> label -> findings always there, {possible finding: probability}
    "CFP": {label: (always, possible | (BY_CHANCE if always or possible else {}))
            for label, (always, possible) in GRADES.items()} | {
        "Normal": NOTHING, "Diabetic retinopathy": ANY_GRADE,
        "Age-related macular degeneration": ((DRUSEN,), {}), "Dry AMD": ((), {DRUSEN: 0.8, GEOGRAPHIC: 0.4}),
        "Wet AMD": ((SUBRETINAL_BLOOD,), {DRUSEN: 0.5, HARD: 0.3}),
        "Glaucoma": ((CUP,), {PERIPAPILLARY: 0.3}), "Large optic cup": ((CUP,), {}),
        "Optic atrophy": ((PALLOR,), {}), "Optic disc edema": ((EDEMA,), {BLOOD: 0.2, COTTON: 0.3}),
        "Myelinated nerve fiber": ((MYELINATED,), {}), "Coloboma": ((COLOBOMA,), {}),
        "Branch retinal vein occlusion": ((SECTOR,), {COTTON: 0.5, HARD: 0.2, TORTUOUS: 0.4}),
        "Central retinal vein occlusion": ((FOUR, TORTUOUS), {COTTON: 0.5, EDEMA: 0.3}),
        "Central retinal artery occlusion": ((WHITENING, CHERRY), {}),
        "Branch retinal artery occlusion": ((WHITENING,), {COTTON: 0.2}),
        "Pathological myopia": ((PATCHY,), {PERIPAPILLARY: 0.8, TESSELLATED: 0.7}),
        "Tessellated fundus": ((TESSELLATED,), {PERIPAPILLARY: 0.3}),
        "Retinitis pigmentosa": ((SPICULES,), {PALLOR: 0.3}),
        "Epiretinal membrane": ((ERM,), {}), "Macular hole": ((HOLE,), {}),
        "Central serous chorioretinopathy": ((SRF,), {}), "Rhegmatogenous retinal detachment": ((DETACHMENT,), {}),
        "Laser scars": ((LASER,), {MICRO: 0.3, HARD: 0.2}), "Cotton-wool spots": ((COTTON,), {BLOOD: 0.2}),
        "Preretinal hemorrhage": ((PRERETINAL,), {}), "Vitreous hemorrhage": ((VITREOUS,), {}),
        "Media haze": ((HAZE,), {}), "Cataract": ((HAZE,), {}), "Asteroid hyalosis": ((ASTEROID,), {})},
    "OCT": {"Normal": NOTHING, "Drusen": ((DRUSEN,), {}), "DME": ((IRF,), {SRF: 0.4, ERM: 0.15}),
            "Choroidal neovascularization": ((PED,), {IRF: 0.6, SRF: 0.6, DRUSEN: 0.4, SHRM: 0.3}),
            "Age-related macular degeneration": ((DRUSEN,), {GEOGRAPHIC: 0.3}),
            "Dry AMD": ((), {DRUSEN: 0.8, GEOGRAPHIC: 0.4}),
            "Wet AMD": ((SHRM,), {IRF: 0.6, SRF: 0.6, PED: 0.5, DRUSEN: 0.3}),
            "Polypoidal choroidal vasculopathy": ((PEAKED,), {SRF: 0.6, THICK_CHOROID: 0.5}),
            "Central serous chorioretinopathy": ((SRF,), {THICK_CHOROID: 0.8}),
            "Macular hole": ((HOLE,), {IRF: 0.4}), "Epiretinal membrane": ((ERM,), {IRF: 0.15}),
            "Retinal artery occlusion": ((INNER_BRIGHT,), {}),
            "Vitreomacular interface disease": ((VMT,), {ERM: 0.3, IRF: 0.2}),
            "Intraretinal fluid": ((IRF,), {PED: 0.3}), "Subretinal fluid": ((SRF,), {IRF: 0.3}),
            "Pigment epithelial detachment": ((PED,), {SRF: 0.3})},
    "UWF": GRADES | {"Normal": NOTHING, "Diabetic retinopathy": ANY_GRADE, "Glaucoma": ((CUP,), {COTTON: 0.15}),
                     "Retinal vein occlusion": ((SECTOR,), {COTTON: 0.5, HARD: 0.15}),
                     "Retinal artery occlusion": ((WHITENING,), {CHERRY: 0.6}),
                     "Retinitis pigmentosa": ((SPICULES,), {COTTON: 0.15}), "Macular hole": ((HOLE,), {}),
                     "Retinal detachment": ((DETACHMENT,), {}),
                     "Age-related macular degeneration": ((DRUSEN,), {COTTON: 0.15})},
    "FFA": {"Normal": NOTHING, "Diabetic retinopathy": ((MICRO,), {BLOOD: 0.5, VESSELS: 0.4})},
}
ONE_OF = dict.fromkeys(("Moderate NPDR", "Diabetic retinopathy"), ({BLOOD}, {MICRO, HARD}, {MICRO, COTTON}))
ONE_OF |= {"Choroidal neovascularization": ({IRF}, {SRF}), "Wet AMD": ({SUBRETINAL_BLOOD}, {IRF}, {SRF}),
           "Dry AMD": ({DRUSEN}, {GEOGRAPHIC})}  # one of the combinations must be there

# At most one of each group in an eye: side by side they would hide each other.
EXCLUSIVE = ((FOUR, SECTOR), (CHERRY, HOLE, SRF, SUBRETINAL_BLOOD, GEOGRAPHIC, ERM), (COLOBOMA, CUP, PALLOR, EDEMA),
             (VITREOUS, HAZE, DETACHMENT), (PED, PEAKED, GEOGRAPHIC), (VMT, HOLE, ERM))
# How often perception meets a lesion; the others one time in ten. Small ones are hard to learn to see.
OFTEN = {MICRO: 0.35, BLOOD: 0.25, HARD: 0.25, COTTON: 0.25, VESSELS: 0.2, DRUSEN: 0.25, CUP: 0.2, SPICULES: 0.15,
         SECTOR: 0.12, FOUR: 0.12}
OFTEN_OCT = dict.fromkeys(OCT, 0.2) | {DRUSEN: 0.3, IRF: 0.3, SRF: 0.3, PED: 0.25}


def complete(lesions: Iterable[str], modality: str) -> frozenset[str]:
    """Lesions with what they imply: the wider finding, and every normal finding that none of them contradicts."""
    found = set(lesions) | {IMPLIES[lesion] for lesion in lesions if lesion in IMPLIES}
    return frozenset(found | {name for name, against in NORMAL[modality].items() if not against & found})


def sample_findings(rng, label: str, modality: str) -> frozenset[str]:
    """Findings of one image that carries `label`, normal findings included; KeyError for a pair that is not drawn."""
    if label not in RULES.get(modality, {}):
        raise KeyError(f"no rule for {label!r} in {modality}; drawn: {', '.join(RULES.get(modality, RULES))}")
    always, possible = RULES[modality][label]
    while True:
        found = complete([*always, *(f for f, p in possible.items() if rng.random() < p)], modality)
        if any(combination <= found for combination in ONE_OF.get(label, [set()])):
            return found


def random_findings(rng, modality: str) -> frozenset[str]:
    """Findings without regard to any disease, normal ones included: what perception is trained on.

    One eye in eight is quiet. Else every lesion is drawn on its own (`OFTEN`), and of an exclusive group one stays.
    """
    if rng.random() < 0.125:
        return complete((), modality)
    often = OFTEN_OCT if modality == "OCT" else dict.fromkeys(LESIONS[modality], 0.3) if modality == "FFA" else OFTEN
    found = {lesion for lesion in LESIONS[modality] if rng.random() < often.get(lesion, 0.1)}
    for group in EXCLUSIVE:
        rivals = [lesion for lesion in group if lesion in found]
        found -= set(rivals) - {rivals[rng.integers(len(rivals))]} if len(rivals) > 1 else set()
    return complete(found, modality)
