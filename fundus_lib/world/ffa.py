"""Fundus fluorescein angiograms (FFA): grey, the dye white; view and anatomy are those of a color photograph."""

import numpy as np
from scipy.ndimage import gaussian_filter

from fundus_lib.world.clinic import BLOOD, MICRO, VESSELS
from fundus_lib.world.eye import Eye, branches
from fundus_lib.world.scene import Drawing, Layer, blend, camera_of, cloud

WHITE, SIZE = 0.92, 1.5  # of the dye; of lesions against life, so that the small model sees them


def paint_anatomy(eye: Eye) -> tuple[np.ndarray, np.ndarray]:
    """Choroidal flush, dark fovea, disc and white vessels: the image (1, height, width), the mask of the disc."""
    rng, disc = eye.rng, Layer(eye.view)
    image = 0.30 + 0.03 * cloud(rng, eye.view, 2.0)[None] + 0.02 * cloud(rng, eye.view, 0.4)
    image *= 1 - 0.65 * np.exp(-(eye.x**2) / 1.1) * np.exp(-(eye.y**2) / 1.1)  # macular pigment hides it
    disc.blobs(rng, eye.disc, 0.89 * rng.uniform(0.94, 1.06) * np.array([0.95, 1.0]), rough=0.03, soft=0.25)
    blend(image, disc.coverage(), (0.45,))
    thick, layer = rng.uniform(0.95, 1.15), Layer(eye.view)
    for width in (0.150, 0.100):  # a vein and an artery for each arcade
        paths = np.stack([eye.arcade(up, nasal) for up in (-1, 1) for nasal in (False, True)])
        trunks = paths, np.outer([1, 0.75, 1, 0.75], width * thick * np.linspace(1, 0.4, 40))
        twigs = branches(rng, *trunks, [5, 9, 13, 18, 23, 29, 34], 14)
        for paths, widths in (branches(rng, *twigs, [4, 7, 10], 9), twigs, trunks):
            layer.strokes(paths, np.maximum(widths, 0.03) * np.clip((abs(paths) - 0.45) / 0.6, 0, 1))
    blend(image, 0.78 * layer.coverage(), (WHITE,))
    return image, disc.coverage() > 0.5


def paint_lesions(eye: Eye, image: np.ndarray, lesions: frozenset[str]) -> tuple[dict, dict]:
    """Blood that blocks the light, leaking new vessels, bright dots, in place; returns masks, and centres in mm."""
    rng, masks, centres = eye.rng, {}, {}
    for finding in [f for f in (BLOOD, VESSELS, MICRO) if f in lesions]:
        layer = Layer(eye.view)
        if finding == BLOOD:
            points = eye.scatter(rng.integers(6, 11), eye.middle, 0.85 * eye.axes)
            layer.blobs(rng, points, rng.uniform(0.2, 0.38, (len(points), 2)) * SIZE, rough=0.18, soft=0.2)
        elif finding == MICRO:
            points = eye.scatter(rng.integers(18, 33), 1, 4.6 + 4.2j)
            layer.blobs(rng, points, rng.uniform(0.066, 0.08, (len(points), 1)) * [SIZE, SIZE], soft=0.3)
        else:  # a tangle on the disc or an arcade, in the cloud of dye that leaks from it
            course = eye.arcade(rng.choice([-1, 1]))[12:26]
            layer.centres = [eye.disc if rng.random() < 0.3 else rng.choice(course[eye.visible(course, 0.8)])]
            turn = rng.uniform(0, 2 * np.pi, (40, 1)) + 2.6 * np.linspace(0, 1, 12) + rng.normal(0, 0.3, (40, 12))
            start = layer.centres[0] + rng.normal(0, 0.26 * SIZE, (40, 1, 2)) @ [1, 1j]
            layer.strokes(start + (np.exp(1j * turn) * 0.075 * SIZE).cumsum(1), np.full((40, 12), 0.04 * SIZE))
            blend(image, (1.3 * gaussian_filter(layer.coverage(), 0.35 * eye.view.scale[0])).clip(0, 1), (WHITE,))
        coverage = layer.coverage()
        blend(image, 0.95 * coverage, (0.06,) if finding == BLOOD else (1.0,))
        masks[finding], centres[finding] = coverage > 0.4, layer.centres
    return masks, centres


def draw_ffa(rng, lesions: frozenset[str], *, camera: str, height: int) -> Drawing:
    """One angiogram that shows exactly `lesions`, of either eye."""
    device = camera_of(rng, camera)._replace(red=1.0, green=1.0, blue=1.0)
    eye = Eye(rng, "CFP", device.wide > 0.5, height)
    image, disc = paint_anatomy(eye)
    masks, centres = paint_lesions(eye, image, lesions)
    rim = ((eye.x - eye.middle.real) ** 2 + (eye.y - eye.middle.imag) ** 2) / eye.axes.real**2
    image *= (1 - device.dark) * (1 - device.vignette * rim * rim) * (rim < 1)
    return eye.deliver(device, np.repeat(image, 3, axis=0), rim < 1, masks, centres, disc)
