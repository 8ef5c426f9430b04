"""Masked tokens for a batch: what pre-training and report generation predict (MedViLL, Sec. III-B.4)."""

from dataclasses import dataclass

import torch

from medvill_pl.batch import Batch
from medvill_pl.tokenizer import ReportTokenizer, mask_tokens


@dataclass(frozen=True)
class TokenMasking:
    """Adds masked tokens to a batch; each pair's draw follows from its seed alone.

    Data modules call it in their worker processes, so that the main process and the device never wait for it.

    Args:
        tokenizer: the backbone's.
        probability: share of tokens to mask, 0 to 1.
        non_matching: predict masked tokens of non-matching pairs too; they are masked in any case, so that masks do
            not tell matching from non-matching pairs.
        ends: in half of the reports that are not truncated, mask SEP_L too.

    Example:
        >>> import torch
        >>> tokenizer = ReportTokenizer.load("synthetic")
        >>> ids = torch.tensor([[*tokenizer.encode(["No pneumothorax."])[0], tokenizer.sep_id]])
        >>> batch = Batch(input_ids=ids, text_mask=torch.ones_like(ids).bool(), seed=torch.tensor([0]),
        ...               matched=torch.tensor([True]), is_truncated=torch.tensor([False]))
        >>> masked = TokenMasking(tokenizer, 0.15)(batch)
        >>> masked["mlm_positions"].shape == masked["mlm_targets"].shape
        True
    """

    tokenizer: ReportTokenizer
    probability: float
    non_matching: bool = False
    ends: bool = False

    def __call__(self, batch: Batch) -> Batch:
        """Add ``mlm_input_ids``, ``mlm_positions`` and ``mlm_targets``, on the device of the batch.

        A batch on a GPU is copied to the CPU for it, which waits for the device.
        """
        device = batch["input_ids"].device
        predicted = torch.ones_like(batch["matched"]) if self.non_matching else batch["matched"]
        masked = mask_tokens(
            batch["input_ids"].cpu(),
            batch["text_mask"].cpu(),
            batch["seed"].cpu(),
            self.tokenizer,
            predicted.cpu(),
            self.probability,
            ~batch["is_truncated"].cpu() if self.ends else None,
        )
        batch = batch.copy()
        batch["mlm_input_ids"] = masked.input_ids.to(device)
        batch["mlm_positions"] = masked.positions.to(device)
        batch["mlm_targets"] = masked.targets.to(device)
        return batch
