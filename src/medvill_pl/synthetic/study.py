"""What the embedded corpus is about: patients, their studies and what each radiograph shows."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

from medvill_pl.batch import FINDINGS, Split

VERSION = 1
"""Version of the corpus. Texts, splits, labels and images of a version never change."""

Side = Literal["left", "right", "bilateral"]
Zone = Literal["upper", "mid", "lower"]
Severity = Literal["mild", "moderate", "severe"]
View = Literal["AP", "PA"]
Device = Literal[
    "endotracheal tube", "nasogastric tube", "jugular catheter", "chest tube", "pacemaker", "sternal hardware"
]

DEVICES: tuple[Device, ...] = (
    "endotracheal tube",
    "nasogastric tube",
    "jugular catheter",
    "chest tube",
    "pacemaker",
    "sternal hardware",
)

EQUIVOCAL = 0.16
"""Below this strength a finding is so faint that the report hedges."""


@dataclass(frozen=True)
class Observation:
    """One finding in a radiograph.

    Attributes:
        finding: one of ``FINDINGS``, but for No Finding.
        strength: how plainly the radiograph shows it, from 0 (barely visible) to 1.
        side: side of the patient, where the finding has one.
        zone: third of the lung, where the finding has one.
        count: how many there are (nodules, fractured ribs), else 1.
        device: the kind of device, for Support Devices.

    Example:
        >>> nodules = Observation("Lung Lesion", 0.6, side="left", zone="upper", count=2)
        >>> nodules.severity, nodules.is_certain, nodules.sides
        ('moderate', True, ('left',))
    """

    finding: str
    strength: float
    side: Side | None = None
    zone: Zone | None = None
    count: int = 1
    device: Device | None = None

    @property
    def is_certain(self) -> bool:
        """False where the report hedges."""
        return self.strength >= EQUIVOCAL or self.finding == "Support Devices"

    @property
    def severity(self) -> Severity:
        """The grade that the report states."""
        return "mild" if self.strength < 0.45 else "moderate" if self.strength < 0.75 else "severe"

    @property
    def contrast(self) -> float:
        """How far the finding stands out, as a share of the plainest case: 0.2 to 1."""
        return 0.2 + 0.8 * math.sqrt(self.strength)

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides to draw on."""
        return ("left", "right") if self.side == "bilateral" else (self.side,) if self.side else ()


@dataclass(frozen=True)
class Study:
    """One frontal radiograph of one patient.

    Attributes:
        id: identifier of the study.
        patient_id: identifier of the patient.
        body: seed of the patient's anatomy, the same in all studies of a patient.
        view: AP (portable, supine) or PA.
        observations: what the radiograph shows, in the order of ``FINDINGS``.

    Example:
        >>> study = next(studies("train"))
        >>> study.id, study.view, [observation.finding for observation in study.observations]
        ('train-0-p000000-s0', 'PA', ['Consolidation', 'Pneumonia'])
    """

    id: str
    patient_id: str
    body: str
    view: View
    observations: tuple[Observation, ...]

    def find(self, finding: str) -> tuple[Observation, ...]:
        """The observations of one finding (several only for Support Devices)."""
        return tuple(o for o in self.observations if o.finding == finding)


class Draw:
    """Random choices that are the same on every machine and Python version.

    Only ``random.Random.random`` and seeding by text are used, whose streams Python keeps.

    Args:
        name: what is drawn; equal names give equal draws, and each name has a stream of its own.

    Example:
        >>> draw = Draw("a name")
        >>> round(draw.uniform(), 6), draw.chance(0.5), draw.index((0.2, 0.3, 0.5))
        (0.469964, False, 2)
    """

    def __init__(self, name: str) -> None:
        self._random = random.Random(f"medvill_pl/synthetic/{VERSION}/{name}")

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in ``[low, high)``."""
        return low + (high - low) * self._random.random()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random.random() < probability

    def index(self, weights: tuple[float, ...]) -> int:
        """A position in ``weights``, each with a probability that is its share of the sum."""
        left = self.uniform(0.0, sum(weights))
        for position, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return position
        return len(weights) - 1  # by rounding, nothing was left


_RATES: dict[str, dict[str, float]] = {
    "healthy": {},
    "heart failure": {"Cardiomegaly": 0.85, "Edema": 0.75, "Pleural Effusion": 0.6, "Support Devices": 0.3},
    "infection": {"Pneumonia": 0.55, "Consolidation": 0.45, "Lung Opacity": 0.45, "Pleural Effusion": 0.25},
    "intensive care": {
        "Support Devices": 1.0,
        "Atelectasis": 0.5,
        "Pleural Effusion": 0.35,
        "Edema": 0.25,
        "Pneumothorax": 0.15,
        "Lung Opacity": 0.2,
    },
    "trauma": {"Fracture": 0.8, "Pneumothorax": 0.5, "Lung Opacity": 0.2, "Atelectasis": 0.2, "Support Devices": 0.2},
    "tumour": {"Lung Lesion": 0.9, "Enlarged Cardiomediastinum": 0.45, "Pleural Effusion": 0.25, "Pleural Other": 0.2},
    "old disease": {
        "Pleural Other": 0.6,
        "Atelectasis": 0.4,
        "Cardiomegaly": 0.3,
        "Enlarged Cardiomediastinum": 0.35,
        "Lung Lesion": 0.2,
        "Fracture": 0.2,
    },
}
"""How often a finding is seen in each kind of patient; every other one has the rate below."""
_BACKGROUND_RATE = 0.02
_MIX = (0.26, 0.14, 0.18, 0.14, 0.1, 0.09, 0.09)

_BOTH_SIDED = {"Edema"}
_ONE_OR_BOTH = {"Pleural Effusion": 0.35, "Atelectasis": 0.25}
_ONE_SIDED = {"Lung Lesion", "Lung Opacity", "Consolidation", "Pneumonia", "Pneumothorax", "Pleural Other", "Fracture"}
_ZONED = {"Lung Lesion", "Lung Opacity", "Consolidation", "Pneumonia"}
_MAX_COUNT = {"Lung Lesion": 3, "Fracture": 3}
_SIDED_DEVICES = ("jugular catheter", "chest tube", "pacemaker")


def _observe(finding: str, draw: Draw) -> Observation:
    side: Side | None = None
    zone: Zone | None = None
    if finding in _BOTH_SIDED or draw.chance(_ONE_OR_BOTH.get(finding, 0.0)):
        side = "bilateral"
    elif finding in _ONE_SIDED or finding in _ONE_OR_BOTH:
        side = "left" if draw.chance(0.5) else "right"
    if finding in _ZONED:
        zone = ("upper", "mid", "lower")[draw.index((0.3, 0.3, 0.4))]
    count = 1 + draw.index((0.5, 0.3, 0.2)) if finding in _MAX_COUNT else 1
    strength = round(draw.uniform(0.02, 1.0), 4)
    return Observation(finding, strength, side, zone, count)


def variants(finding: str) -> Iterator[Observation]:
    """Every observation of a finding (or a device) that a report can tell apart.

    Args:
        finding: one of ``FINDINGS``, but for No Finding and Support Devices, or one of ``DEVICES``.

    Example:
        >>> len(list(variants("Lung Lesion")))  # three grades, two sides, three zones, one to three nodules
        54
    """
    sides: tuple[Side | None, ...] = (None,)
    if finding in _BOTH_SIDED:
        sides = ("bilateral",)
    elif finding in _ONE_OR_BOTH:
        sides = ("left", "right", "bilateral")
    elif finding in _ONE_SIDED or finding in _SIDED_DEVICES:
        sides = ("left", "right")
    zones: tuple[Zone | None, ...] = ("upper", "mid", "lower") if finding in _ZONED else (None,)
    counts = range(1, _MAX_COUNT.get(finding, 1) + 1)
    for strength, side, zone, count in product((0.3, 0.6, 0.9), sides, zones, counts):
        yield Observation(finding, strength, side, zone, count)


def _observe_devices(is_intensive: bool, draw: Draw) -> list[Observation]:
    rates = (0.7, 0.5, 0.6, 0.2, 0.1, 0.15) if is_intensive else (0.05, 0.05, 0.2, 0.1, 0.45, 0.4)
    seen = [device for device, rate in zip(DEVICES, rates, strict=True) if draw.chance(rate)]
    observations = []
    for device in seen or [DEVICES[draw.index(rates)]]:
        side: Side | None = None
        if device in _SIDED_DEVICES:
            side = "left" if draw.chance(0.75 if device == "pacemaker" else 0.35) else "right"
        observations.append(Observation("Support Devices", round(draw.uniform(0.2, 1.0), 4), side, device=device))
    return observations


def _observations(patient_kind: str, draw: Draw) -> tuple[Observation, ...]:
    rates = _RATES[patient_kind]
    observations: list[Observation] = []
    for finding in FINDINGS[1:]:
        if not draw.chance(rates.get(finding, _BACKGROUND_RATE)):
            continue
        if finding == "Support Devices":
            observations += _observe_devices(patient_kind == "intensive care", draw)
        else:
            observations.append(_observe(finding, draw))
    return tuple(observations)


def studies(split: Split, seed: int = 0) -> Iterator[Study]:
    """Yield the studies of one split, patient after patient, without end.

    A patient has one to four studies and belongs to one split only.

    Args:
        split: ``train``, ``val`` or ``test``.
        seed: another seed gives another corpus of the same kind.

    Example:
        >>> from itertools import islice
        >>> [study.id for study in islice(studies("test"), 2)]
        ['test-0-p000000-s0', 'test-0-p000001-s0']
    """
    kinds = tuple(_RATES)
    patient = 0
    while True:
        patient_id = f"{split}-{seed}-p{patient:06d}"
        draw = Draw(f"patient/{patient_id}")
        kind = kinds[draw.index(_MIX)]
        for number in range(1 + draw.index((0.4, 0.3, 0.2, 0.1))):
            ap_rate = 0.85 if kind in ("intensive care", "trauma") else 0.4
            view: View = "AP" if draw.chance(ap_rate) else "PA"
            yield Study(f"{patient_id}-s{number}", patient_id, patient_id, view, _observations(kind, draw))
        patient += 1
