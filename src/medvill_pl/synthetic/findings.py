"""Findings painted into a phantom: what each looks like, where it lies, and how plainly it shows.

Strength (0 to 1) sets size and contrast together. A finding multiplies its shape by ``aerated``, the lung that is not
behind the heart, so that it ends where the lung ends without an edge of its own.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from medvill_pl.synthetic.anatomy import Phantom
from medvill_pl.synthetic.fields import F, smooth_step
from medvill_pl.synthetic.study import Observation

_ZONE_Y = {"upper": -0.42, "mid": -0.08, "lower": 0.24}


def paint_findings(phantom: Phantom) -> None:
    """Add every observation of a phantom's study that is not part of its anatomy to its density.

    Args:
        phantom: a phantom that no finding was added to; its density changes in place.

    Example:
        >>> from medvill_pl.synthetic.study import Study
        >>> tube = Observation("Support Devices", 1.0, device="endotracheal tube")
        >>> phantom = Phantom(Study("s", "p", "b", "AP", (tube,)), size=64)
        >>> before = phantom.density.copy()
        >>> paint_findings(phantom)
        >>> bool((phantom.density - before).max() > 0.2)
        True
    """
    for observation in phantom.study.observations:
        paint_finding(phantom, observation)


def paint_finding(phantom: Phantom, observation: Observation) -> None:
    """Add one observation to a phantom's density; those of the anatomy are there already and add nothing.

    Args:
        phantom: its density changes in place, and its draws move on.
        observation: what to add.

    Example:
        >>> from medvill_pl.synthetic.study import Study
        >>> phantom = Phantom(Study("s", "p", "b", "AP", ()), size=64)
        >>> before = phantom.density.copy()
        >>> paint_finding(phantom, Observation("Pleural Effusion", 0.9, side="left"))
        >>> changed = abs(phantom.density - before)
        >>> bool(changed[:, 32:].sum() > changed[:, :32].sum())  # the patient's left is on the right of the image
        True
    """
    painter = _PAINTERS.get(observation.finding)
    if painter is not None:
        painter(phantom, observation)


# -- in the lung ---------------------------------------------------------------------------------


def _spot(phantom: Phantom, observation: Observation) -> tuple[float, float]:
    """A position in the stated zone of the stated lung, above the diaphragm."""
    sign = 1 if observation.side == "left" else -1
    x = sign * phantom.draw.uniform(0.3, 0.5)
    y = _ZONE_Y[observation.zone or "mid"] + phantom.draw.uniform(-0.07, 0.07)
    return x, min(y, phantom.body.dome - 0.13)


def _edema(phantom: Phantom, observation: Observation) -> None:
    """Bat-wing haze around the hila, blurred vessels and septal lines at the periphery."""
    s = observation.strength
    wing = np.exp(-F(6.5) * phantom.hilum_radius**2)
    septal = np.cos(phantom.y * F(2 * np.pi / 0.045)) * smooth_step(F(0.13) - np.abs(phantom.to_wall - F(0.1)), 0.04)
    septal *= smooth_step(phantom.y - F(0.0), 0.1)
    haze = wing * F(0.01 + 0.2 * s) * (1 + F(0.35) * phantom.mottle) + np.abs(phantom.streak) * F(0.01 + 0.07 * s)
    phantom.density += phantom.aerated * (haze + septal * F(0.01 + 0.035 * s))


def _opacity(phantom: Phantom, observation: Observation) -> None:
    """One hazy, ill-defined patch."""
    x, y = _spot(phantom, observation)
    radius = phantom.draw.uniform(0.13, 0.19)
    part, dx, dy = phantom.window(x, y, 2.2 * radius)
    patch = np.exp(-(dx * dx + dy * dy) * F(1.2 / radius**2))
    phantom.density[part] += phantom.aerated[part] * patch * F(0.4 * observation.contrast)


def _consolidation(phantom: Phantom, observation: Observation) -> None:
    """A dense lobe with a straight fissure and air bronchograms, which are what ``streak`` has below zero."""
    draw = phantom.draw
    x, y = _spot(phantom, observation)
    width, height = draw.uniform(0.2, 0.26), draw.uniform(0.17, 0.22)
    part, dx, dy = phantom.window(x, y, 0.36)
    fissure = F(0.4 * height) - (dy + F(draw.uniform(-0.2, 0.2)) * dx) * (1 if draw.chance(0.5) else -1)
    round_edge = 1 - np.sqrt((dx * F(1 / width)) ** 2 + (dy * F(1 / height)) ** 2)
    lobe = smooth_step(round_edge, 0.2) * smooth_step(fissure, 0.012)
    bronchi = smooth_step(-phantom.streak[part] - F(0.25), 0.25)
    strength = F(0.4 * observation.contrast)
    phantom.density[part] += phantom.aerated[part] * lobe * strength * (1 - F(0.6) * bronchi)


def _pneumonia(phantom: Phantom, observation: Observation) -> None:
    """A cluster of small fluffy patches."""
    draw = phantom.draw
    x, y = _spot(phantom, observation)
    part, dx, dy = phantom.window(x, y, 0.3)
    cluster = np.zeros_like(dx)
    for _ in range(7):
        cx, cy = draw.uniform(-0.17, 0.17), draw.uniform(-0.13, 0.13)
        radius = draw.uniform(0.028, 0.05)
        cluster += np.exp(-((dx - F(cx)) ** 2 + (dy - F(cy)) ** 2) * F(1 / radius**2))
    strength = F(0.4 * observation.contrast)
    phantom.density[part] += phantom.aerated[part] * np.minimum(cluster, 1.3) * strength


def _lesions(phantom: Phantom, observation: Observation) -> None:
    """Round, sharply bordered nodules, or a mass."""
    x, y = _spot(phantom, observation)
    for number in range(observation.count):
        # Downwards from the first one, but upwards above the diaphragm, so that all lie in the lung.
        angle = 1.8 * number - 1.4 + phantom.draw.uniform(0, 0.6)
        angle = -angle if observation.zone == "lower" else angle
        far = 0.13 if number else 0.0
        radius = phantom.draw.uniform(0.035, 0.045) + 0.045 * observation.strength
        part, dx, dy = phantom.window(x + far * np.cos(angle), y + far * np.sin(angle), radius + 0.04)
        ball = smooth_step(F(radius) - np.sqrt(dx * dx + dy * dy), 0.014)
        phantom.density[part] += phantom.aerated[part] * ball * F(0.5 * observation.contrast)


def _atelectasis(phantom: Phantom, observation: Observation) -> None:
    """Plates of airless lung above the diaphragm, which the anatomy has pulled up."""
    draw = phantom.draw
    for side in observation.sides:
        sign = 1 if side == "left" else -1
        for number in range(2):
            x, y = sign * draw.uniform(0.32, 0.46), phantom.body.dome - 0.11 - 0.075 * number
            part, dx, dy = phantom.window(x, y, 0.2)
            tilted = dy + F(sign * draw.uniform(-0.3, 0.3)) * dx
            plate = smooth_step(F(0.011 + 0.012 * observation.strength) - np.abs(tilted), 0.012)
            plate *= smooth_step(F(0.15) - np.abs(dx), 0.05)
            phantom.density[part] += phantom.aerated[part] * plate * F(0.38 * observation.contrast)


# -- around the lung -----------------------------------------------------------------------------


def _pneumothorax(phantom: Phantom, observation: Observation) -> None:
    """Black air without vessels outside a thin pleural line, from the apex down."""
    below_apex = phantom.y - F(phantom.body.apex)
    for side in observation.sides:
        s = observation.strength
        depth = F(0.06 + 0.2 * s) * np.clip(1.25 - below_apex * F(1.25 - 0.5 * s), 0, 1)
        rim = depth - np.minimum(phantom.to_wall, below_apex * F(0.8))
        lung = phantom.lungs * phantom.side_mask(side)
        air = lung * smooth_step(rim, 0.012)
        phantom.density -= air * (phantom.vessels + F(0.14 * observation.contrast))
        line = smooth_step(F(0.009) - np.abs(rim), 0.01) * (depth > 0.01)
        phantom.density += lung * line * F(0.26 * observation.contrast)
        phantom.density += lung * (1 - air) * F(0.05 * s)  # the lung that has collapsed is denser


def _effusion(phantom: Phantom, observation: Observation) -> None:
    """Fluid that fills the costophrenic angle and climbs the chest wall.

    It replaces air: where something is as dense as fluid already, nothing is added.
    """
    for side in observation.sides:
        height = F(0.03 + 0.4 * observation.strength)
        lateral = np.clip(phantom.abs_x - F(0.3), 0, 1)
        level = F(phantom.body.dome + 0.16) - height - F(0.5) * lateral * lateral
        fluid = smooth_step(phantom.y - level, 0.025 + 0.02 * observation.strength)
        fluid = fluid * phantom.lungs * phantom.side_mask(side)
        phantom.density += fluid * np.maximum(F(0.6) - phantom.density, 0) * F(0.95)


def _thickening(phantom: Phantom, observation: Observation) -> None:
    """A dense band along the lateral chest wall, with plaques."""
    draw = phantom.draw
    for side in observation.sides:
        thick = F(0.028 + 0.055 * observation.strength)
        wavy = thick * (1 + F(0.3) * np.sin(phantom.y * 17 + F(draw.uniform(0, 6))))
        band = smooth_step(wavy - phantom.to_wall, 0.012) * phantom.lungs * phantom.side_mask(side)
        extent = smooth_step(F(0.34) - np.abs(phantom.y - F(draw.uniform(-0.2, 0.1))), 0.06)
        phantom.density += band * extent * F(0.46 * observation.contrast)


# -- devices -------------------------------------------------------------------------------------


def _device(phantom: Phantom, observation: Observation) -> None:
    """A tube along its usual path, a pacemaker with its lead, or the rings of sternal wires."""
    sign = -1 if observation.side == "right" else 1
    density, dome = 0.28 * observation.contrast, phantom.body.dome
    wobble = phantom.draw.uniform(-0.015, 0.015)
    if observation.device == "endotracheal tube":
        tip = (0.012 + wobble, phantom.draw.uniform(-0.32, -0.22))
        _tube(phantom, [(0.01 + wobble, -1.0), (0.01, -0.6), tip], density, 0.014)
    elif observation.device == "nasogastric tube":
        path = [(-0.01, -1.0), (-0.02 + wobble, -0.5), (0.03, 0.1), (0.08, dome + 0.05), (0.2, dome + 0.22)]
        _tube(phantom, path, density, 0.009)
    elif observation.device == "jugular catheter":
        path = [(0.2 * sign, -1.0), (0.14 * sign, -0.72), (-0.06 + 0.05 * sign, -0.5), (-0.09, -0.1 + wobble)]
        _tube(phantom, path, density, 0.009)
    elif observation.device == "chest tube":
        path = [(0.86 * sign, 0.22), (0.62 * sign, 0.12), (0.42 * sign, -0.2), (0.34 * sign, -0.5 + wobble)]
        _tube(phantom, path, density, 0.016)
    elif observation.device == "pacemaker":
        part, dx, dy = phantom.window(0.5 * sign, phantom.body.apex + 0.26 + wobble, 0.16)
        box = smooth_step(F(0.09) - np.maximum(np.abs(dx), np.abs(dy) * F(1.25)), 0.012)
        phantom.density[part] += box * F(density + 0.1)
        path = [(0.44 * sign, -0.5), (0.16 * sign, -0.58), (-0.06, -0.3), (0.14, dome - 0.1)]
        _tube(phantom, path, density, 0.008)
    else:
        _sternal_wires(phantom, wobble, density)


def _sternal_wires(phantom: Phantom, x: float, density: float) -> None:
    """Five rings, one below the other."""
    for number in range(5):
        part, dx, dy = phantom.window(x, -0.46 + 0.15 * number, 0.06)
        ring = np.abs(np.sqrt(dx * dx + (F(1.6) * dy) ** 2) - F(0.03))
        phantom.density[part] += smooth_step(F(0.008) - ring, _softness(phantom, 0.008)) * F(density)


def _tube(phantom: Phantom, path: list[tuple[float, float]], density: float, radius: float) -> None:
    """Add a smooth line of some thickness through the points of ``path``.

    The maximum over the segments, not their sum: a joint is no denser than the rest.
    """
    line = np.zeros_like(phantom.density)
    for (x0, y0), (x1, y1) in pairwise(path):
        part, dx, dy = phantom.window((x0 + x1) / 2, (y0 + y1) / 2, max(abs(x1 - x0), abs(y1 - y0)) / 2 + 0.05)
        ux, uy = F(x1 - x0), F(y1 - y0)
        t = np.clip((dx * ux + dy * uy) / (ux * ux + uy * uy), -0.5, 0.5)  # the nearest point of the segment
        ex, ey = dx - t * ux, dy - t * uy
        inside = smooth_step(F(radius) - np.sqrt(ex * ex + ey * ey), _softness(phantom, 0.006))
        line[part] = np.maximum(line[part], inside)
    phantom.density += line * F(density)


def _softness(phantom: Phantom, least: float) -> float:
    """Width of a thin line's edge: 0.7 pixels at least, for a line between two pixels would vanish in a small image."""
    return max(least, 0.7 * (2 / phantom.size))


_PAINTERS: dict[str, Callable[[Phantom, Observation], None]] = {
    "Edema": _edema,
    "Lung Opacity": _opacity,
    "Consolidation": _consolidation,
    "Pneumonia": _pneumonia,
    "Lung Lesion": _lesions,
    "Atelectasis": _atelectasis,
    "Pneumothorax": _pneumothorax,
    "Pleural Effusion": _effusion,
    "Pleural Other": _thickening,
    "Support Devices": _device,
}
