"""Image-report retrieval: matching or not, and the search that follows from it (MedViLL, Sec. IV-C.2)."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medvill_pl.batch import Batch, derive_seed, label_set_keys
from medvill_pl.evaluation.retrieval import (
    DIRECTIONS,
    Direction,
    Gallery,
    check_gallery,
    draw_candidate_sets,
    rank_candidates,
)
from medvill_pl.evaluation.statistics import Rows
from medvill_pl.models.medvill import BackboneConfig
from medvill_pl.runs import gather
from medvill_pl.tasks.base import BaseTask, Schedule, StepOutput, make_head, need_negatives

PAIRS_AT_ONCE = 128
"""Pairs that the encoder scores together."""


class _Entry(NamedTuple):
    """One pair of the test split: its image's visual tokens and its own report."""

    id: str
    visual_tokens: Tensor
    ids: list[int]
    labels: list[float]


class Pool(NamedTuple):
    """Images and reports that lie ready for the encoder, N each, on the task's device.

    Attributes:
        visual_tokens: of each image, shape ``(N, K, d)``.
        input_ids: words and SEP_L of each report, then padding, int64, shape ``(N, T)``.
        lengths: tokens of each report, int64, shape ``(N,)``, on the CPU.
    """

    visual_tokens: Tensor
    input_ids: Tensor
    lengths: Tensor


class RetrievalTask(BaseTask):
    """Fine-tunes a backbone to tell matching from non-matching pairs, and searches by it.

    Training and validation need non-matching pairs: give the data module ``negatives="labels"``. A test lets
    every test image search among the reports of a trial, and every report among the images; a candidate is positive
    where its set of positive labels equals the query's. Each image passes the CNN once, however many pairs it is in.

    ``predict`` with ``query_image`` or ``query_text`` searches the data for it; without a query it tells how well
    each image and its own report match.

    Args:
        backbone: arguments of :class:`MedViLL`.
        backbone_ckpt: start from this backbone instead.
        num_candidates: candidates of a trial, the query's own counterpart and others.
        full_gallery: rank the whole test split too, as the released code does.
        candidate_seed: the trials follow from it alone.
        query_image: for ``predict``, an image file whose reports are searched for.
        query_text: for ``predict``, a text whose images are searched for.
        lr: learning rate of AdamW.
        weight_decay: of all weights but biases and norms.
        warmup_steps: optimizer steps over which the rate rises linearly.
        schedule: the rate after that: ``constant`` (the paper), or ``linear``, down to 0 at the end of the run.
        compile: run the backbone through ``torch.compile``.
        seed: seed of dropout.

    Raises:
        ValueError: if there are fewer than 2 candidates, or both queries are given.
        FileNotFoundError: if there is no such query image.
    """

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
    ) -> None:
        super().__init__(backbone, backbone_ckpt, lr, weight_decay, warmup_steps, compile, seed, schedule)
        backbone = dict(self.backbone.hparams)  # type: ignore[assignment]
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

    def setup(self, stage: str) -> None:
        """Build what every task needs; before a test, see that the pool is large enough.

        Raises:
            ValueError: if the test split has fewer pairs than a trial has candidates.
        """
        super().setup(stage)
        datasets = getattr(getattr(self.trainer, "datamodule", None), "datasets", {})
        if stage == "test" and "test" in datasets:
            check_gallery(len(datasets["test"]), self.num_candidates)

    def on_train_start(self) -> None:
        """Refuse data without non-matching pairs before the first step."""
        need_negatives(self)

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

    # -- trials ----------------------------------------------------------------------------------

    def on_test_epoch_start(self) -> None:
        """Begin with an empty pool."""
        super().on_test_epoch_start()
        self._entries: list[_Entry] = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Put images and their own reports into the pool; the search begins when all are there."""
        if batch_idx == 0:
            self.first_test_batch = batch
        # The batch may lend an image another's report; the pool takes its own.
        ids = self.encode_texts(batch["report"])
        visual_tokens = self.backbone.encode_image(batch["image"]).cpu()
        self._entries += map(_Entry, batch["id"], visual_tokens, ids, batch["labels"].tolist())

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        """Turn texts into ids, cut to the backbone's limit, each with its SEP_L."""
        tokenizer, limit = self.backbone.tokenizer, self.backbone.hparams["max_tokens"]
        return [[*ids[:limit], tokenizer.sep_id] for ids in tokenizer.encode(texts)]

    def finish_results(self, stage: str) -> Rows:
        """Rank every trial's candidates; this process gives the trials of its share of the queries."""
        if stage != "test":
            return super().finish_results(stage)
        entries = sorted(gather(self._entries, self.trainer), key=lambda entry: entry.id)
        self._entries = []
        return self._rank(entries)

    def _rank(self, entries: list[_Entry]) -> Rows:
        labels = np.array([entry.labels for entry in entries], dtype=np.float32)
        sets, prior = label_set_keys(labels), self._log_prior(labels)
        searches: list[tuple[Direction, Gallery, NDArray[np.int64]]] = []
        for direction in DIRECTIONS:
            seed = derive_seed(self.candidate_seed, direction)
            searches.append((direction, "candidates", draw_candidate_sets(len(entries), self.num_candidates, seed)))
            if self.full_gallery:
                searches.append((direction, "full", draw_candidate_sets(len(entries), len(entries), seed)))
        scores = self._score_searches(entries, searches)
        rows: list[dict[str, Any]] = []
        for direction, gallery, candidates in searches:
            for query in range(self.global_rank, len(entries), self.trainer.world_size):
                chosen = candidates[query]
                of_query = scores[query, chosen] if direction == "image_to_report" else scores[chosen, query]
                is_positive = sets[chosen] == sets[query]
                by_frequency = None if prior is None else rank_candidates(prior[chosen], is_positive).first_rank
                rows.append(
                    {"id": entries[query].id, "direction": direction, "gallery": gallery}
                    | rank_candidates(of_query, is_positive)._asdict()
                    | {"frequency_first_rank": by_frequency}
                )
        return rows

    def _score_searches(
        self, entries: list[_Entry], searches: list[tuple[Direction, Gallery, NDArray[np.int64]]]
    ) -> NDArray[np.float32]:
        """Score the pairs that the searches need, each once: rows are images, columns reports; the others are NaN."""
        size = len(entries)
        is_needed = np.zeros((size, size), dtype=bool)
        for direction, _, candidates in searches:
            queries = np.arange(size)[:, None]
            where = (queries, candidates) if direction == "image_to_report" else (candidates, queries)
            is_needed[where] = True
        pool = self.make_gallery(
            torch.stack([entry.visual_tokens for entry in entries]), [entry.ids for entry in entries]
        )
        mine = np.argwhere(is_needed)[self.global_rank :: self.trainer.world_size]
        with self.trainer.precision_plugin.forward_context():  # an epoch's end is outside of it
            of_mine = self.score_pairs(pool, mine)
        scores = np.full((size, size), np.nan, dtype=np.float32)
        for pairs, values in gather([(mine, of_mine)], self.trainer):
            scores[pairs[:, 0], pairs[:, 1]] = values
        return scores

    def make_gallery(self, visual_tokens: Tensor, texts: list[list[int]]) -> Pool:
        """Lay images and reports ready on the task's device.

        Args:
            visual_tokens: of each image, shape ``(N, K, d)``.
            texts: what :meth:`encode_texts` gave, N lists.
        """
        input_ids, text_mask = self.pad(texts)
        return Pool(visual_tokens.to(self.device), input_ids, text_mask.sum(1).cpu())

    @torch.no_grad()
    def score_pairs(self, pool: Pool, pairs: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score pairs of a pool's images and reports.

        Args:
            pool: images and reports.
            pairs: places of image and report in the pool, int64, shape ``(P, 2)``.

        Returns:
            Matching logits, shape ``(P,)``.
        """
        if not len(pairs):
            return np.zeros(0, dtype=np.float32)
        order = pool.lengths[pairs[:, 1]].argsort(stable=True)  # like lengths together: little padding
        scores = []
        for places in torch.split(order, PAIRS_AT_ONCE):
            images, reports = torch.from_numpy(pairs)[places].T
            lengths = pool.lengths[reports]
            text_mask = torch.arange(int(lengths.max())) < lengths[:, None]
            input_ids = pool.input_ids[reports.to(self.device), : text_mask.shape[1]]
            tokens = pool.visual_tokens[images.to(self.device)]
            scores.append(self(tokens, input_ids, text_mask.to(self.device)).float())
        values = np.empty(len(pairs), dtype=np.float32)
        values[order.numpy()] = torch.cat(scores).cpu().numpy()  # the device is waited for once, here
        return values

    def pad(self, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Put encoded texts together: ids and mask, both of shape ``(B, T)``, on the task's device."""
        lengths = torch.tensor([len(ids) for ids in texts])
        padded = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in texts], True, self.backbone.tokenizer.pad_id)
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        return padded.to(self.device), mask.to(self.device)

    def _log_prior(self, labels: NDArray[np.float32]) -> NDArray[np.float64] | None:
        """How likely each label set is by the findings' frequencies in training; None without a training split."""
        examples = self.training_examples()
        if examples is None:
            return None
        frequency = np.clip((examples.labels == 1).mean(axis=0), 1e-6, 1 - 1e-6)
        is_positive = labels == 1
        prior: NDArray[np.float64] = is_positive @ np.log(frequency) + ~is_positive @ np.log(1 - frequency)
        return prior

    # -- search ----------------------------------------------------------------------------------

    def on_predict_start(self) -> None:
        """Make the query ready; a query image stays as ``query_pixels``, uint8, shape ``(H, W)``."""
        self._query_tokens: Tensor | None = None
        self.query_pixels: Tensor | None = None
        if self.query_image:
            from medvill_pl.data.images import read_square

            is_truncated = getattr(getattr(self.trainer, "datamodule", None), "cut_margins", True)  # as those searched
            pixels = read_square(Path(self.query_image), self.backbone.hparams["image_size"], is_truncated)
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
        if getattr(self, "_query_tokens", None) is not None:
            tokens = self._query_tokens.expand(size, -1, -1)  # type: ignore[union-attr]
        else:
            tokens = self.backbone.encode_image(batch["image"])
        if self.query_text:
            input_ids, text_mask = self.pad(self.encode_texts([self.query_text]) * size)
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
