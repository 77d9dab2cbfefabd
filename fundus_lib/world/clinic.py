"""Which findings an eye with a label shows: the clinical rules of the embedded world, and draws that ignore them."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import yaml

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


@cache
def table(name: str) -> dict | list:
    """A table of the embedded world: references/world/<name>.yaml."""
    return yaml.safe_load((Path(__file__).parents[1] / "references/world" / f"{name}.yaml").read_text("utf-8"))


_KNOWN = table("clinic")
LESIONS, IMPLIES, RULES, ONE_OF = (_KNOWN[part] for part in ("lesions", "implies", "rules", "one_of"))
NORMAL = {modality: {finding: set(against) for finding, against in findings.items()}
          for modality, findings in _KNOWN["normal"].items()}
FINDINGS = {modality: (*lesions, *NORMAL[modality]) for modality, lesions in LESIONS.items()}


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
        if any(set(combination) <= found for combination in ONE_OF.get(label, [()])):
            return found


def random_findings(rng, modality: str) -> frozenset[str]:
    """Findings without regard to any disease, normal ones included: what perception is trained on.
    One eye in eight is quiet. Else every lesion is drawn on its own, and of an exclusive group one stays."""
    if rng.random() < 0.125:
        return complete((), modality)
    found = {lesion for lesion in LESIONS[modality] if rng.random() < _KNOWN["often"][modality].get(lesion, 0.1)}
    for group in _KNOWN["exclusive"]:
        rivals = [lesion for lesion in group if lesion in found]
        found -= set(rivals) - {rivals[rng.integers(len(rivals))]} if len(rivals) > 1 else set()
    return complete(found, modality)
