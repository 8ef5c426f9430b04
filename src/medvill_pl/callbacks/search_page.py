"""The page of a search: the query, its results, and whether they have the query's findings (MedViLL, Fig. 7)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from medvill_pl import html
from medvill_pl.batch import FINDINGS, Batch
from medvill_pl.callbacks.protocols import Searches
from medvill_pl.data.examples import Examples
from medvill_pl.files import free_name
from medvill_pl.labeler.chexpert import CheXpertLabeler
from medvill_pl.runs import gather, run_folder


class SearchPage(Callback):
    """Writes a page of a search: the query, best and worst results, with labels (the paper's Fig. 7).

    It acts in ``predict`` with a task that has a query. A frame is green where the set of positive
    findings equals the query's. The findings of a text are those of the same text in the corpus, else what
    :class:`CheXpertLabeler` reads in it; those of an image are known where the corpus has the same image. Text and
    images of the corpus are on the html.

    Args:
        path: where to write it; by default ``search.html`` in the folder of the run.
        num_best: results to show from the top of the list.
        num_worst: results to show from its end.

    Example:
        >>> from tempfile import mkdtemp
        >>> from medvill_pl import RetrievalTask, SyntheticDataModule
        >>> tiny = {"image_encoder": "resnet_tiny", "image_size": 64, "tokenizer": "synthetic", "hidden_size": 32,
        ...         "num_layers": 1, "num_heads": 2, "intermediate_size": 64}
        >>> page = Path(mkdtemp(), "search.html")
        >>> trainer = Trainer(accelerator="cpu", logger=False, callbacks=[SearchPage(str(page))],
        ...                   enable_progress_bar=False)
        >>> task = RetrievalTask(tiny, query_text="Large right pleural effusion.")
        >>> _ = trainer.predict(task, datamodule=SyntheticDataModule(num_test=12))
        >>> page.is_file()
        True
    """

    def __init__(self, path: str | None = None, num_best: int = 8, num_worst: int = 4) -> None:
        self.path, self.num_best, self.num_worst = path, num_best, num_worst

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with no results."""
        self._target = Path(self.path) if self.path else run_folder(trainer) / "search.html"
        self._rows: list[Mapping[str, Any]] = []
        self._same_image: list[str] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the rows, and which image is the query."""
        if not _is_search(pl_module):
            return
        self._rows += outputs
        if pl_module.query_pixels is not None:
            is_same = (batch["image"] == pl_module.query_pixels).flatten(1).all(1).tolist()
            self._same_image += [i for i, same in zip(batch["id"], is_same, strict=True) if same]

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the page, from the first process."""
        if not _is_search(pl_module):
            return
        rows = pl_module.arrange_predictions(gather(self._rows, trainer))
        same_image = gather(self._same_image, trainer)
        data = pl_module.data
        if not trainer.is_global_zero or data is None:
            return
        corpus = _Corpus(data.datasets["test"].examples)
        query = pl_module.query_text
        findings = corpus.of_text(query) if query else corpus.of_id(same_image[0]) if same_image else None
        parts = [
            html.paragraph(
                f"{len(rows):,} {'images' if query else 'reports'} of {data.name}, ranked by the probability, in "
                "brackets, that each belongs to the query. For research, not a medical device."
            ),
            html.paragraph(_notice(data.is_credentialed), is_note=True),
            _query_card(pl_module, findings, corpus),
            *_found(rows, corpus, findings, self.num_best, self.num_worst),
        ]
        path = free_name(self._target)
        html.write_page(path, "Search", parts)
        rank_zero_info(f"the best of them are shown in {path}")


def _is_search(task: LightningModule) -> TypeGuard[Searches]:
    return isinstance(task, Searches) and bool(task.query_image or task.query_text)


class _Corpus:
    """What a search went through, by identifier."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        self.is_labelled = not bool(np.isnan(examples.labels).all())
        self._place = {name: index for index, name in enumerate(examples.ids)}

    def image(self, name: str) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = self.examples.image(self._place[name])[0].numpy()
        return pixels

    def has_text(self, text: str) -> bool:
        return text in self.examples.reports

    def of_id(self, name: str) -> list[str] | None:
        """The positive findings of an image; None if the corpus has no labels."""
        return self._positive(self.examples.labels[self._place[name]])

    def of_text(self, text: str) -> list[str] | None:
        """The positive findings of a text, of those that the corpus labels."""
        if self.has_text(text):
            return self._positive(self.examples.labels[list(self.examples.reports).index(text)])
        return self._positive(CheXpertLabeler(imitate_faults=False)([text])[0])

    def _positive(self, labels: NDArray[np.float32]) -> list[str] | None:
        if not self.is_labelled:
            return None
        pairs = zip(FINDINGS, labels.tolist(), strict=True)
        return [finding for finding, label in pairs if label == 1 and finding in self.examples.labelled]


_READ_BY_LABELER = "The corpus does not have this text: its findings are what the rule-based labeler reads in it."


def _notice(is_credentialed: bool) -> str:
    if is_credentialed:
        return "This page holds text and images of a credentialed corpus: keep it on this machine."
    return "This page holds text and images of the corpus."


def _query_card(task: Searches, findings: list[str] | None, corpus: _Corpus) -> str:
    if task.query_pixels is not None:
        message = html.paragraph(f"Query: {Path(str(task.query_image)).name}")
        unknown = "The corpus does not have this image, so its findings are not known: no result is marked."
    else:
        message = html.paragraph(f"Query: {task.query_text}")
        unknown = ""
        message += "" if corpus.has_text(str(task.query_text)) else html.paragraph(_READ_BY_LABELER, is_note=True)
    if not corpus.is_labelled:
        unknown = "The corpus has no labels, so no result is marked."
    text = html.paragraph(unknown, is_note=True) if findings is None else f"<p>{html.tags(findings, findings)}</p>"
    image = [] if task.query_pixels is None else [html.picture(task.query_pixels.cpu().numpy(), "query")]
    return html.card(*image, f"<div>{message}{text}</div>")


def _found(
    rows: Sequence[Mapping[str, Any]], corpus: _Corpus, expected: list[str] | None, num_best: int, num_worst: int
) -> list[str]:
    """The best results and the worst, and how many in all have the query's findings."""
    parts = []
    if expected is not None:
        is_right = [set(corpus.of_id(row["id"]) or ()) == set(expected) for row in rows]
        parts.append(
            html.paragraph(
                f"Green frames have the query's set of positive findings: {sum(is_right[:num_best])} of the first "
                f"{min(num_best, len(rows))}, and {sum(is_right):,} of all {len(rows):,}. Single findings are green "
                "where the query has them too."
            )
        )
    best, rest = rows[:num_best], rows[num_best:]
    worst = rest[-num_worst:] if num_worst else []
    for title, part in (("Best", best), ("From the end of the list", worst)):
        if part:
            parts += [html.heading(title), html.results([_result(row, corpus, expected) for row in part])]
    return parts


def _result(row: Mapping[str, Any], corpus: _Corpus, expected: list[str] | None) -> str:
    title = f"{row['rank']}. {row['id']} ({row['match_probability']:.3f})"
    return html.result(corpus.image(row["id"]), title, row["report"], corpus.of_id(row["id"]), expected)
