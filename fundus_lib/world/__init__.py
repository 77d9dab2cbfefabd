"""The embedded world: drawn eyes with known findings; `downloads` writes them in the layouts of public data sets."""

from fundus_lib.world.clinic import FINDINGS, random_findings, sample_findings
from fundus_lib.world.drawing import draw
from fundus_lib.world.scene import Drawing

__all__ = ["FINDINGS", "Drawing", "draw", "random_findings", "sample_findings"]
