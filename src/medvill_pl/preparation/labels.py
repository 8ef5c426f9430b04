"""Labels of texts, as the rows of a corpus hold them."""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from medvill_pl.data.corpus.schema import Labels
from medvill_pl.labeler.base import Labeler, check_labels

_CHUNK = 256


def label_texts(texts: Sequence[str], labeler: Labeler | None = None) -> list[Labels]:
    """Label texts with the 14 findings.

    Args:
        texts: what the labeler is given.
        labeler: by default the rule-based CheXpert labeler.

    Returns:
        For each text 14 values 1, 0, -1 or None (not mentioned).

    Example:
        >>> from medvill_pl.batch import FINDINGS
        >>> labels = label_texts(["No pneumothorax. Small left effusion."])[0]
        >>> labels[FINDINGS.index("Pneumothorax")], labels[FINDINGS.index("Pleural Effusion")]
        (0, 1)
    """
    if labeler is None:
        from medvill_pl.labeler.chexpert import CheXpertLabeler

        labeler = CheXpertLabeler()
    labels: list[Labels] = []
    # In chunks, so that progress is seen; a neural labeler makes its batches of them.
    with tqdm(total=len(texts), desc=f"{labeler.name}", unit="report", disable=None) as bar:
        for start in range(0, len(texts), _CHUNK):
            part = texts[start : start + _CHUNK]
            states = check_labels(labeler(part), len(part))
            labels += [tuple(None if np.isnan(state) else int(state) for state in row) for row in states]
            bar.update(len(part))
    return labels
