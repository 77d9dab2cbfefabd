"""The embedded world: drawn eyes with known findings, and folders of them in the layouts of public data sets."""

from fundus_lib.world.clinic import FINDINGS, NORMAL, complete, random_findings, sample_findings
from fundus_lib.world.fundus import draw_fundus
from fundus_lib.world.oct import draw_oct
from fundus_lib.world.scene import Drawing

__all__ = ["FINDINGS", "Drawing", "draw", "random_findings", "sample_findings"]


def draw(rng, modality: str, findings, *, camera: str, height: int = 384) -> Drawing:
    """Draw one eye that shows `findings` and no other lesion.

    rng: numpy Generator, the only source of chance. camera: "clinic", "screening" or "any". Sizes are in mm on the
    retina, so that one description draws at any height (pixels). Raises ValueError for a finding that the modality
    does not draw, and for a normal finding beside a lesion that contradicts it.
    """
    unknown = set(findings) - set(FINDINGS[modality])
    if unknown:
        raise ValueError(f"{modality} does not draw {sorted(unknown)}; it draws {', '.join(FINDINGS[modality])}")
    whole = complete(set(findings) - set(NORMAL[modality]), modality)
    if set(findings) - whole:
        raise ValueError(f"{sorted(set(findings) - whole)} contradicts a lesion in {sorted(findings)}")
    lesions = whole - set(NORMAL[modality])
    if modality == "OCT":
        return draw_oct(rng, lesions, camera=camera, height=height)
    return draw_fundus(rng, modality, lesions, camera=camera, height=height)
