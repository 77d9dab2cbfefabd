"""OCT B-scans through the macula: 6 mm wide, 1.7 mm deep, stretched to 3:2. x runs across, z down, in mm."""

import numpy as np
from scipy.ndimage import gaussian_filter1d

from fundus_lib.world.clinic import DRUSEN, ERM, HOLE, IRF, PED, SRF
from fundus_lib.world.scene import Drawing, Layer, View, blend, camera_of, cloud, develop

# Brightness across the retina, from the vitreous (0) to the photoreceptor tips (1): nerve fibre and plexiform layers
# bright, nuclear layers dark, then the ellipsoid-zone line; the pit holds little but the outer nuclear layer.
BESIDE = ([0, .03, .13, .17, .30, .36, .46, .50, .56, .60, .78, .80, .84, .88, .91, .95, 1],
          [.5, .66, .60, .42, .46, .24, .24, .46, .44, .20, .18, .34, .18, .56, .60, .30, .30])
PIT = ([0, .05, .12, .70, .73, .78, .84, .89, .94, 1], [.5, .42, .20, .17, .32, .18, .56, .60, .30, .30])


def shade(where: np.ndarray, low: float, high: float, values: np.ndarray) -> np.ndarray:
    """`values` (n,), spread from `low` to `high`, looked up at `where` (any shape): faster than computing there."""
    index = (where - low) * np.float32((len(values) - 1) / (high - low))
    return values.astype(np.float32)[np.clip(index, 0, len(values) - 1).astype(np.int16)]


class Scan:
    """Surfaces of one B-scan over x (width,): Bruch's membrane, RPE, photoreceptor tips (`outer`), `top`."""

    def __init__(self, rng, lesions: frozenset[str], view: View):
        self.rng, self.view, self.fovea = rng, view, (fovea := rng.uniform(2.5, 3.5))
        (x,), self.z = view.grid()
        self.x, rows = x, rng.permutation(np.arange(0.5, 5.6, 0.42))[: rng.integers(6, 11)] + rng.normal(0, 0.05)
        mounds = {  # (centre, half width, height) in mm
            PED: [(fovea + rng.uniform(-1.0, 1.0), rng.uniform(0.6, 1.0), rng.uniform(0.16, 0.25))],
            SRF: [(fovea + rng.uniform(-0.5, 0.5), rng.uniform(0.9, 1.5), rng.uniform(0.10, 0.16))],
            DRUSEN: [(c, rng.uniform(0.12, 0.18), rng.uniform(0.05, 0.08)) for c in rows],
        }
        self.ped, self.lens, self.bumps = (
            np.max([h * (f in lesions) * np.clip(1 - abs((x - c) / half) ** 2.2, 0, 1) for c, half, h in parts], axis=0)
            for f, parts in mounds.items())
        self.bruch = rng.normal(1.08, 0.03) + rng.normal(0, 0.02) * (x - 3) + rng.uniform(-0.005, 0.016) * (x - 3) ** 2
        self.rpe = self.bruch - np.maximum(self.ped, self.bumps)
        self.outer = self.rpe - 0.02 - self.lens
        base = {PED: self.bruch, SRF: self.rpe, DRUSEN: self.bruch}
        self.spots = {f: [complex(c, np.interp(c, x, base[f]) - h / 2) for c, _, h in parts]
                      for f, parts in mounds.items()}  # finding -> centres x + iz
        pit, broad = (np.exp(-(((x - fovea) / reach) ** 2)) for reach in (0.42, 1.1))
        self.pit = pit * (0.3 if ERM in lesions else 1)  # a membrane flattens the pit
        swelling = rng.uniform(0.13, 0.18) if IRF in lesions else 0.03
        thick = rng.uniform(0.30, 0.33) + swelling * broad - 0.14 * self.pit - 0.03 * pit
        folds = 0.022 * np.sin(x * rng.uniform(14, 20)) * broad**0.33 * (ERM in lesions)
        self.top = gaussian_filter1d(self.outer, 0.16 * view.scale[0], mode="nearest") - thick + folds


def paint_layers(scan: Scan, image: np.ndarray) -> dict[str, np.ndarray]:
    """Vitreous, retina, RPE and choroid (height, width), in place; returns the masks of what lifts the layers."""
    z, below = scan.z, scan.z - scan.bruch
    depth = (z - scan.top) / (scan.outer - scan.top)
    beside, pit = (shade(depth, 0, 1, np.interp(np.linspace(0, 1, 256), *table)) for table in (BESIDE, PIT))
    fall = np.linspace(-0.1, 0.9, 256)
    choroid = shade(below, -0.1, 0.9, np.where(fall < 0.27, 0.31 - 0.45 * fall, 0.19 * np.exp((0.27 - fall) / 0.12)))
    choroid = choroid * (1 + 0.4 * cloud(scan.rng, scan.view, 0.11).clip(-1.2, 1)) + 0.04
    retina = beside + (pit - beside) * scan.pit
    image[:] = np.where(depth < 0, 0.03, np.where(depth <= 1, retina, np.where(below > 0, choroid, 0.30)))
    fluid = (z > scan.outer) & (z < scan.rpe - 0.012) & (scan.lens > 0.01)
    raised = (z > scan.rpe) & (below < 0)
    dome, bump = raised & (scan.ped > 0.012), raised & (scan.bumps > np.maximum(scan.ped, 0.008))
    for mask, grey in ((fluid, 0.04), (dome, 0.15), (bump, 0.5)):
        image[mask] = grey
    line = np.exp(-((np.linspace(-0.06, 0.06, 64) / 0.017) ** 4))
    image[:] = np.maximum(image, 0.95 * shade(z - scan.rpe - 0.005, -0.06, 0.06, line))
    image[:] = np.maximum(image, 0.45 * shade(2 * below, -0.06, 0.06, line) * (scan.rpe < scan.bruch - 0.012))
    return {SRF: fluid, PED: dome, DRUSEN: bump}


def paint_lesions(scan: Scan, image: np.ndarray, lesions: frozenset[str]) -> dict[str, np.ndarray]:
    """Cysts, foveal defect and membrane, in place; returns their masks."""
    rng, x, masks = scan.rng, scan.x, {}
    if IRF in lesions:  # round black cysts with bright walls in the nuclear layers around the fovea
        cysts, walls = Layer(scan.view), Layer(scan.view)
        at = scan.fovea + rng.uniform(-1.1, 1.1, rng.integers(7, 13))
        top, thick = np.interp(at, x, scan.top), np.interp(at, x, scan.outer - scan.top)
        middle = at + 1j * (top + thick * rng.uniform(0.32, 0.72, len(at)))
        radii = np.outer(thick * rng.uniform(0.6, 1.4, len(at)), [0.3, 0.15])
        walls.blobs(rng, middle, radii + np.array([0.03, 0.014]))
        cysts.blobs(rng, middle, radii, rough=0.05)
        blend(image[None], 0.6 * walls.coverage(), (0.5,))
        blend(image[None], cysts.coverage(), (0.03,))
        masks[IRF], scan.spots[IRF] = cysts.coverage() > 0.5, cysts.centres
    if HOLE in lesions:  # no retina down to the RPE, the edges rounded
        depth = ((scan.z - scan.top) / (scan.outer - scan.top)).clip(0, 1)
        gap = abs(x - scan.fovea) < rng.uniform(0.2, 0.28) * (1.3 - 2.0 * depth * (1 - depth))
        gap &= (scan.z > scan.top - 0.08) & (scan.z < scan.rpe - 0.012)
        image[gap] = 0.03
        masks[HOLE] = gap & (scan.z > scan.top)
        scan.spots[HOLE] = [complex(scan.fovea, np.interp(scan.fovea, x, (scan.top + scan.outer) / 2))]
    if ERM in lesions:  # a bright line that bridges the folds of the surface
        line, at = Layer(scan.view), np.arange(0.3, 5.8, 0.05)
        taut = at + 1j * (np.interp(at, x, gaussian_filter1d(scan.top, 0.25 * scan.view.scale[0])) - 0.03)
        line.strokes(taut[None], 0.034 * np.clip(np.minimum(at - 0.3, 5.75 - at) / 0.5, 0, 1)[None])
        blend(image[None], line.coverage(), (1.0,))
        masks[ERM], scan.spots[ERM] = line.coverage() > 0.4, taut[10::20]
    return masks


def draw_oct(rng, lesions: frozenset[str], *, camera: str, height: int) -> Drawing:
    """One B-scan that shows exactly `lesions`: layers, lesions, vessel shadows, speckle."""
    device, width = camera_of(rng, camera)._replace(red=1.0, green=1.0, blue=1.0), round(height * 1.5)
    view = View(width, height, (width / 6.0, height / 1.7), 0j)
    scan, image = Scan(rng, lesions, view), np.empty((height, width), np.float32)
    masks = paint_layers(scan, image) | paint_lesions(scan, image, lesions)
    vessels = scan.fovea + rng.choice([-1, 1], 5) * rng.uniform(0.6, 3.5, 5)
    shadow = sum(rng.uniform(0.25, 0.5) * np.exp(-(((scan.x - v) / 0.04) ** 2)) for v in vessels)
    image *= np.where(scan.z > scan.top + 0.05, (1 - shadow).clip(0.4), 1).astype(np.float32)
    image *= 1 + np.float32(0.16 + 5 * device.noise) * rng.standard_normal(image.shape, np.float32)
    image += np.float32(0.02 + 0.06 * device.vignette)  # background of the device
    if device.wide > 0.5:
        image[scan.z > 1.65 + rng.normal(0, 0.035) * (scan.x - 3)] = 1.0
    fovea = complex(scan.fovea, np.interp(scan.fovea, scan.x, scan.top))
    return Drawing(develop(rng, device, np.broadcast_to(image, (3, height, width))), {f: masks[f] for f in lesions},
                   {f: view.fractions(scan.spots[f]) for f in lesions}, view.fractions(fovea)[0], 6.0 / width)
