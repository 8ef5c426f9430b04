"""Phantom frontal chest radiographs: anatomy from formulas, findings drawn where the report says.

Coordinates run from -1 to 1, x to the right of the picture (the patient's left) and y downwards.
A film is first a map of density, about 0 (air, black) to 1 (metal, white).
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvill_pl.synthetic.study import Draw, Observation, Study

Map = NDArray[np.floating[Any]]

_ZONE_Y = {"upper": -0.42, "mid": -0.08, "lower": 0.24}
_F = np.float32


def _step(distance: Map, width: float) -> Map:
    """Smooth step from 0 to 1 where ``distance`` passes from ``-width`` to ``width``."""
    t: Map = np.clip(distance * _F(0.5 / width) + _F(0.5), 0, 1)
    smooth: Map = t * t * (3 - 2 * t)
    return smooth


@cache
def _grid(size: int) -> tuple[Map, Map]:
    axis = (np.arange(size, dtype=np.float32) + 0.5) * _F(2 / size) - 1
    return np.meshgrid(axis, axis, indexing="xy")


@cache
def _noise_bank() -> Map:
    """White noise to cut films' grain from; the legacy generator's stream is frozen by NumPy."""
    return np.random.RandomState(1).standard_normal(1 << 21).astype(np.float32)


@cache
def _interpolation(size: int, nodes: int) -> Map:
    """Matrix that interpolates ``nodes`` values smoothly to ``size`` pixels."""
    place = (np.arange(size) + 0.5) / size * (nodes - 1)
    left = np.minimum(place.astype(int), nodes - 2)
    t = place - left
    t = t * t * (3 - 2 * t)
    matrix = np.zeros((size, nodes), dtype=np.float32)
    matrix[np.arange(size), left] = 1 - t
    matrix[np.arange(size), left + 1] = t
    return matrix


def _grain(count: int, draw: Draw) -> Map:
    """``count`` normal numbers from the bank."""
    bank = _noise_bank()
    if count > len(bank):
        return np.resize(bank, count)
    start = int(draw.uniform(0, len(bank) - count))
    return bank[start : start + count]


def _texture(size: int, nodes: int, draw: Draw) -> Map:
    """Smooth noise with ``nodes`` bumps a side."""
    weights = _interpolation(size, nodes)
    texture: Map = weights @ _grain(nodes * nodes, draw).reshape(nodes, nodes) @ weights.T
    return texture


@dataclass(frozen=True)
class _Body:
    """The anatomy of one patient, in the film's coordinates."""

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
    def of(cls, study: Study) -> "_Body":
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


class _Film:
    """A film in the making: coordinates of the turned and shifted patient, masks and density."""

    def __init__(self, study: Study, size: int) -> None:
        self.size, self.study, self.body = size, study, _Body.of(study)
        self.draw = Draw(f"film/{study.id}")
        self.x, self.y = self._pose()
        self.abs_x = np.abs(self.x)
        self.pixel = 2 / size
        self.heart: Map = np.zeros((), dtype=np.float32)

    def _pose(self) -> tuple[Map, Map]:
        """Turn, scale and shift the grid, as no two patients stand alike."""
        draw, (x, y) = self.draw, _grid(self.size)
        angle, scale = np.radians(draw.uniform(-8, 8)), draw.uniform(0.84, 1.1)
        dx, dy = draw.uniform(-0.125, 0.125), draw.uniform(-0.11, 0.11)
        cos, sin = _F(np.cos(angle) / scale), _F(np.sin(angle) / scale)
        x, y = x - _F(dx), y - _F(dy)
        return x * cos + y * sin, y * cos - x * sin

    def on_side(self, side: str) -> Map:
        """1 on the patient's left or right half, 0 on the other."""
        return (self.x > 0 if side == "left" else self.x < 0).astype(np.float32)

    def window(self, x: float, y: float, radius: float) -> tuple[tuple[slice, slice], Map, Map]:
        """The pixels around a place of the body, and their offsets from it."""
        near = (np.abs(self.x - _F(x)) < radius) & (np.abs(self.y - _F(y)) < radius)
        rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        if len(rows) == 0:
            part = (slice(0, 0), slice(0, 0))
        else:
            part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        return part, self.x[part] - _F(x), self.y[part] - _F(y)

    # -- anatomy ---------------------------------------------------------------------------------

    def paint_anatomy(self) -> None:
        """Torso, lungs, mediastinum, ribs, clavicles, spine and abdomen."""
        body, x, y, a = self.body, self.x, self.y, self.abs_x
        depth = np.clip((y - _F(body.apex)) * _F(1 / (0.9 * (body.dome - body.apex))), 0, 1)
        rest = 1 - depth
        rest *= rest
        half_width = _F(body.chest_width) * np.sqrt(np.clip(1 - _F(0.75) * rest - _F(0.25) * rest * rest, 0, 1))
        self.to_wall = half_width - a  # distance from the inner chest wall, positive inside
        dome = _F(body.dome) - _F(0.05) * _step(-x, 0.2)
        off_centre = a - _F(0.4)
        self.diaphragm = dome + off_centre * off_centre * np.where(off_centre > 0, _F(1.6), _F(0.5))
        self.diaphragm = self._raise_diaphragm(self.diaphragm)
        above = self.diaphragm - y
        inside = np.minimum(np.minimum(self.to_wall, a - _F(0.08)), above)
        self.lungs = _step(inside, 0.018)

        shoulder = np.maximum(a - _F(0.3), 0)
        flank = _F(body.chest_width + 0.12 + body.fat) + np.maximum(-_F(0.3) - y, 0) * _F(1.2) - a
        torso = _step(np.minimum(flank, y + _F(1.12) - _F(0.55) * shoulder), 0.05)
        density = torso * _F(0.52 + 0.3 * body.fat) + torso * _F(0.1) * np.exp(-_F(60) * (self.to_wall + _F(0.05)) ** 2)
        density += torso * _step(-above, 0.03) * _F(0.16)
        self.density = density * (1 - self.lungs) + self.lungs * _F(0.2 + 0.5 * body.fat)

        self._paint_vessels()
        if body.breasts:
            self._paint_breasts()
        self._paint_heart()
        self._paint_bones(torso)
        if self.study.view == "PA":
            self._paint_stomach()

    def _raise_diaphragm(self, diaphragm: Map) -> Map:
        """Atelectasis pulls the diaphragm up on its side."""
        for observation in self.study.find("Atelectasis"):
            for side in observation.sides:
                diaphragm = diaphragm - self.on_side(side) * _F(0.02 + 0.06 * observation.strength)
        return diaphragm

    def _paint_vessels(self) -> None:
        """Branching vessels as streaks that run out from each hilum, and a little mottle."""
        draw, size = self.draw, self.size
        dx, dy = self.abs_x - _F(0.14), self.y + _F(0.02)
        radius = np.sqrt(dx * dx + dy * dy)
        angle = np.arctan2(dy, dx)
        around, outward = _interpolation(400, 44), _interpolation(160, 7)
        streaks = around @ _grain(44 * 14, draw).reshape(2, 44, 7) @ outward.T
        row = ((angle * _F(1 / (2 * np.pi)) + _F(0.5)) * 399).astype(np.intp)
        column = np.minimum(radius * 200, 159).astype(np.intp)
        fade = np.clip(1 - radius * _F(1.4), 0, 1) * np.clip(radius * 8, 0, 1)
        mottle = _texture(size, 13, draw) + _F(0.7) * _texture(size, 29, draw)
        self.streak = streaks[(self.x > 0).astype(np.intp), row, column] * fade
        self.mottle = mottle
        branches = np.maximum(self.streak, 0)
        self.vessels = np.minimum(branches * branches, 2) * _F(self.body.vessels * 2.2) + mottle * _F(
            self.body.vessels * 0.35
        )
        hilum = np.exp(-_F(26) * radius * radius)
        self.density += self.lungs * (self.vessels + hilum * (_F(0.16) + _F(0.05) * mottle))
        self.hilum_radius = radius

    def _paint_breasts(self) -> None:
        """Soft shadows over the lower lungs of half of the patients."""
        dx, dy = self.abs_x - _F(0.42), self.y - _F(self.body.dome - 0.08)
        shadow = _step(_F(0.2 + 1.6 * self.body.breasts) - np.sqrt(dx * dx + dy * dy), 0.06)
        self.density += shadow * self.lungs * _F(0.04 + self.body.breasts)

    def _paint_heart(self) -> None:
        body, x, y = self.body, self.x, self.y
        grow = 0.0
        for observation in self.study.find("Cardiomegaly"):
            grow = 0.015 + 0.18 * observation.strength
        cx, cy = 0.04, body.dome - 0.62 * body.heart_height
        wide = np.where(x > cx, _F(1 / (body.heart_width + grow)), _F(1 / (body.heart_width * 0.66 + 0.6 * grow)))
        u = (x - _F(cx)) * wide
        v = (y - _F(cy) - _F(0.12) * u) * _F(1 / (body.heart_height + 0.35 * grow))
        heart: Map = _step(1 - np.sqrt(u * u + v * v), 0.07)
        widen = 0.0
        for observation in self.study.find("Enlarged Cardiomediastinum"):
            widen = 0.01 + 0.095 * observation.strength
        bulge: Map = np.exp(-_F(14) * (y + _F(0.34)) ** 2)
        half: Map = _F(body.mediastinum) + _F(0.03) * y * y + _F(widen) * bulge
        knob: Map = _F(0.075) * np.exp(-_F(70) * (y + _F(0.3)) ** 2) * (x > 0)
        middle = _step(half + knob - np.abs(x - _F(0.01)), 0.025) * _step(self.diaphragm + _F(0.1) - y, 0.1)
        solid = np.maximum(heart, middle)
        self.heart = solid
        self.aerated = self.lungs * (1 - _F(0.75) * solid)
        self.density = self.density * (1 - solid) + solid * np.maximum(self.density, _F(0.6))
        spine = _step(_F(0.075) - self.abs_x, 0.035)
        disc = np.cos((y * _F(2 * np.pi / 0.13)) + _F(6 * body.rib_phase))
        self.density += spine * (_F(0.035) + _F(0.012) * disc) + solid * self.mottle * _F(0.006)
        trachea = _step(_F(0.035) - np.abs(x - _F(0.01)), 0.02) * _step(-_F(0.22) - y, 0.06)
        self.density -= trachea * _F(0.12)

    def _paint_bones(self, torso: Map) -> None:
        body, y, a = self.body, self.y, self.abs_x
        arc = a - _F(0.22)
        level = (y - _F(0.55) * arc * arc - _F(body.apex)) * _F(1 / body.rib_spacing) + _F(body.rib_phase)
        cage = (
            _step(self.to_wall + _F(0.05), 0.02)
            * torso
            * _step(self.diaphragm + _F(0.1) - y, 0.16)
            * _step(a - _F(0.06), 0.03)
        )
        gap = self._paint_fractures(level)
        ribs = _rib_profile()[((level - np.floor(level)) * 63).astype(np.intp)]
        front: Map = (y + _F(0.5) * a) * _F(1 / (1.1 * body.rib_spacing))
        front = _rib_profile()[((front - np.floor(front)) * 63).astype(np.intp)]
        front_fade = np.clip((a - _F(0.22)) * 2, 0, 0.35)
        cage *= 1 - _F(0.45) * self.heart
        self.density += cage * (ribs * gap + front * front_fade) * _F(body.rib_density)
        for at, dx, dy in self._callus:
            self.density[at] += np.exp(-(dx * dx + dy * dy) * _F(600)) * _F(
                0.34 * self.study.find("Fracture")[0].contrast
            )
        is_ap = self.study.view == "AP"
        slope, top = (0.06, body.apex + 0.02) if is_ap else (0.3, body.apex + 0.1)
        line = y - _F(top) + _F(slope) * (a - _F(0.1))
        clavicle = _step(_F(0.028) - np.abs(line), 0.014) * _step(a - _F(0.07), 0.02) * _step(_F(0.72) - a, 0.04)
        self.density += clavicle * _F(0.12)
        edge = a - _F(0.56 if is_ap else 0.8) - _F(0.25) * (y + _F(0.45))
        scapula = _step(_F(0.02) - np.abs(edge), 0.02) + _F(0.4) * _step(edge, 0.03)
        self.density += scapula * _step(_F(0.32) - np.abs(y + _F(0.42)), 0.1) * torso * _F(0.09)

    def _paint_fractures(self, level: Map) -> Map | float:
        """Break ribs: the outer end is displaced, with a gap and, later, callus around it."""
        self._callus: list[tuple[tuple[slice, slice], Map, Map]] = []
        breaks = self.study.find("Fracture")
        if not breaks:
            return 1.0
        (observation,), body = breaks, self.body
        gap = np.ones_like(level)
        sign = 1 if observation.side == "left" else -1
        first = int(self.draw.uniform(3, 6))
        at = self.draw.uniform(0.42, 0.54)
        for number in range(observation.count):
            rib, place = first + number, at + self.draw.uniform(-0.03, 0.03)
            centre = body.apex + (rib + 0.5 - body.rib_phase) * body.rib_spacing + 0.55 * (place - 0.22) ** 2
            part, dx, dy = self.window(sign * place, centre, 0.16)
            outward = dx * sign
            near = _step(_F(0.15) - np.abs(outward), 0.03) * (np.floor(level[part]) == rib)
            shift = _F(0.6 * observation.contrast)
            level[part] += near * _step(outward, 0.008) * shift
            gap[part] *= 1 - near * _step(_F(0.016 + 0.016 * observation.strength) - np.abs(outward), 0.012)
            self._callus.append((part, dx, dy))
        return gap

    def _paint_stomach(self) -> None:
        part, dx, dy = self.window(0.36 + self.draw.uniform(-0.05, 0.05), self.body.dome + 0.13, 0.16)
        bubble = _step(1 - np.sqrt((dx / _F(0.13)) ** 2 + (dy / _F(0.07)) ** 2), 0.2)
        self.density[part] -= bubble * _F(0.3)

    # -- findings --------------------------------------------------------------------------------

    def paint_findings(self) -> None:
        """Draw every observation that is not part of the anatomy."""
        painters = {
            "Edema": self._paint_edema,
            "Lung Opacity": self._paint_opacity,
            "Consolidation": self._paint_consolidation,
            "Pneumonia": self._paint_pneumonia,
            "Lung Lesion": self._paint_lesions,
            "Atelectasis": self._paint_atelectasis,
            "Pneumothorax": self._paint_pneumothorax,
            "Pleural Effusion": self._paint_effusion,
            "Pleural Other": self._paint_thickening,
            "Support Devices": self._paint_device,
        }
        for observation in self.study.observations:
            if observation.finding in painters:
                painters[observation.finding](observation)

    def _spot(self, observation: Observation) -> tuple[float, float]:
        """A place in the stated zone of the stated lung."""
        sign = 1 if observation.side == "left" else -1
        x = sign * self.draw.uniform(0.3, 0.5)
        y = _ZONE_Y[observation.zone or "mid"] + self.draw.uniform(-0.07, 0.07)
        return x, min(y, self.body.dome - 0.13)

    def _paint_edema(self, observation: Observation) -> None:
        """Bat-wing haze around the hila, blurred vessels and septal lines at the periphery."""
        s = observation.strength
        wing = np.exp(-_F(6.5) * self.hilum_radius**2)
        septal = np.cos(self.y * _F(2 * np.pi / 0.045)) * _step(_F(0.13) - np.abs(self.to_wall - _F(0.1)), 0.04)
        septal *= _step(self.y - _F(0.0), 0.1)
        haze = wing * _F(0.01 + 0.2 * s) * (1 + _F(0.35) * self.mottle) + np.abs(self.streak) * _F(0.01 + 0.07 * s)
        self.density += self.aerated * (haze + septal * _F(0.01 + 0.035 * s))

    def _paint_opacity(self, observation: Observation) -> None:
        """One hazy, ill-defined patch."""
        x, y = self._spot(observation)
        radius = self.draw.uniform(0.13, 0.19)
        part, dx, dy = self.window(x, y, 2.2 * radius)
        patch = np.exp(-(dx * dx + dy * dy) * _F(1.2 / radius**2))
        self.density[part] += self.aerated[part] * patch * _F(0.4 * observation.contrast)

    def _paint_consolidation(self, observation: Observation) -> None:
        """A dense lobe with a straight fissure and air bronchograms."""
        x, y = self._spot(observation)
        width, height = self.draw.uniform(0.2, 0.26), self.draw.uniform(0.17, 0.22)
        part, dx, dy = self.window(x, y, 0.36)
        fissure = _F(0.4 * height) - (dy + _F(self.draw.uniform(-0.2, 0.2)) * dx) * (1 if self.draw.chance(0.5) else -1)
        round_edge = 1 - np.sqrt((dx * _F(1 / width)) ** 2 + (dy * _F(1 / height)) ** 2)
        lobe = _step(round_edge, 0.2) * _step(fissure, 0.012)
        bronchi = _step(-self.streak[part] - _F(0.25), 0.25)
        strength = _F(0.4 * observation.contrast)
        self.density[part] += self.aerated[part] * lobe * strength * (1 - _F(0.6) * bronchi)

    def _paint_pneumonia(self, observation: Observation) -> None:
        """A cluster of small fluffy patches."""
        x, y = self._spot(observation)
        part, dx, dy = self.window(x, y, 0.3)
        cluster = np.zeros_like(dx)
        for _ in range(7):
            cx, cy = self.draw.uniform(-0.17, 0.17), self.draw.uniform(-0.13, 0.13)
            radius = self.draw.uniform(0.028, 0.05)
            cluster += np.exp(-((dx - _F(cx)) ** 2 + (dy - _F(cy)) ** 2) * _F(1 / radius**2))
        strength = _F(0.4 * observation.contrast)
        self.density[part] += self.aerated[part] * np.minimum(cluster, 1.3) * strength

    def _paint_lesions(self, observation: Observation) -> None:
        """Round, sharply bordered nodules, or a mass."""
        x, y = self._spot(observation)
        for number in range(observation.count):
            # Downwards from the first one, but upwards above the diaphragm, so that all lie in the lung.
            angle = 1.8 * number - 1.4 + self.draw.uniform(0, 0.6)
            angle = -angle if observation.zone == "lower" else angle
            far = 0.13 if number else 0.0
            radius = self.draw.uniform(0.035, 0.045) + 0.045 * observation.strength
            part, dx, dy = self.window(x + far * np.cos(angle), y + far * np.sin(angle), radius + 0.04)
            ball = _step(_F(radius) - np.sqrt(dx * dx + dy * dy), 0.014)
            self.density[part] += self.aerated[part] * ball * _F(0.5 * observation.contrast)

    def _paint_atelectasis(self, observation: Observation) -> None:
        """Plates of airless lung above the diaphragm."""
        for side in observation.sides:
            sign = 1 if side == "left" else -1
            for number in range(2):
                x, y = sign * self.draw.uniform(0.32, 0.46), self.body.dome - 0.11 - 0.075 * number
                part, dx, dy = self.window(x, y, 0.2)
                tilted = dy + _F(sign * self.draw.uniform(-0.3, 0.3)) * dx
                plate = _step(_F(0.011 + 0.012 * observation.strength) - np.abs(tilted), 0.012)
                plate *= _step(_F(0.15) - np.abs(dx), 0.05)
                self.density[part] += self.aerated[part] * plate * _F(0.38 * observation.contrast)

    def _paint_pneumothorax(self, observation: Observation) -> None:
        """Black air without vessels outside a thin pleural line, from the apex down."""
        for side in observation.sides:
            s = observation.strength
            depth = _F(0.06 + 0.2 * s) * np.clip(1.25 - (self.y - _F(self.body.apex)) * _F(1.25 - 0.5 * s), 0, 1)
            rim = depth - np.minimum(self.to_wall, (self.y - _F(self.body.apex)) * _F(0.8))
            lung = self.lungs * self.on_side(side)
            air = lung * _step(rim, 0.012)
            self.density -= air * (self.vessels + _F(0.14 * observation.contrast))
            line = _step(_F(0.009) - np.abs(rim), 0.01) * (depth > 0.01)
            self.density += lung * line * _F(0.26 * observation.contrast)
            self.density += lung * (1 - air) * _F(0.05 * s)

    def _paint_effusion(self, observation: Observation) -> None:
        """Fluid that fills the costophrenic angle and climbs the chest wall."""
        for side in observation.sides:
            height = _F(0.03 + 0.4 * observation.strength)
            lateral = np.clip(self.abs_x - _F(0.3), 0, 1)
            level = _F(self.body.dome + 0.16) - height - _F(0.5) * lateral * lateral
            fluid = _step(self.y - level, 0.025 + 0.02 * observation.strength) * self.lungs * self.on_side(side)
            self.density += fluid * np.maximum(_F(0.6) - self.density, 0) * _F(0.95)

    def _paint_thickening(self, observation: Observation) -> None:
        """A dense band along the lateral chest wall, with plaques."""
        for side in observation.sides:
            thick = _F(0.028 + 0.055 * observation.strength)
            wavy = thick * (1 + _F(0.3) * np.sin(self.y * 17 + _F(self.draw.uniform(0, 6))))
            band = _step(wavy - self.to_wall, 0.012) * self.lungs * self.on_side(side)
            extent = _step(_F(0.34) - np.abs(self.y - _F(self.draw.uniform(-0.2, 0.1))), 0.06)
            self.density += band * extent * _F(0.46 * observation.contrast)

    # -- devices ---------------------------------------------------------------------------------

    def _paint_device(self, observation: Observation) -> None:
        sign = -1 if observation.side == "right" else 1
        draw, density = self.draw, 0.28 * observation.contrast
        dome = self.body.dome
        wobble = draw.uniform(-0.015, 0.015)
        if observation.device == "endotracheal tube":
            self._tube(
                [(0.01 + wobble, -1.0), (0.01, -0.6), (0.012 + wobble, draw.uniform(-0.32, -0.22))], density, 0.014
            )
        elif observation.device == "nasogastric tube":
            path = [(-0.01, -1.0), (-0.02 + wobble, -0.5), (0.03, 0.1), (0.08, dome + 0.05), (0.2, dome + 0.22)]
            self._tube(path, density, 0.009)
        elif observation.device == "jugular catheter":
            path = [(0.2 * sign, -1.0), (0.14 * sign, -0.72), (-0.06 + 0.05 * sign, -0.5), (-0.09, -0.1 + wobble)]
            self._tube(path, density, 0.009)
        elif observation.device == "chest tube":
            path = [(0.86 * sign, 0.22), (0.62 * sign, 0.12), (0.42 * sign, -0.2), (0.34 * sign, -0.5 + wobble)]
            self._tube(path, density, 0.016)
        elif observation.device == "pacemaker":
            part, dx, dy = self.window(0.5 * sign, self.body.apex + 0.26 + wobble, 0.16)
            box = _step(_F(0.09) - np.maximum(np.abs(dx), np.abs(dy) * _F(1.25)), 0.012)
            self.density[part] += box * _F(density + 0.1)
            self._tube([(0.44 * sign, -0.5), (0.16 * sign, -0.58), (-0.06, -0.3), (0.14, dome - 0.1)], density, 0.008)
        else:
            for number in range(5):
                part, dx, dy = self.window(wobble, -0.46 + 0.15 * number, 0.06)
                ring = np.abs(np.sqrt(dx * dx + (_F(1.6) * dy) ** 2) - _F(0.03))
                self.density[part] += _step(_F(0.008) - ring, max(0.008, 0.7 * self.pixel)) * _F(density)

    def _tube(self, path: list[tuple[float, float]], density: float, radius: float) -> None:
        """Add a smooth line of some thickness through the points of ``path``."""
        soft = max(0.006, 0.7 * self.pixel)
        line = np.zeros_like(self.density)
        for (x0, y0), (x1, y1) in pairwise(path):
            part, dx, dy = self.window((x0 + x1) / 2, (y0 + y1) / 2, max(abs(x1 - x0), abs(y1 - y0)) / 2 + 0.05)
            ux, uy = _F(x1 - x0), _F(y1 - y0)
            t = np.clip((dx * ux + dy * uy) / (ux * ux + uy * uy), -0.5, 0.5)
            ex, ey = dx - t * ux, dy - t * uy
            line[part] = np.maximum(line[part], _step(_F(radius) - np.sqrt(ex * ex + ey * ey), soft))
        self.density += line * _F(density)

    # -- exposure --------------------------------------------------------------------------------

    def develop(self) -> NDArray[np.uint8]:
        """Expose the density map: contrast, brightness, grain, marker and collimator."""
        draw, size = self.draw, self.size
        gain, gamma = draw.uniform(0.85, 1.3), draw.uniform(0.65, 1.5)
        tilt = _F(draw.uniform(-0.06, 0.06))
        grid_x, grid_y = _grid(size)
        picture = np.clip(self.density * _F(gain) + tilt * grid_x, 0.02, 1) ** _F(gamma)
        noise = draw.uniform(0.012, 0.03) * (1.2 if self.study.view == "AP" else 1.0)
        picture += _grain(size * size, draw).reshape(size, size) * _F(noise) * np.sqrt(picture)
        if draw.chance(0.7):
            self._stamp(picture)
        if draw.chance(0.3):
            edge = draw.uniform(0.93, 0.98)
            picture[(np.abs(grid_x) > edge) | (np.abs(grid_y) > edge)] = 0.02
        film: NDArray[np.uint8] = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
        return film

    def _stamp(self, picture: Map) -> None:
        """Put a lead marker, L or R, into an upper corner."""
        letter = "L" if self.draw.chance(0.5) else "R"
        scale = max(1, self.size // 128)
        stamp = np.kron(_GLYPHS[letter], np.ones((scale, scale), dtype=np.float32))
        row = int(self.size * self.draw.uniform(0.05, 0.12))
        column = int(self.size * self.draw.uniform(0.05, 0.1))
        column = column if letter == "R" else self.size - column - stamp.shape[1]
        area = picture[row : row + stamp.shape[0], column : column + stamp.shape[1]]
        np.maximum(area, stamp * _F(0.95), out=area)


@cache
def _rib_profile() -> Map:
    """Density across one rib and the space below it: 64 steps, brighter at the cortex."""
    u = np.abs((np.arange(64, dtype=np.float32) + 0.5) / 64 - 0.5)
    inside = _step(_F(0.26) - u, 0.07)
    cortex = np.exp(-(((u - _F(0.22)) / _F(0.05)) ** 2))
    profile: Map = _F(0.7) * inside + _F(0.5) * cortex
    return profile


def _glyph(rows: str) -> Map:
    return np.array([[pixel == "#" for pixel in row] for row in rows.split()], dtype=np.float32)


_GLYPHS = {
    "L": _glyph("##..... ##..... ##..... ##..... ##..... ##..... ##..... ####### #######"),
    "R": _glyph("######. ####### ##...## ##...## ######. #####.. ##.###. ##..### ##...##"),
}


def render(study: Study, size: int = 128) -> NDArray[np.uint8]:
    """Render the film of a study.

    Args:
        study: the patient and what the film shows.
        size: side of the square film in pixels, 32 or more.

    Returns:
        Grey pixels, 0 black to 255 white, uint8, shape ``(size, size)``. The patient's left is on
        the right of the picture.
    """
    film = _Film(study, size)
    film.paint_anatomy()
    film.paint_findings()
    return film.develop()
