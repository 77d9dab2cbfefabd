"""En-face drawings: color fundus photographs (CFP, 13 mm across) and ultra-widefield images (UWF, 30 mm). Lesions have
the upper end of their real size times LESION_SIZE (a microaneurysm 1.6 times that), to be visible at 96 pixels."""

from copy import copy

import numpy as np

from fundus_lib.world import clinic
from fundus_lib.world.eye import Eye, paint_disc, paint_field, paint_retina, paint_vessels
from fundus_lib.world.scene import CIRCLE, Drawing, Layer, blend, camera_of, cloud

LESION_SIZE = {"CFP": 1.5, "UWF": 2.8}  # against life
RETINA = {"CFP": (0.80, 0.41, 0.19), "UWF": (0.62, 0.42, 0.16)}
LOOKS = clinic.table("looks")
SPIKE = np.linspace(0.075, 0.03, 12)  # width of a bone spicule along its arm


def places(eye: Eye, finding: str, size: float) -> np.ndarray:
    """Where the spots of a lesion lie."""
    rng = eye.rng
    if finding in LOOKS["anywhere"]:
        count, inner, at, far = LOOKS["anywhere"][finding]
        far = complex(far) if far else 0.85 * eye.axes
        return eye.scatter(rng.integers(*count), at or eye.middle, far, lambda p: abs(p) > inner)
    if finding == clinic.FOUR:  # more than 20 in each quadrant of the field
        halves = [eye.middle + complex(a * eye.axes.real, b * eye.axes.imag) / 2 for a in (-1, 1) for b in (-1, 1)]
        return np.concatenate([eye.scatter(rng.integers(21, 25), half, eye.axes / 2) for half in halves])
    if finding == clinic.SECTOR:  # along one temporal vein, widening outwards, never across the horizontal raphe
        course, at = eye.arcade(up := -1 if rng.random() < 0.6 else 1), rng.integers(5, 38, 150)
        points = course[at] + rng.normal(0, 0.25 + 0.0046 * eye.axes.real * at, (2, 150)).T @ [1, 1j]
        return points[eye.visible(points) & (up * points.imag > 0.6)][:45]
    if finding == clinic.DRUSEN:  # macula
        return eye.scatter(rng.integers(35, 60), 0, 1.3 * size * (1 + 1j), lambda p: abs(p) < 1.3 * size)
    if finding == clinic.LASER:  # a grid that spares the macula
        grid = np.arange(-15, 15, size) + 1j * np.arange(-15, 15, size)[:, None]
        grid[::2] += 0.5 * size
        points = grid.ravel() + rng.normal(0, 0.09 * size, (grid.size, 2)) @ [1, 1j]
        return points[eye.visible(points, 0.95) & (abs(points) > 3.3) & (abs(points - eye.disc) > 1.7 * eye.size)]
    if finding == clinic.COTTON:  # along the arcades
        course = np.concatenate([eye.arcade(up)[6:32] for up in (-1, 1)])
        return rng.choice(course[eye.visible(course, 0.85)], rng.integers(4, 8), replace=False)
    clusters = []  # hard exudates: rings and heaps around leaking points of the macula
    for centre in eye.scatter(rng.integers(2, 5), 0.2, 3.4 + 3j):
        count, ring = rng.integers(10, 20), rng.random() < 0.5
        far = size * (rng.normal(0.5, 0.06, count) if ring else abs(rng.normal(0, 0.34, count)))
        clusters.append(centre + far * np.exp(1j * rng.uniform(0, 2 * np.pi, count)))
    points = np.concatenate(clusters)
    return points[eye.visible(points) & (abs(points) > 0.3)]


class Canvas:
    """The picture of one eye while it is painted, and the truth about it: masks, and centres in mm."""

    def __init__(self, eye: Eye, image: np.ndarray, lesions, difficulty: float):
        self.eye, self.image, self.lesions, self.masks, self.centres = copy(eye), image, lesions, {}, {}
        self.rng = self.eye.rng = eye.rng.spawn(1)[0]  # so that the eye is the same one without the lesions
        self.strength, self.size = 1 - 0.5 * difficulty, LESION_SIZE[eye.modality] * (1 - 0.4 * difficulty)
        self.large = self.size / LESION_SIZE["CFP"]  # factor of what is large in life already

    def paint(self, coverage: np.ndarray, colour, opacity: float = 0.93) -> None:
        """Blend `colour` in, the weaker the more difficult."""
        blend(self.image, np.asarray(opacity * self.strength * coverage, np.float32), colour)

    def note(self, finding: str, coverage: np.ndarray, *centres: complex) -> None:
        """Remember where a finding lies."""
        self.masks[finding] = coverage > 0.4
        self.centres[finding] = [c for c in centres if self.eye.visible(c, 1.0)]

    def oval(self, centre: complex, radii: complex, sharp: float, edge=0.0) -> np.ndarray:
        """Coverage of an ellipse whose border is 1/`sharp` of its radius wide and moved outwards by `edge`."""
        return (sharp * (1 + edge - self.eye.far(centre, radii))).clip(0, 1)

    def wander(self, start, angle, length, width, bend: float = 0.0, shake: float = 0.3) -> np.ndarray:
        """Coverage of lines (n,) that leave `start` at `angle`, `length` mm long, `width` mm (a number or 12) wide."""
        layer, turn = Layer(self.eye.view), np.add.outer(np.zeros(len(start)) + angle, bend * np.linspace(0, 1, 12))
        turn += self.rng.normal(0, shake, turn.shape).cumsum(1)
        paths = start[:, None] + (np.exp(1j * turn).T * length).T.cumsum(1) / 12
        layer.strokes(paths, np.broadcast_to(width, paths.shape))
        return layer.coverage()

    def spots(self, finding: str) -> None:
        """Many of a kind."""
        colour, radius, across, rough, soft, flames = LOOKS["spots"][finding]
        points = places(self.eye, finding, LESION_SIZE[self.eye.modality])
        radii = self.rng.uniform(*radius, (len(points), 1)) * np.array([self.size, self.size * across])
        radii[self.rng.random(len(points)) < flames] *= [1.9, 0.45]  # along the nerve fibres
        for grow, tint in [*LOOKS["rims"].get(finding, []), (1, colour)]:
            layer = Layer(self.eye.view)
            layer.blobs(self.rng, points, radii * grow, np.angle(points - self.eye.disc), rough, soft)
            self.paint(coverage := layer.coverage(), tint)
        self.note(finding, coverage, *points)

    def tessellation(self, finding: str) -> None:
        """The vessels of the choroid shine through: paler bands, dark islands between them."""
        start = self.eye.scatter(95, self.eye.middle, self.eye.axes)
        bands = self.wander(start, np.angle(start - self.eye.disc), 5, 0.27 * np.sin(np.linspace(0.25, 3, 12)), 0, 0.42)
        bands *= 1 - 0.8 * np.exp(-(self.eye.far(0, 1 + 1j) ** 2))
        self.paint(1 - bands, (0.45, 0.22, 0.13), 0.5)
        self.paint(bands, (0.97, 0.60, 0.34), 0.75)
        self.note(finding, bands, *start)

    def whitening(self, finding: str) -> None:
        """Milky retina: the posterior pole around a fovea that stays red, or one temporal sector along its artery."""
        up, edge = self.rng.choice([-1, 1]), 0.05 * cloud(self.rng, self.eye.view, 1.2)
        if clinic.CHERRY in self.lesions:
            coverage = self.oval(0.8, 4.6 + 3.9j, 2, 0.15 + edge) * (1 - self.oval(0, self.large * (0.8 + 0.8j), 3))
        else:  # never across the horizontal raphe
            coverage = self.oval(-0.4 + 2.3j * up, 4.4 + 2.3j, 3, 0.1 + edge) * (2.5 * up * self.eye.y).clip(0, 1)
        self.paint(coverage, (0.97, 0.91, 0.78), 0.72)
        self.note(finding, coverage, 2.3j * up)

    def foveal_spot(self, finding: str) -> None:
        """A cherry-red spot, or a hole: darker, smaller, with a grey cuff."""
        hole = finding == clinic.HOLE
        radius, colour = (0.46, (0.36, 0.03, 0.02)) if hole else (0.6, (0.80, 0.10, 0.05))
        self.paint(self.oval(0, self.large * (0.9 + 0.9j), 10), (0.74, 0.68, 0.60), 0.7 * hole)
        self.paint(coverage := self.oval(0, self.large * radius * (1 + 1j), 5, 0.1), colour)
        self.note(finding, coverage, 0)

    def patch(self, finding: str) -> None:
        """Blood under the macula; or sclera and choroid in view, at the macula, beside or below the disc."""
        large, rng, layer, rim = self.large, self.rng, Layer(self.eye.view), Layer(self.eye.view)
        radii, rough, colour, choroid = LOOKS["patches"][finding]
        centre = {clinic.PERIPAPILLARY: self.eye.disc - 0.75 * large, clinic.COLOBOMA: self.eye.disc + 2.9j - 0.4,
                  clinic.GEOGRAPHIC: complex(*rng.normal(0, 0.2, 2)),
                  clinic.SUBRETINAL_BLOOD: 1.1 * large * np.exp(1j * rng.uniform(0, 2 * np.pi))}[finding]
        radii = large * rng.uniform(0.9, 1.1) * np.array(radii)
        rim.blobs(rng, centre, radii * 1.06, rough=rough)
        layer.blobs(rng, centre, radii, rough=rough)
        self.paint(rim.coverage(), (0.40, 0.19, 0.10), 0.8)
        self.paint(coverage := layer.coverage(), colour)
        start = centre + max(radii) * rng.uniform(-1, 1, (16, 2)) @ [1, 1j]
        self.paint(self.wander(start, rng.uniform(0, 6, 16), 1.8, 0.16) * coverage, choroid, 0.75)
        if finding == clinic.PERIPAPILLARY:  # the rest lies under the disc
            coverage, centre = coverage * (self.eye.far(self.eye.disc, 0.89 + 0.89j) > 1), centre - 0.85 * large
        self.note(finding, coverage, centre)

    def fluid(self, finding: str) -> None:
        """A blister of clear fluid under the macula with a sharp rim and a highlight."""
        centre, radius = complex(*self.rng.normal(0, 0.25, 2)), self.large * self.rng.uniform(1.8, 2.2)
        far = self.eye.far(centre, radius * (1 + 1j))
        self.paint((far < 1) * (0.5 + 0.5 * far), (0.95, 0.74, 0.50), 0.55)
        self.paint(np.exp(-(((far - 1) / 0.045) ** 2)), (0.38, 0.13, 0.06), 0.75)
        light = (centre.real - self.eye.x + centre.imag - self.eye.y).clip(0) / (1.4 * radius)
        self.paint(np.exp(-(((far - 0.88) / 0.06) ** 2)) * light, (1.0, 0.98, 0.88))
        self.note(finding, far < 1, centre)

    def detachment(self, finding: str) -> None:
        """A temporal quadrant or more of grey retina that billows in folds."""
        eye, rng = self.eye, self.rng
        to = complex(np.exp(1j * (np.pi + rng.choice([-1, 1]) * rng.uniform(0.4, 1.4))))
        dx, dy = (eye.x - eye.middle.real) / eye.axes.real, (eye.y - eye.middle.imag) / eye.axes.imag
        along, across = dx * to.real + dy * to.imag, dy * to.real - dx * to.imag
        waves = cloud(rng, eye.view, 0.3 * eye.axes.imag)
        coverage = (14 * (along - 0.26 + 0.05 * waves)).clip(0, 1)
        folds = np.sin(11 * along + 1.6 * np.sin(4 * across + rng.uniform(0, 6)) + 1.2 * waves)
        for part, colour, opacity in ((1, (0.66, 0.62, 0.56), 0.88), (folds.clip(0, 1), (0.93, 0.92, 0.88), 0.8),
                                      ((-folds).clip(0, 1), (0.38, 0.34, 0.32), 0.5)):
            self.paint(coverage * part, colour, opacity)
        self.note(finding, coverage, eye.middle + 0.6 * complex(to.real * eye.axes.real, to.imag * eye.axes.imag))

    def myelination(self, finding: str) -> None:
        """A feathery white fan of fibres at the upper or lower margin of the disc, over the vessels."""
        up, angle = 1j * self.rng.choice([-1, 1]), self.rng.normal(0, 0.38, 70)
        start = self.eye.disc + 0.8 * self.eye.size * up * np.exp(1j * angle)
        length = self.large * self.rng.uniform(1.4, 3.2, 70) * np.exp(-(angle**2))
        turn, width = np.angle(up) + 1.4 * angle, np.linspace(0.24, 0.03, 12)
        self.paint(fan := self.wander(start, turn, length, width, 0.35 * up.imag, 0.05), (0.99, 0.99, 0.96))
        self.note(finding, fan, start.mean() + 0.7 * up)

    def membrane(self, finding: str) -> None:
        """A glinting sheen over the macula, and the wrinkles of the retina under it."""
        centre, radius, rng = complex(*self.rng.normal(0, 0.4, 2)), 2.1 * self.large, self.rng
        area = self.oval(centre, radius * (1 + 0.85j), 3)
        start = centre + radius * (rng.uniform(-0.9, 0.5, (26, 2)) @ [1, 1j])
        lines = self.wander(start, rng.uniform(-0.6, 0.6), 1.7 * self.large, 0.075 * self.large, shake=0.12)
        self.paint(area * (0.6 + 0.5 * cloud(rng, self.eye.view, 0.4)).clip(0.1, 1), (0.88, 0.92, 0.92), 0.6)
        self.paint(area * lines, (1.0, 1.0, 0.98), 0.85)
        self.note(finding, area, centre)

    def boat(self, finding: str) -> None:
        """Blood before the retina: its level is flat, it hides the vessels."""
        layer, centre = Layer(self.eye.view), complex(self.rng.uniform(-2.2, 1.0), self.rng.choice([-3.2, 2.2]))
        layer.polygons(centre + self.large * (CIRCLE.real * 1.9 + CIRCLE.imag.clip(0) * 1.25j)[None])
        self.paint(coverage := layer.coverage(), (0.52, 0.01, 0.02), 0.97)
        self.paint(coverage * ((self.eye.y - centre.imag) / (1.6 * self.large)).clip(0, 1), (0.22, 0.0, 0.01), 0.9)
        self.note(finding, coverage, centre + 0.5j * self.large)

    def veil(self, finding: str) -> None:
        """Before everything: red-brown blood that sinks down, or a pale haze (the camera blurs the picture besides)."""
        eye, rng = self.eye, self.rng
        if finding == clinic.VITREOUS:
            drop = (eye.y - eye.middle.imag) / eye.axes.imag + 0.25 * cloud(rng, eye.view, 0.28 * eye.axes.imag)
            self.paint(coverage := (1.3 * (drop + rng.uniform(0.05, 0.2))).clip(0.06, 1), (0.40, 0.10, 0.07), 0.9)
        else:
            self.paint(coverage := 0.85 + 0.08 * cloud(rng, eye.view, 5.0), (0.80, 0.68, 0.56), 0.62)
        self.note(finding, coverage, eye.middle + 0.6j * eye.half_height)

    def walks(self, finding: str) -> None:
        """Wandering lines: one lacy net of new vessels on the disc or an arcade, or black spicules."""
        eye, rng, size = self.eye, self.rng, self.size
        if finding == clinic.VESSELS:
            course = eye.arcade(rng.choice([-1, 1]))[12:26]
            centres = np.array([eye.disc if rng.random() < 0.5 else rng.choice(course[eye.visible(course, 0.8)])])
            count, spread, reach, bend, width, colour = 40, 0.26, (0.66, 1.08), 2.6, 0.04, (0.74, 0.02, 0.10)
        else:  # mid-periphery
            centres = eye.scatter(rng.integers(32, 46), eye.middle, eye.axes, lambda p: eye.visible(p, inner=0.58))
            count, spread, reach, bend, width, colour = 6, 0.04, (0.05, 0.5), 0.4, SPIKE, (0.07, 0.05, 0.05)
        n, bend = len(centres) * count, rng.choice([-bend, bend])
        start = np.repeat(centres, count) + rng.normal(0, spread * size, (n, 2)) @ [1, 1j]
        lines = self.wander(start, rng.uniform(0, 2 * np.pi, n), rng.uniform(*reach, n) * size, width * size, bend)
        self.paint(lines, colour)
        self.note(finding, lines, *centres)


# How the findings are painted, from back to front: beneath the vessels, and above them.
BENEATH = {clinic.TESSELLATED: Canvas.tessellation, clinic.WHITENING: Canvas.whitening} | {
    **dict.fromkeys(LOOKS["patches"], Canvas.patch), clinic.PATCHY: Canvas.spots, clinic.SRF: Canvas.fluid,
    clinic.DRUSEN: Canvas.spots, clinic.DETACHMENT: Canvas.detachment, clinic.LASER: Canvas.spots}
ABOVE = {clinic.CHERRY: Canvas.foveal_spot, clinic.SPICULES: Canvas.walks, clinic.MYELINATED: Canvas.myelination} | {
    f: Canvas.spots for f in LOOKS["spots"] if f not in (*BENEATH, clinic.ASTEROID)} | {
    clinic.ERM: Canvas.membrane, clinic.HOLE: Canvas.foveal_spot, clinic.VESSELS: Canvas.walks,
    clinic.PRERETINAL: Canvas.boat, clinic.VITREOUS: Canvas.veil, clinic.HAZE: Canvas.veil,
    clinic.ASTEROID: Canvas.spots}


def draw_fundus(rng, modality: str, lesions, *, camera: str, height: int, difficulty: float = 0.0) -> Drawing:
    """One image that shows exactly `lesions`; difficulty (0..1) takes up to half their contrast, 0.4 of their size."""
    device = camera_of(rng, camera)
    device = device._replace(blur=device.blur + 9 * (clinic.HAZE in lesions))
    eye = Eye(rng, modality, device.wide > 0.5, height)
    image = np.empty((3, height, eye.view.width), np.float32)
    image[:] = (np.array(RETINA[modality]) * rng.uniform(0.9, 1.1) * rng.normal(1, 0.03, 3))[:, None, None]
    paint_retina(eye, image)
    canvas = Canvas(eye, image, lesions, difficulty)
    for finding in [f for f in BENEATH if f in lesions]:
        BENEATH[finding](canvas, finding)
    anatomy = clinic.CUP, clinic.PALLOR, clinic.EDEMA, clinic.TORTUOUS
    *how, tortuous = (canvas.strength * (finding in lesions) for finding in anatomy)
    disc, cup = paint_disc(eye, image, *how)
    veins = paint_vessels(eye, image, clinic.SPICULES in lesions, tortuous)
    for finding in lesions & set(anatomy[:3]):
        canvas.note(finding, cup if finding == clinic.CUP else disc, eye.disc)
    if tortuous:
        canvas.note(clinic.TORTUOUS, veins.coverage(), *veins.centres)
    patterns = lesions & {clinic.FOUR, clinic.SECTOR}  # the pattern is the hemorrhage
    for finding in [f for f in ABOVE if f in lesions and not (f == clinic.BLOOD and patterns)]:
        ABOVE[finding](canvas, finding)
    if patterns:
        canvas.masks[clinic.BLOOD] = np.any([canvas.masks[f] for f in patterns], axis=0)
        canvas.centres[clinic.BLOOD] = [p for f in patterns for p in canvas.centres[f]]
    inside = paint_field(eye, image, device)
    return eye.deliver(device, image, inside, canvas.masks, canvas.centres, disc & inside)
