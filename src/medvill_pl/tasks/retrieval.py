"""Image-report retrieval: matching or not, and the search that follows from it (MedViLL, Sec. IV-C.2)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medvill_pl.batch import Batch, derive_seed
from medvill_pl.evaluation.retrieval import DIRECTIONS, check_gallery, draw_candidate_sets
from medvill_pl.evaluation.statistics import Rows
from medvill_pl.models.medvill import BackboneConfig
from medvill_pl.runs import gather
from medvill_pl.tasks.backbone_task import make_head
from medvill_pl.tasks.gallery import (
    CandidateSets,
    Entry,
    Gallery,
    needed_pairs,
    pad_texts,
    rank_queries,
    score_pairs,
)
from medvill_pl.tasks.matching import MatchingTask
from medvill_pl.tasks.optimizers import Schedule
from medvill_pl.tasks.step import StepOutput


class RetrievalTask(MatchingTask):
    """Fine-tunes a backbone to tell matching from non-matching pairs, and searches by it.

    Training and validation need non-matching pairs: give the data module ``negatives="labels"``. In a test, every
    image searches among the reports of its candidate set, and every report among images; a candidate is positive where
    its set of positive labels equals the query's. Each image passes the image encoder once, in however many pairs.

    ``predict`` with ``query_image`` or ``query_text`` searches the data for it; without a query it tells how well
    each image and its own report match.

    Args:
        backbone: arguments of :class:`MedViLL`.
        backbone_ckpt: start from this backbone instead.
        num_candidates: candidates of each query, its own counterpart and others.
        full_gallery: rank the whole test split too, as the released code does.
        candidate_seed: the candidate sets follow from it alone.
        query_image: for ``predict``, an image file whose reports are searched for.
        query_text: for ``predict``, a text whose images are searched for.
        lr: learning rate of AdamW.
        weight_decay: of all weights but biases, norms and other vectors.
        warmup_steps: optimizer steps over which the rate rises linearly.
        schedule: the rate after that: ``constant`` (the paper), or ``linear``, down to 0 at the end of the run.
        compile: run the backbone through ``torch.compile``.
        seed: seed of dropout.
        freeze_backbone: train the heads alone (a linear probe); the rest of the backbone stays in evaluation mode.

    Raises:
        ValueError: if there are fewer than 2 candidates, or both queries are given.
        FileNotFoundError: if there is no such query image.

    Example:
        >>> tiny = {"image_encoder": "resnet_tiny", "image_size": 64, "tokenizer": "synthetic", "hidden_size": 32,
        ...         "num_layers": 1, "num_heads": 2, "intermediate_size": 64}
        >>> task = RetrievalTask(tiny, num_candidates=20)
        >>> task.num_candidates
        20
    """

    monitor, mode = "val/match_auroc", "max"
    score_fn = "medvill_pl.evaluation.retrieval.retrieval_scores"
    unused_parameters = ("text_cls_position_embedding", "mlm_head")

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        backbone_ckpt: str | None = None,
        num_candidates: int = 100,
        full_gallery: bool = False,
        candidate_seed: int = 0,
        query_image: str | None = None,
        query_text: str | None = None,
        lr: float = 1e-5,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        schedule: Schedule = "constant",
        compile: bool = False,
        seed: int = 0,
        freeze_backbone: bool = False,
    ) -> None:
        super().__init__(
            backbone, backbone_ckpt, lr, weight_decay, warmup_steps, schedule, compile, seed, freeze_backbone
        )
        self.save_hyperparameters()
        if num_candidates < 2:
            raise ValueError(f"num_candidates must be 2 or more, not {num_candidates}")
        if query_image and query_text:
            raise ValueError("give either query_image or query_text")
        if query_image and not Path(query_image).is_file():
            raise FileNotFoundError(f"query_image: no such file: {query_image}")
        self.num_candidates, self.full_gallery, self.candidate_seed = num_candidates, full_gallery, candidate_seed
        self.query_image, self.query_text = query_image, query_text
        self.head = make_head(self.backbone.hparams["hidden_size"], 1)
        self.query_pixels: Tensor | None = None
        self._query_tokens: Tensor | None = None

    def setup(self, stage: str) -> None:
        """Build what every task needs; before a test, see that the gallery is large enough.

        Raises:
            ValueError: if the test split has fewer pairs than a query has candidates.
        """
        super().setup(stage)
        if stage == "test" and self.data is not None:
            check_gallery(len(self.data.datasets["test"]), self.num_candidates)

    def forward(self, visual_tokens: Tensor, input_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Score how well images and reports match.

        Args:
            visual_tokens: of each pair's image, shape ``(B, K, d)``.
            input_ids: of each pair's report, int64, shape ``(B, T)``.
            text_mask: True at real tokens, bool, shape ``(B, T)``.

        Returns:
            Logits, shape ``(B,)``.
        """
        output = self.backbone(visual_tokens=visual_tokens, input_ids=input_ids, text_mask=text_mask)
        logits: Tensor = self.head(output.pooled).squeeze(1)
        return logits

    def step(self, batch: Batch) -> StepOutput:
        """Compute loss, predictions and targets of a batch."""
        tokens = self.backbone.encode_image(batch["image"])
        logits = self(tokens, batch["input_ids"], batch["text_mask"]).float()
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch["matched"].float())
        results = {"id": batch["id"], "matched": batch["matched"], "match_probability": logits.sigmoid()}
        return StepOutput(loss, results=results)

    # -- candidate sets ----------------------------------------------------------------------------------

    def on_test_epoch_start(self) -> None:
        """Begin with an empty gallery."""
        self._entries: list[Entry] = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Put images and their own reports into the gallery; the search begins when all are there."""
        if batch_idx == 0:
            self.first_test_batch = batch
        # The batch may lend an image another's report; the gallery takes its own.
        ids = self.encode_texts(batch["report"])
        visual_tokens = self.backbone.encode_image(batch["image"]).cpu()
        self._entries += map(Entry, batch["id"], visual_tokens, ids, batch["labels"].tolist())

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        """Turn texts into ids, truncated to the backbone's limit, each with its SEP_L."""
        tokenizer, limit = self.backbone.tokenizer, self.backbone.hparams["max_tokens"]
        return [[*ids[:limit], tokenizer.sep_id] for ids in tokenizer.encode(texts)]

    def finish_results(self, stage: str) -> Rows:
        """Rank the candidates of every query; this process gives the rows of its share of the queries."""
        if stage != "test":
            return super().finish_results(stage)
        entries = sorted(gather(self._entries, self.trainer), key=lambda entry: entry.id)
        self._entries = []
        candidate_sets = self._draw_candidate_sets(len(entries))
        scores = self._score(entries, candidate_sets)
        prior = self._log_prior(np.array([entry.labels for entry in entries], dtype=np.float32))
        queries = range(self.global_rank, len(entries), self.trainer.world_size)
        return list(rank_queries(entries, candidate_sets, scores, prior, queries))

    def _draw_candidate_sets(self, size: int) -> list[CandidateSets]:
        sets = []
        for direction in DIRECTIONS:
            seed = derive_seed(self.candidate_seed, direction)
            sets.append(CandidateSets(direction, "candidates", draw_candidate_sets(size, self.num_candidates, seed)))
            if self.full_gallery:
                sets.append(CandidateSets(direction, "full", draw_candidate_sets(size, size, seed)))
        return sets

    def _score(self, entries: list[Entry], candidate_sets: list[CandidateSets]) -> NDArray[np.float32]:
        """Score the pairs that are needed, each once, shared by all processes: rows are images, columns reports."""
        tokens = torch.stack([entry.visual_tokens for entry in entries])
        gallery = self.make_gallery(tokens, [entry.ids for entry in entries])
        own_share = needed_pairs(len(entries), candidate_sets)[self.global_rank :: self.trainer.world_size]
        with self.trainer.precision_plugin.forward_context():  # an epoch's end is outside of it
            own_scores = self.score_pairs(gallery, own_share)
        scores = np.full((len(entries), len(entries)), np.nan, dtype=np.float32)
        for pairs, values in gather([(own_share, own_scores)], self.trainer):
            scores[pairs[:, 0], pairs[:, 1]] = values
        return scores

    def make_gallery(self, visual_tokens: Tensor, texts: list[list[int]]) -> Gallery:
        """Lay images and reports ready on the task's device.

        Args:
            visual_tokens: of each image, shape ``(N, K, d)``.
            texts: what :meth:`encode_texts` gave, N lists.
        """
        input_ids, text_mask = pad_texts(texts, self.backbone.tokenizer.pad_id)
        return Gallery(visual_tokens.to(self.device), input_ids.to(self.device), text_mask.sum(1))

    @torch.no_grad()
    def score_pairs(self, gallery: Gallery, pairs: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score pairs of a gallery's images and reports.

        Args:
            gallery: images and reports.
            pairs: indices of image and report in the gallery, int64, shape ``(P, 2)``.

        Returns:
            Matching logits, shape ``(P,)``.
        """
        return score_pairs(self, gallery, pairs)

    def _log_prior(self, labels: NDArray[np.float32]) -> NDArray[np.float64] | None:
        """How likely each label set is by the findings' frequencies in training; None without a training split."""
        examples = self.data.training_examples() if self.data else None
        if examples is None:
            return None
        frequency = np.clip((examples.labels == 1).mean(axis=0), 1e-6, 1 - 1e-6)
        is_positive = labels == 1
        prior: NDArray[np.float64] = is_positive @ np.log(frequency) + ~is_positive @ np.log(1 - frequency)
        return prior

    # -- search ----------------------------------------------------------------------------------

    def on_predict_start(self) -> None:
        """Make the query ready; a query image stays as ``query_pixels``, uint8, shape ``(H, W)``."""
        self._query_tokens = self.query_pixels = None
        if self.query_image:
            from medvill_pl.data.images import read_square

            cut_margins = self.data is None or self.data.cut_margins  # as those of the images that are searched
            pixels = read_square(Path(self.query_image), self.backbone.hparams["image_size"], cut_margins)
            self.query_pixels = torch.from_numpy(pixels.copy()).to(self.device)
            self._query_tokens = self.backbone.encode_image(self.query_pixels[None, None])

    @torch.no_grad()
    def example_rows(self, batch: Batch) -> list[dict[str, object]]:
        """What a table shows of a batch: each image's report, whether it is its own, and what the task says."""
        tokens = self.backbone.encode_image(batch["image"])
        probability = self(tokens, batch["input_ids"], batch["text_mask"]).float().sigmoid().tolist()
        reports = [self.backbone.tokenizer.decode(ids) for ids in batch["input_ids"].tolist()]
        matched = batch["matched"].tolist()
        return [
            {"id": i, "report": text, "matched": is_own, "match probability": p}
            for i, text, is_own, p in zip(batch["id"], reports, matched, probability, strict=True)
        ]

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Score each pair of the batch against the query, or each image against its own report.

        Returns:
            Rows with ``id``, ``match_probability`` and ``report``.
        """
        size = len(batch["id"])
        input_ids, text_mask = batch["input_ids"], batch["text_mask"]
        if self._query_tokens is not None:
            tokens = self._query_tokens.expand(size, -1, -1)
        else:
            tokens = self.backbone.encode_image(batch["image"])
        if self.query_text:
            padded = pad_texts(self.encode_texts([self.query_text]) * size, self.backbone.tokenizer.pad_id)
            input_ids, text_mask = (one.to(self.device) for one in padded)
        probability = self(tokens, input_ids, text_mask).float().sigmoid().tolist()
        return [
            {"id": i, "match_probability": p, "report": text}
            for i, p, text in zip(batch["id"], probability, batch["report"], strict=True)
        ]

    def arrange_predictions(self, rows: Rows) -> Rows:
        """Rank the results of a search, best first; without a query, the order is by identifier."""
        if not (self.query_image or self.query_text):
            return super().arrange_predictions(rows)
        ranked = sorted(rows, key=lambda row: (-row["match_probability"], str(row["id"])))
        return [{"rank": rank, **row} for rank, row in enumerate(ranked, start=1)]
