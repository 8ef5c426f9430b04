"""The phantom's anatomy from formulas: torso, lungs, vessels, heart, bones, and how a patient stands.

Coordinates run from -1 to 1, x to the right of the image (the patient's left) and y downwards. What is painted is a
map of density, about 0 (air, black) to 1 (metal, white): how much each ray was weakened on its way through the body.
A radiograph is a sum of shadows. So what lies in front of or behind something else (ribs, vessels, devices) is *added*
to the map, and what takes the place of air (the heart, fluid) *replaces* what was there.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from medvill_pl.synthetic.fields import F, Map, grain, interpolation, pixel_grid, smooth_step, texture
from medvill_pl.synthetic.study import Draw, Side, Study

Window = tuple[tuple[slice, slice], Map, Map]
"""A part of the image, and the x and y offsets of its pixels from the part's centre."""


@dataclass(frozen=True)
class Body:
    """The build of one patient, the same in all studies but for what the projection changes.

    Lengths are in the body's coordinates, in which the image is about 2 wide; densities are in the map's unit.

    Attributes:
        chest_width: half the inner width of the chest.
        apex: y of the lungs' upper end.
        dome: y of the diaphragm's domes.
        heart_width: half the width of the heart.
        heart_height: half the height of the heart.
        mediastinum: half the width of the mediastinum.
        rib_spacing: distance from one rib to the next.
        rib_phase: where the first rib begins, as a share of the spacing, 0 to 1.
        rib_density: what a rib adds to the density.
        fat: thickness of the soft tissue, which also makes everything denser.
        vessels: how dense the vessels are.
        breasts: size of the breasts' shadows, 0 for none.

    Example:
        >>> from medvill_pl.synthetic.study import studies
        >>> body = Body.of(next(studies("train")))
        >>> 0.68 <= body.chest_width <= 0.84, body.apex < body.dome
        (True, True)
    """

    chest_width: float
    apex: float
    dome: float
    heart_width: float
    heart_height: float
    mediastinum: float
    rib_spacing: float
    rib_phase: float
    rib_density: float
    fat: float
    vessels: float
    breasts: float

    @classmethod
    def of(cls, study: Study) -> "Body":
        """Draw the build of a study's patient.

        In an AP radiograph the patient lies or half sits, breathes in less (higher domes), and the heart is further
        from the detector, so that its shadow is larger.
        """
        draw = Draw(f"body/{study.body}")
        is_ap = study.view == "AP"
        return cls(
            chest_width=draw.uniform(0.68, 0.84),
            apex=draw.uniform(-0.8, -0.7),
            dome=draw.uniform(0.34, 0.5) - 0.1 * is_ap,
            heart_width=draw.uniform(0.27, 0.34) * (1.06 if is_ap else 1.0),
            heart_height=draw.uniform(0.3, 0.36),
            mediastinum=draw.uniform(0.09, 0.135) * (1.08 if is_ap else 1.0),
            rib_spacing=draw.uniform(0.145, 0.17),
            rib_phase=draw.uniform(),
            rib_density=draw.uniform(0.09, 0.14),
            fat=draw.uniform(0.0, 0.1),
            vessels=draw.uniform(0.02, 0.06),
            breasts=max(0.0, draw.uniform(-0.1, 0.1)),
        )


class Coordinates:
    """Where each pixel of an image lies in the body of a patient who stands a little turned and off the centre.

    The coordinates move in place of the body: all that is painted later is painted upright.

    Args:
        size: side of the square image in pixels.
        draw: the random choices of this radiograph.

    Attributes:
        size: side of the image in pixels.
        x, y: each pixel's coordinates, float32, shape ``(size, size)``.
        abs_x: distance from the midline, likewise.

    Example:
        >>> coordinates = Coordinates(64, Draw("doctest"))
        >>> part, dx, dy = coordinates.window(0.0, 0.0, radius=0.1)
        >>> coordinates.x.shape, dx.shape == coordinates.x[part].shape
        ((64, 64), True)
    """

    def __init__(self, size: int, draw: Draw) -> None:
        x, y = pixel_grid(size)
        angle, scale = np.radians(draw.uniform(-8, 8)), draw.uniform(0.84, 1.1)
        dx, dy = draw.uniform(-0.125, 0.125), draw.uniform(-0.11, 0.11)
        cos, sin = F(np.cos(angle) / scale), F(np.sin(angle) / scale)
        x, y = x - F(dx), y - F(dy)
        self.size = size
        self.x, self.y = x * cos + y * sin, y * cos - x * sin
        self.abs_x = np.abs(self.x)

    def side_mask(self, side: Side) -> Map:
        """1 on the patient's left or right half, 0 on the other, float32."""
        return (self.x > 0 if side == "left" else self.x < 0).astype(np.float32)

    def window(self, x: float, y: float, radius: float) -> Window:
        """The pixels around a position in the body, and their offsets from it.

        What is small is painted in its window only, which saves most of the time of a large image.
        """
        near = (np.abs(self.x - F(x)) < radius) & (np.abs(self.y - F(y)) < radius)
        rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        if len(rows) == 0:
            part = (slice(0, 0), slice(0, 0))
        else:
            part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        return part, self.x[part] - F(x), self.y[part] - F(y)


class Phantom(Coordinates):
    """One patient in front of the detector: landmarks and the map of density, to which findings are added.

    Findings that change the anatomy itself (a large heart, a wide mediastinum, a raised diaphragm, broken ribs) are in
    it from the start; :func:`medvill_pl.synthetic.findings.paint_findings` adds the others.

    Args:
        study: the patient and what the radiograph shows.
        size: side of the square image in pixels.

    Attributes:
        study, body: what it was made of.
        draw: the random choices of this radiograph; every use moves it on, so the order of painting is fixed.
        density: the map that is painted, about 0 (air) to 1 (metal), float32, shape ``(size, size)`` as all maps.
        to_wall: distance from the inner chest wall, positive inside.
        diaphragm: y of the diaphragm in each pixel's column.
        lungs: 1 in the lungs, 0 outside.
        heart: 1 in heart and mediastinum, 0 outside.
        aerated: the lungs without most of what the heart hides: where a finding can be seen.
        streak: vessels and bronchi that run out from each hilum, about -2 to 2.
        mottle: smooth noise, about -3 to 3.
        vessels: density of the vessels.
        hilum_radius: distance from the hilum of the side.

    Example:
        >>> from medvill_pl.synthetic.study import studies
        >>> phantom = Phantom(next(studies("train")), size=64)
        >>> phantom.density.shape, phantom.density.dtype
        ((64, 64), dtype('float32'))
    """

    def __init__(self, study: Study, size: int) -> None:
        self.study, self.body = study, Body.of(study)
        self.draw = Draw(f"film/{study.id}")  # the seed's name belongs to version 1 of the corpus
        super().__init__(size, self.draw)
        self.to_wall = self._distance_to_wall()
        self.diaphragm = self._diaphragm_height()
        self.lungs = smooth_step(
            np.minimum(np.minimum(self.to_wall, self.abs_x - F(0.08)), self.diaphragm - self.y), 0.018
        )
        torso = self._torso()
        self.density = self._soft_tissue(torso)
        self._paint_vessels()
        if self.body.breasts:
            self._paint_breasts()
        self._paint_heart()
        self._paint_spine_and_trachea()
        self._paint_ribs(torso)
        self._paint_shoulders(torso)
        if study.view == "PA":
            self._paint_stomach()

    def _distance_to_wall(self) -> Map:
        """A chest that is narrow at the apex and widens downwards."""
        body = self.body
        depth = np.clip((self.y - F(body.apex)) * F(1 / (0.9 * (body.dome - body.apex))), 0, 1)
        rest = 1 - depth
        rest *= rest
        half_width: Map = F(body.chest_width) * np.sqrt(np.clip(1 - F(0.75) * rest - F(0.25) * rest * rest, 0, 1))
        return half_width - self.abs_x

    def _diaphragm_height(self) -> Map:
        """Two domes, steeper towards the wall; the liver holds the right one up, atelectasis pulls its side up."""
        dome = F(self.body.dome) - F(0.05) * smooth_step(-self.x, 0.2)
        off_centre = self.abs_x - F(0.4)
        diaphragm: Map = dome + off_centre * off_centre * np.where(off_centre > 0, F(1.6), F(0.5))
        for observation in self.study.find("Atelectasis"):
            for side in observation.sides:
                diaphragm = diaphragm - self.side_mask(side) * F(0.02 + 0.06 * observation.strength)
        return diaphragm

    # -- soft tissue -----------------------------------------------------------------------------

    def _torso(self) -> Map:
        """1 in the body, 0 in the air around it."""
        body = self.body
        shoulder = np.maximum(self.abs_x - F(0.3), 0)
        flank = F(body.chest_width + 0.12 + body.fat) + np.maximum(-F(0.3) - self.y, 0) * F(1.2) - self.abs_x
        return smooth_step(np.minimum(flank, self.y + F(1.12) - F(0.55) * shoulder), 0.05)

    def _soft_tissue(self, torso: Map) -> Map:
        """Torso, a rim where rays graze the chest wall, the denser abdomen, and lungs, which are mostly air."""
        density: Map = torso * F(0.52 + 0.3 * self.body.fat)
        density = density + torso * F(0.1) * np.exp(-F(60) * (self.to_wall + F(0.05)) ** 2)
        density += torso * smooth_step(self.y - self.diaphragm, 0.03) * F(0.16)
        return density * (1 - self.lungs) + self.lungs * F(0.2 + 0.5 * self.body.fat)

    def _paint_vessels(self) -> None:
        """Branching vessels as streaks that run out from each hilum, and a little mottle.

        The streaks are noise in polar coordinates around the hilum: many nodes around, few outwards, so each bump is
        stretched along a ray. Positive noise is vessels; findings use the negative as bronchi.
        """
        dx, dy = self.abs_x - F(0.14), self.y + F(0.02)
        radius = np.sqrt(dx * dx + dy * dy)
        angle = np.arctan2(dy, dx)
        around, outward = interpolation(400, 44), interpolation(160, 7)
        streaks = around @ grain(44 * 14, self.draw).reshape(2, 44, 7) @ outward.T
        row = ((angle * F(1 / (2 * np.pi)) + F(0.5)) * 399).astype(np.intp)
        column = np.minimum(radius * 200, 159).astype(np.intp)
        fade = np.clip(1 - radius * F(1.4), 0, 1) * np.clip(radius * 8, 0, 1)
        self.mottle = texture(self.size, 13, self.draw) + F(0.7) * texture(self.size, 29, self.draw)
        self.streak = streaks[(self.x > 0).astype(np.intp), row, column] * fade
        branches = np.maximum(self.streak, 0)
        self.vessels = np.minimum(branches * branches, 2) * F(self.body.vessels * 2.2) + self.mottle * F(
            self.body.vessels * 0.35
        )
        hilum = np.exp(-F(26) * radius * radius)
        self.density += self.lungs * (self.vessels + hilum * (F(0.16) + F(0.05) * self.mottle))
        self.hilum_radius = radius

    def _paint_breasts(self) -> None:
        """Soft shadows over the lower lungs of half of the patients."""
        dx, dy = self.abs_x - F(0.42), self.y - F(self.body.dome - 0.08)
        shadow = smooth_step(F(0.2 + 1.6 * self.body.breasts) - np.sqrt(dx * dx + dy * dy), 0.06)
        self.density += shadow * self.lungs * F(0.04 + self.body.breasts)

    def _paint_heart(self) -> None:
        """A tilted ellipse, wider to the patient's left, under a mediastinum with the aortic knob."""
        body, x, y = self.body, self.x, self.y
        grow = 0.0
        for observation in self.study.find("Cardiomegaly"):
            grow = 0.015 + 0.18 * observation.strength
        cx, cy = 0.04, body.dome - 0.62 * body.heart_height
        wide = np.where(x > cx, F(1 / (body.heart_width + grow)), F(1 / (body.heart_width * 0.66 + 0.6 * grow)))
        u = (x - F(cx)) * wide
        v = (y - F(cy) - F(0.12) * u) * F(1 / (body.heart_height + 0.35 * grow))
        ellipse = smooth_step(1 - np.sqrt(u * u + v * v), 0.07)
        widen = 0.0
        for observation in self.study.find("Enlarged Cardiomediastinum"):
            widen = 0.01 + 0.095 * observation.strength
        bulge: Map = np.exp(-F(14) * (y + F(0.34)) ** 2)
        half: Map = F(body.mediastinum) + F(0.03) * y * y + F(widen) * bulge
        knob: Map = F(0.075) * np.exp(-F(70) * (y + F(0.3)) ** 2) * (x > 0)
        middle = smooth_step(half + knob - np.abs(x - F(0.01)), 0.025) * smooth_step(self.diaphragm + F(0.1) - y, 0.1)
        self.heart = np.maximum(ellipse, middle)
        # Three quarters: a finding behind the heart is faint, but does not vanish.
        self.aerated = self.lungs * (1 - F(0.75) * self.heart)
        # Solid tissue in place of air: the silhouette hides the lung, and takes at least its own density.
        self.density = self.density * (1 - self.heart) + self.heart * np.maximum(self.density, F(0.6))

    def _paint_spine_and_trachea(self) -> None:
        """Vertebrae and discs that shine through the mediastinum, and the column of air above it."""
        spine = smooth_step(F(0.075) - self.abs_x, 0.035)
        disc = np.cos((self.y * F(2 * np.pi / 0.13)) + F(6 * self.body.rib_phase))
        self.density += spine * (F(0.035) + F(0.012) * disc) + self.heart * self.mottle * F(0.006)
        trachea = smooth_step(F(0.035) - np.abs(self.x - F(0.01)), 0.02) * smooth_step(-F(0.22) - self.y, 0.06)
        self.density -= trachea * F(0.12)

    def _paint_stomach(self) -> None:
        """The air bubble under the left dome of a patient who stands."""
        part, dx, dy = self.window(0.36 + self.draw.uniform(-0.05, 0.05), self.body.dome + 0.13, 0.16)
        bubble = smooth_step(1 - np.sqrt((dx / F(0.13)) ** 2 + (dy / F(0.07)) ** 2), 0.2)
        self.density[part] -= bubble * F(0.3)

    # -- bones -----------------------------------------------------------------------------------

    def _paint_ribs(self, torso: Map) -> None:
        """Posterior ribs as arcs, and fainter anterior ones that slope the other way.

        ``level`` counts ribs downwards along the arcs: its whole part is the rib, its fraction how far across it a
        pixel lies, which looks up the rib's profile. A fracture bends the level and cuts a gap.
        """
        body, y, a = self.body, self.y, self.abs_x
        arc = a - F(0.22)
        level = (y - F(0.55) * arc * arc - F(body.apex)) * F(1 / body.rib_spacing) + F(body.rib_phase)
        cage = (
            smooth_step(self.to_wall + F(0.05), 0.02)
            * torso
            * smooth_step(self.diaphragm + F(0.1) - y, 0.16)
            * smooth_step(a - F(0.06), 0.03)
        )
        level, gap, breaks = self._break_ribs(level)
        ribs = _rib_profile()[((level - np.floor(level)) * 63).astype(np.intp)]
        front: Map = (y + F(0.5) * a) * F(1 / (1.1 * body.rib_spacing))
        front = _rib_profile()[((front - np.floor(front)) * 63).astype(np.intp)]
        front_fade = np.clip((a - F(0.22)) * 2, 0, 0.35)
        cage *= 1 - F(0.45) * self.heart
        self.density += cage * (ribs * gap + front * front_fade) * F(body.rib_density)
        for part, dx, dy in breaks:  # callus around each break
            contrast = self.study.find("Fracture")[0].contrast
            self.density[part] += np.exp(-(dx * dx + dy * dy) * F(600)) * F(0.34 * contrast)

    def _break_ribs(self, level: Map) -> tuple[Map, Map | float, list[Window]]:
        """Break ribs: beyond each break the outer end is displaced, with a gap between the ends.

        Returns:
            The level with the displaced ends, 0 in the gaps and 1 elsewhere, and where the breaks are.
        """
        fractures = self.study.find("Fracture")
        if not fractures:
            return level, 1.0, []
        (observation,), body = fractures, self.body
        level, gap, breaks = level.copy(), np.ones_like(level), []
        sign = 1 if observation.side == "left" else -1
        first = int(self.draw.uniform(3, 6))
        centre_x = self.draw.uniform(0.42, 0.54)
        for rib in range(first, first + observation.count):
            x = centre_x + self.draw.uniform(-0.03, 0.03)
            y = body.apex + (rib + 0.5 - body.rib_phase) * body.rib_spacing + 0.55 * (x - 0.22) ** 2
            part, dx, dy = self.window(sign * x, y, 0.16)
            outward = dx * sign
            near = smooth_step(F(0.15) - np.abs(outward), 0.03) * (np.floor(level[part]) == rib)
            level[part] += near * smooth_step(outward, 0.008) * F(0.6 * observation.contrast)
            gap[part] *= 1 - near * smooth_step(F(0.016 + 0.016 * observation.strength) - np.abs(outward), 0.012)
            breaks.append((part, dx, dy))
        return level, gap, breaks

    def _paint_shoulders(self, torso: Map) -> None:
        """Clavicles, and shoulder blades: over the lungs in AP, where the arms hang, and outside of them in PA."""
        y, a = self.y, self.abs_x
        is_ap = self.study.view == "AP"
        slope, top = (0.06, self.body.apex + 0.02) if is_ap else (0.3, self.body.apex + 0.1)
        line = y - F(top) + F(slope) * (a - F(0.1))
        extent = smooth_step(a - F(0.07), 0.02), smooth_step(F(0.72) - a, 0.04)
        self.density += smooth_step(F(0.028) - np.abs(line), 0.014) * extent[0] * extent[1] * F(0.12)
        edge = a - F(0.56 if is_ap else 0.8) - F(0.25) * (y + F(0.45))
        scapula = smooth_step(F(0.02) - np.abs(edge), 0.02) + F(0.4) * smooth_step(edge, 0.03)
        self.density += scapula * smooth_step(F(0.32) - np.abs(y + F(0.42)), 0.1) * torso * F(0.09)


@cache
def _rib_profile() -> Map:
    """Density across one rib and the space below it: 64 steps, brighter at the cortex.

    A rib is a tube: rays that graze its wall pass through more bone than those through its middle.
    """
    u = np.abs((np.arange(64, dtype=np.float32) + 0.5) / 64 - 0.5)
    inside = smooth_step(F(0.26) - u, 0.07)
    cortex = np.exp(-(((u - F(0.22)) / F(0.05)) ** 2))
    profile: Map = F(0.7) * inside + F(0.5) * cortex
    return profile
