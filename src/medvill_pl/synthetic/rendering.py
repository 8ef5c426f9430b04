"""Phantom frontal chest radiographs: a study in, pixels out.

Anatomy first, then the findings, then the exposure; each moves the same random draws on, so the order is fixed.
"""

import numpy as np
from numpy.typing import NDArray

from medvill_pl.synthetic.anatomy import Phantom
from medvill_pl.synthetic.exposure import expose
from medvill_pl.synthetic.findings import paint_findings
from medvill_pl.synthetic.study import Study


def render(study: Study, size: int = 128) -> NDArray[np.uint8]:
    """Render the radiograph of a study.

    Args:
        study: the patient and what the radiograph shows.
        size: side of the square image in pixels, 32 or more.

    Returns:
        Grey pixels, 0 black to 255 white, uint8, shape ``(size, size)``. The patient's left is on the right of the
        image.

    Example:
        >>> from medvill_pl.synthetic.study import studies
        >>> image = render(next(studies("train")), size=64)
        >>> image.shape, image.dtype
        ((64, 64), dtype('uint8'))
    """
    phantom = Phantom(study, size)
    paint_findings(phantom)
    return expose(phantom.density, phantom.draw, study.view)
