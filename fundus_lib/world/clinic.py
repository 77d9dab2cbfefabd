"""Which findings an eye with a label shows: the clinical rules of the embedded world, and draws that ignore them."""

MICRO, BLOOD, HARD, COTTON = "microaneurysm", "retinal hemorrhage", "hard exudate", "cotton-wool spot"
FOUR, SECTOR = "extensive four-quadrant hemorrhage", "sectoral hemorrhage"  # both imply BLOOD
VESSELS, CUP = "neovascularization", "increased cup-to-disc ratio"
DRUSEN, SPICULES = "drusen", "bone-spicule pigmentation"
IRF, SRF, PED = "intraretinal fluid", "subretinal fluid", "pigment epithelial detachment"
ERM, HOLE = "epiretinal membrane", "full-thickness foveal defect"
EN_FACE = (MICRO, BLOOD, FOUR, SECTOR, HARD, COTTON, VESSELS, CUP, DRUSEN, SPICULES)
LESIONS = {"CFP": EN_FACE, "OCT": (IRF, SRF, PED, DRUSEN, ERM, HOLE), "UWF": EN_FACE}
NORMAL_EN_FACE = {
    "normal optic disc": {CUP, VESSELS},
    "normal macula": {DRUSEN, HARD},
    "normal retinal vasculature": {MICRO, BLOOD, FOUR, SECTOR, VESSELS, SPICULES},
}
NORMAL_OCT = {"normal foveal contour": {IRF, SRF, ERM, HOLE, PED}, "intact retinal layers": set(LESIONS["OCT"])}
NORMAL = {"CFP": NORMAL_EN_FACE, "OCT": NORMAL_OCT, "UWF": NORMAL_EN_FACE}  # there when none of these lesions is
FINDINGS = {modality: (*lesions, *NORMAL[modality]) for modality, lesions in LESIONS.items()}

NOTHING, BY_CHANCE = ((), {}), {DRUSEN: 0.15, CUP: 0.15}  # by chance only where neither is a label of the data set
DIABETIC = {MICRO: 0.85, BLOOD: 0.7, HARD: 0.5, COTTON: 0.4}
ANY_GRADE = ((), DIABETIC | {FOUR: 0.25, VESSELS: 0.2})
RULES = {  # modality -> label -> findings always there, {possible finding: probability}
    "CFP": {"No DR": NOTHING, "Mild NPDR": ((MICRO,), BY_CHANCE), "Moderate NPDR": ((), DIABETIC | BY_CHANCE),
            "Severe NPDR": ((FOUR,), DIABETIC | BY_CHANCE), "PDR": ((VESSELS,), DIABETIC | BY_CHANCE | {FOUR: 0.15}),
            "Normal": NOTHING, "Diabetic retinopathy": ANY_GRADE,
            "Age-related macular degeneration": ((DRUSEN,), {}), "Retinitis pigmentosa": ((SPICULES,), {})},
    "OCT": {"Normal": NOTHING, "Drusen": ((DRUSEN,), {}), "DME": ((IRF,), {SRF: 0.4, ERM: 0.15}),
            "Choroidal neovascularization": ((PED,), {IRF: 0.6, SRF: 0.6, DRUSEN: 0.4, ERM: 0.15})},
    "UWF": {"Normal": NOTHING, "Diabetic retinopathy": ANY_GRADE, "Glaucoma": ((CUP,), {COTTON: 0.15}),
            "Retinal vein occlusion": ((SECTOR,), {COTTON: 0.5, HARD: 0.15}),
            "Retinitis pigmentosa": ((SPICULES,), {COTTON: 0.15}),
            "Age-related macular degeneration": ((DRUSEN,), {COTTON: 0.15})},
}
ONE_OF = dict.fromkeys(("Moderate NPDR", "Diabetic retinopathy"), ({BLOOD}, {MICRO, HARD}, {MICRO, COTTON}))
ONE_OF["Choroidal neovascularization"] = ({IRF}, {SRF})  # one of the combinations must be there


def complete(lesions, modality: str) -> frozenset[str]:
    """Lesions with what they imply: the parent hemorrhage, and every normal finding that none of them contradicts."""
    found = set(lesions) | ({BLOOD} if {FOUR, SECTOR} & set(lesions) else set())
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

    Each lesion has probability 0.3, the two patterns of hemorrhage 0.12; a sector cannot be told within four bleeding
    quadrants, so the wider pattern wins.
    """
    found = {f for f in LESIONS[modality] if rng.random() < (0.12 if f in (FOUR, SECTOR) else 0.3)}
    return complete(found - {SECTOR} if FOUR in found else found, modality)
