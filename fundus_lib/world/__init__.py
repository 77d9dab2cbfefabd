"""The embedded world: drawn eyes with known findings; `downloads` writes them in the layouts of public data sets."""

from fundus_lib.world.clinic import FINDINGS, LESIONS, complete, random_findings, sample_findings
from fundus_lib.world.ffa import draw_ffa
from fundus_lib.world.fundus import draw_fundus
from fundus_lib.world.oct import draw_oct
from fundus_lib.world.scene import Drawing

__all__ = ["FINDINGS", "Drawing", "draw", "random_findings", "sample_findings"]


def draw(rng, modality: str, findings, *, camera: str, height: int = 384, difficulty: float = 0.0) -> Drawing:
    """Draw one eye that shows `findings` and no other lesion.
    rng: the only source of chance. camera: "clinic", "screening" or "any". height: pixels (sizes are in mm on the
    retina). difficulty: 0..1, how much paler and smaller the lesions of a photograph are (CFP, UWF). Raises ValueError
    for a finding that the modality does not draw, or a normal one that a lesion contradicts."""
    whole = complete(set(findings) & set(LESIONS[modality]), modality)
    if wrong := set(findings) - whole:
        raise ValueError(f"{sorted(wrong)}: not drawn in {modality}, or contradicted by a lesion of {sorted(findings)}")
    lesions = whole & set(LESIONS[modality])
    if modality in ("OCT", "FFA"):
        return (draw_oct if modality == "OCT" else draw_ffa)(rng, lesions, camera=camera, height=height)
    return draw_fundus(rng, modality, lesions, camera=camera, height=height, difficulty=difficulty)
