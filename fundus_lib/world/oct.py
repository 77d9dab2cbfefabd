"""OCT B-scans through the macula: 6 mm wide, 1.7 mm deep, stretched to 3:2. x runs across, z down, in mm."""

import numpy as np
from scipy.ndimage import gaussian_filter1d

from fundus_lib.world import clinic
from fundus_lib.world.scene import Drawing, Layer, View, blend, camera_of, cloud, develop

PROFILES = clinic.table("looks")["retina in oct"]


def shade(where: np.ndarray, low: float, high: float, values: np.ndarray) -> np.ndarray:
    """`values` (n,), spread from `low` to `high`, looked up at `where` (any shape): faster than computing there."""
    index = (where - low) * np.float32((len(values) - 1) / (high - low))
    return values.astype(np.float32)[np.clip(index, 0, len(values) - 1).astype(np.int16)]


class Scan:
    """Surfaces of one B-scan over x (width,): Bruch's membrane, RPE, photoreceptor tips (`outer`), `top`.
    `bare` and `pale` (width,) are 1 along geographic atrophy and along the swollen inner retina, else 0."""

    def __init__(self, rng, lesions: frozenset[str], view: View):
        self.rng, self.view, self.fovea = rng, view, (fovea := rng.uniform(2.5, 3.5))
        (x,), self.z = view.grid()
        self.x, rows = x, rng.permutation(np.arange(0.5, 5.6, 0.42))[: rng.integers(6, 11)] + rng.normal(0, 0.05)
        side, peaked = rng.choice([-1, 1]), clinic.PEAKED in lesions
        shape = (rng.uniform(0.30, 0.38), rng.uniform(0.32, 0.38)) if peaked else rng.uniform((0.6, 0.16), (1.0, 0.25))
        mounds = {  # (centre, half width, height) in mm
            clinic.PED: [(fovea + side * rng.uniform(0.0, 1.0), *shape)],
            clinic.SRF: [(fovea + rng.uniform(-0.5, 0.5), rng.uniform(0.9, 1.5), rng.uniform(0.10, 0.16))],
            clinic.SHRM: [(fovea + rng.uniform(-0.6, 0.6), rng.uniform(0.5, 0.8), rng.uniform(0.13, 0.18))],
            clinic.DRUSEN: [(c, rng.uniform(0.12, 0.18), rng.uniform(0.05, 0.08)) for c in rows],
        }
        sharp = dict.fromkeys(mounds, 2.2) | {clinic.PED: 1.3 if peaked else 2.2}
        self.ped, self.lens, self.mass, self.bumps = (
            np.max([h * (f in lesions) * np.clip(1 - abs((x - c) / half) ** sharp[f], 0, 1) for c, half, h in parts],
                   axis=0) for f, parts in mounds.items())
        self.mass *= 1 + 0.3 * cloud(rng, View(len(x), 1, view.scale, 0j), 0.25)[0].clip(-1.5, 1)  # ragged
        patch = abs(x - fovea + side * rng.uniform(0.9, 1.5)) < rng.uniform(0.5, 0.85)  # away from a detachment
        self.bare = (patch & (clinic.GEOGRAPHIC in lesions)).astype(np.float32)
        self.bumps *= 1 - self.bare
        fog = (x - fovea) * rng.choice([-1, 1]) + rng.choice([0.1, 9])  # one side of the fovea, or both
        self.pale = (fog / 0.3).clip(0, 1) * (clinic.INNER_BRIGHT in lesions)
        self.bruch = rng.normal(1.08, 0.03) + rng.normal(0, 0.02) * (x - 3) + rng.uniform(-0.005, 0.016) * (x - 3) ** 2
        pit, broad = (np.exp(-(((x - fovea) / reach) ** 2)) for reach in (0.42, 1.1))
        membrane, pulled = clinic.ERM in lesions, clinic.VMT in lesions
        self.pit = pit * (0.15 if pulled else 0.3 if membrane else 1)  # a membrane flattens the pit
        swelling = rng.uniform(0.13, 0.18) if clinic.IRF in lesions else 0.03
        thick = rng.uniform(0.30, 0.33) + swelling * broad - 0.14 * self.pit - 0.03 * pit
        thick += 0.07 * self.pale * (1 - self.pit) - 0.09 * gaussian_filter1d(self.bare, 0.05 * view.scale[0])
        thick += rng.uniform(0.14, 0.2) * np.exp(-abs(x - fovea) / 0.28) * pulled  # the fovea goes up
        folds = 0.022 * np.sin(x * rng.uniform(14, 20)) * broad**0.33 * membrane
        raised = np.maximum(self.ped, self.bumps) + 0.02 + self.lens + self.mass
        smooth = gaussian_filter1d(self.bruch - raised, (0.08 if peaked else 0.16) * view.scale[0], mode="nearest")
        self.top = smooth - thick + folds
        room = max(0, 0.16 - self.top.min())  # much swelling at once: the whole retina lies lower in the frame
        self.top, self.bruch = self.top + room, self.bruch + room
        self.rpe = self.bruch - np.maximum(self.ped, self.bumps)
        self.outer = self.bruch - raised
        bases = self.bruch, self.rpe - self.mass, self.rpe, self.bruch  # of the mounds
        self.spots = {f: [complex(c, np.interp(c, x, base) - h / 2) for c, _, h in parts]
                      for (f, parts), base in zip(mounds.items(), bases, strict=True)}  # finding -> centres x + iz


def paint_layers(scan: Scan, image: np.ndarray, lesions: frozenset[str]) -> dict[str, np.ndarray]:
    """Vitreous, retina, RPE and choroid (height, width), in place; returns the masks of what lies between them."""
    z, below, bare, texture = scan.z, scan.z - scan.bruch, scan.bare, cloud(scan.rng, scan.view, 0.11)
    depth = (z - scan.top) / (scan.outer - scan.top) * (1 - 0.36 * bare)  # atrophy takes the photoreceptors
    beside, pit = (shade(depth, 0, 1, np.interp(np.linspace(0, 1, 256), *table)) for table in PROFILES.values())
    deep = scan.rng.uniform(0.42, 0.5) if clinic.THICK_CHOROID in lesions else 0.27
    fall = np.linspace(-0.1, 0.9, 256)
    choroid = shade(below, -0.1, 0.9, np.where(fall < deep, 0.31 - 0.12 * fall / deep,
                                               0.19 * np.exp(np.minimum(0, deep - fall) / 0.12)))
    choroid = choroid * (1 + 0.4 * texture.clip(-1.2, 1)) + 0.04
    masks = {}
    if clinic.THICK_CHOROID in lesions:  # large dark vessels
        at, lumens = np.arange(0.3, 5.8, 0.42) + scan.rng.uniform(-0.2, 0.2, 14), Layer(scan.view)
        level = np.interp(at, scan.x, scan.bruch) + scan.rng.uniform(0.15, deep - 0.11, 14)
        lumens.blobs(scan.rng, at + 1j * level, scan.rng.uniform((0.11, 0.06), (0.22, 0.11), (14, 2)), rough=0.08)
        blend(choroid[None], 0.85 * lumens.coverage(), (0.03,))
        masks[clinic.THICK_CHOROID], scan.spots[clinic.THICK_CHOROID] = lumens.coverage() > 0.4, lumens.centres
    if clinic.GEOGRAPHIC in lesions:  # light passes where the RPE is gone: bright columns
        columns = 0.45 + 0.12 * np.sin(scan.x * 40 + 2 * np.sin(scan.x * 17))
        choroid += bare * columns * shade(below, 0, 0.9, np.exp(-np.linspace(0, 0.9, 64) / 0.35))
        masks[clinic.GEOGRAPHIC] = (bare > 0) & (below > 0) & (below < 0.35)
        scan.spots[clinic.GEOGRAPHIC] = (scan.x + 1j * (scan.bruch + 0.15))[bare > 0][6::12]
    retina = beside + (pit - beside) * scan.pit
    if clinic.INNER_BRIGHT in lesions:
        pale = scan.pale * (1 - 0.8 * scan.pit)
        swollen = pale * shade(depth, 0, 1, np.interp(np.linspace(0, 1, 64), [0, 0.05, 0.48, 0.54], [0.4, 1, 1, 0]))
        retina += swollen * (0.85 - retina)
        dim = 1 - 0.55 * pale * shade(depth, 0, 1, np.interp(np.linspace(0, 1, 64), [0.5, 0.6], [0, 1]))
        retina, choroid = retina * dim, choroid * dim
        masks[clinic.INNER_BRIGHT] = (swollen > 0.5) & (depth > 0)
        at = np.flatnonzero(scan.pale * (1 - scan.pit) > 0.8)[12::24]
        middle = 0.75 * scan.top[at] + 0.25 * scan.outer[at]
        scan.spots[clinic.INNER_BRIGHT] = scan.x[at] + 1j * middle
    image[:] = np.where(depth < 0, 0.03, np.where(z <= scan.outer, retina, np.where(below > 0, choroid, 0.30)))
    floor = scan.rpe - scan.mass
    masks[clinic.SRF] = (z > scan.outer) & (z < floor - 0.012) & (scan.lens > 0.01)
    masks[clinic.SHRM] = (z > floor - 0.01) & (z < scan.rpe - 0.012) & (scan.mass > 0.012)
    raised = (z > scan.rpe) & (below < 0)
    masks[clinic.PED] = raised & (scan.ped > 0.012)
    masks[clinic.DRUSEN] = raised & (scan.bumps > np.maximum(scan.ped, 0.008))
    masks[clinic.PEAKED], scan.spots[clinic.PEAKED] = masks[clinic.PED], scan.spots[clinic.PED]
    for finding, grey in ((clinic.SRF, 0.04), (clinic.PED, 0.15), (clinic.DRUSEN, 0.5)):
        image[masks[finding]] = grey
    image[masks[clinic.SHRM]] = 0.72 + 0.1 * texture[masks[clinic.SHRM]]
    line = np.exp(-((np.linspace(-0.06, 0.06, 64) / 0.017) ** 4))
    pigment = 0.95 * (1 - bare) * (1 - 0.5 * scan.pale)
    image[:] = np.maximum(image, pigment * shade(z - scan.rpe - 0.005, -0.06, 0.06, line))
    image[:] = np.maximum(image, 0.45 * shade(2 * below, -0.06, 0.06, line) * (scan.rpe < scan.bruch - 0.012))
    return masks


def paint_lesions(scan: Scan, image: np.ndarray, lesions: frozenset[str]) -> dict[str, np.ndarray]:
    """Cysts, foveal defect and membranes, in place; returns their masks."""
    rng, x, masks = scan.rng, scan.x, {}
    if clinic.IRF in lesions:  # round black cysts with bright walls in the nuclear layers around the fovea
        cysts, walls = Layer(scan.view), Layer(scan.view)
        at = scan.fovea + rng.uniform(-1.1, 1.1, rng.integers(7, 13))
        top, thick = np.interp(at, x, scan.top), np.interp(at, x, scan.outer - scan.top)
        middle = at + 1j * (top + thick * rng.uniform(0.32, 0.72, len(at)))
        radii = np.outer(thick * rng.uniform(0.6, 1.4, len(at)), [0.3, 0.15])
        walls.blobs(rng, middle, radii + np.array([0.03, 0.014]))
        cysts.blobs(rng, middle, radii, rough=0.05)
        blend(image[None], 0.6 * walls.coverage(), (0.5,))
        blend(image[None], cysts.coverage(), (0.03,))
        masks[clinic.IRF], scan.spots[clinic.IRF] = cysts.coverage() > 0.5, cysts.centres
    if clinic.HOLE in lesions:  # no retina down to the RPE, the edges rounded
        depth = ((scan.z - scan.top) / (scan.outer - scan.top)).clip(0, 1)
        gap = abs(x - scan.fovea) < rng.uniform(0.2, 0.28) * (1.3 - 2.0 * depth * (1 - depth))
        gap &= (scan.z > scan.top - 0.08) & (scan.z < scan.rpe - 0.012)
        image[gap] = 0.03
        masks[clinic.HOLE] = gap & (scan.z > scan.top)
        scan.spots[clinic.HOLE] = [complex(scan.fovea, np.interp(scan.fovea, x, (scan.top + scan.outer) / 2))]
    taut = np.interp(scan.fovea, x, scan.top) - 0.07 * abs(x - scan.fovea)
    smooth = gaussian_filter1d(scan.top, 0.25 * scan.view.scale[0])
    lines = {clinic.ERM: (np.arange(0.3, 5.8, 0.05), smooth - 0.03, 0.034),
             clinic.VMT: (np.arange(scan.fovea - 2.2, scan.fovea + 2.2, 0.05), np.minimum(taut, scan.top - 0.03), 0.03)}
    for finding in [f for f in lines if f in lesions]:
        at, level, width = lines[finding]
        line = Layer(scan.view)
        path = at + 1j * np.interp(at, x, level)
        line.strokes(path[None], width * np.clip(np.minimum(at - at[0], at[-1] - at) / 0.5, 0, 1)[None])
        blend(image[None], line.coverage(), (1.0,))
        masks[finding], scan.spots[finding] = line.coverage() > 0.4, path[10:-5:20]
    return masks


def draw_oct(rng, lesions: frozenset[str], *, camera: str, height: int) -> Drawing:
    """One B-scan that shows exactly `lesions`: layers, lesions, vessel shadows, speckle."""
    device, width = camera_of(rng, camera)._replace(red=1.0, green=1.0, blue=1.0), round(height * 1.5)
    view = View(width, height, (width / 6.0, height / 1.7), 0j)
    scan, image = Scan(rng, lesions, view), np.empty((height, width), np.float32)
    masks = paint_layers(scan, image, lesions) | paint_lesions(scan, image, lesions)
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
