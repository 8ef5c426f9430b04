"""Tasks that tell matching from non-matching pairs, and so need both (MedViLL, Sec. III-B.4, IV-C.2)."""

from medvill_pl.batch import Batch
from medvill_pl.tasks.backbone_task import BackboneTask

_ENOUGH = 32
"""So many pairs that are matching all through are no accident where half of them should not be."""
_REMEDY = "image-report matching needs non-matching pairs"


class MatchingTask(BackboneTask):
    """A task that trains on non-matching pairs beside matching ones, and refuses data without them."""

    def on_train_start(self) -> None:
        """Refuse a data module without non-matching pairs before the first step.

        Raises:
            ValueError: if the data module pairs every image with its own report only.
        """
        super().on_train_start()
        if self.data is not None and self.data.negatives == "none":
            raise ValueError(f"{_REMEDY}: set the data module's negatives to 'labels'")
        self._num_matching, self._is_sure = 0, self.data is not None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Look for non-matching pairs in a user's own loader, till one is found.

        Raises:
            ValueError: if there is none among the first pairs.
        """
        super().on_train_batch_start(batch, batch_idx)
        if self._is_sure:
            return
        self._is_sure = not bool(batch["matched"].all())
        self._num_matching += len(batch["matched"])
        if not self._is_sure and self._num_matching >= _ENOUGH:
            self._refuse()

    def on_train_epoch_end(self) -> None:
        """Refuse a user's own loader whose epoch had no non-matching pair."""
        if not self._is_sure:
            self._refuse()

    def _refuse(self) -> None:
        raise ValueError(
            f"{_REMEDY}, but all of the first {self._num_matching} pairs match: make a loader whose batches hold as "
            "many pairs with matched=False, or give a data module with negatives='labels'"
        )
