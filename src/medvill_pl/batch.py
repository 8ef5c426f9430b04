"""What a batch is: shapes, dtypes, ranges; the vocabulary of findings; and how randomness is seeded."""

import hashlib
from typing import Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Lesion",
    "Lung Opacity",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The 14 observations of the CheXpert labeler, in its order. Labels are columns in this order."""

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Batch(TypedDict):
    """A batch of image-report pairs, padded to its longest text.

    Attributes:
        id: one identifier per pair, for messages and tables.
        image: grey pixels 0 (black) to 255 (white), uint8, shape ``(B, 1, H, W)``.
        input_ids: tokens of the report and SEP_L, then padding, int64, shape ``(B, T)``.
        text_mask: True at real tokens, bool, shape ``(B, T)``.
        labels: findings of the image: 1 positive, 0 negative, -1 uncertain, NaN not mentioned,
            float32, shape ``(B, 14)``.
        matched: True where image and report belong together, bool, shape ``(B,)``.
        is_truncated: True where the report was longer than the limit, so that its SEP_L is no true end, bool,
            shape ``(B,)``.
        seed: seed of each pair's own randomness, int64, shape ``(B,)``.
        mlm_input_ids: in pre-training, ``input_ids`` with tokens masked, int64, shape ``(B, T)``.
        mlm_positions: in pre-training, the positions to predict, as indices into the flattened
            ``(B * T)`` batch, int64, shape ``(M,)``.
        mlm_targets: in pre-training, the tokens that were there, int64, shape ``(M,)``.
        report: outside training, the whole text that belongs to each image, whatever ``input_ids`` hold.
        answer: in question answering, the answer to each question (``input_ids`` hold the question).
        answer_type: in question answering, ``closed`` or ``open``, one per question.
        question_type: in question answering, what is asked about, one per question.
        organ: in question answering, the organ that the image shows, one per question.
        other_image: in the test of question answering, the image of another question, as ``image``.

    Example:
        >>> from medvill_pl import SyntheticDataModule
        >>> data = SyntheticDataModule(num_train=4, num_val=4, num_test=4, image_size=64, batch_size=2)
        >>> data.setup("test")
        >>> batch = next(iter(data.test_dataloader()))
        >>> batch["image"].shape, batch["image"].dtype, batch["labels"].shape
        (torch.Size([2, 1, 64, 64]), torch.uint8, torch.Size([2, 14]))
    """

    id: list[str]
    image: Tensor
    input_ids: Tensor
    text_mask: Tensor
    labels: Tensor
    matched: Tensor
    is_truncated: Tensor
    seed: Tensor
    mlm_input_ids: NotRequired[Tensor]
    mlm_positions: NotRequired[Tensor]
    mlm_targets: NotRequired[Tensor]
    report: NotRequired[list[str]]
    answer: NotRequired[list[str]]
    answer_type: NotRequired[list[str]]
    question_type: NotRequired[list[str]]
    organ: NotRequired[list[str]]
    other_image: NotRequired[Tensor]


def derive_seed(*parts: int | str) -> int:
    """Derive a seed from the names of a draw, such as ``(seed, epoch, index)``.

    Equal parts give equal seeds on every machine, different ones unrelated seeds, so randomness
    needs no state that a checkpoint would have to carry.

    Returns:
        An integer in ``[0, 2**63)``.

    Example:
        >>> derive_seed(0, "order", 1) == derive_seed(0, "order", 1), derive_seed(12, 3) == derive_seed(1, 23)
        (True, False)
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def label_set_keys(labels: NDArray[np.float32]) -> NDArray[np.int64]:
    """Number the sets of positive labels: two images match where their numbers are equal.

    Only 1 counts as positive; the set without any positive label is a set like the others.

    Args:
        labels: 1, 0, -1 or NaN (not mentioned), float32, shape ``(N, 14)``.

    Returns:
        int64, shape ``(N,)``.

    Example:
        >>> label_set_keys(np.array([[1, 0, 1], [1, np.nan, 1], [0, 1, -1], [0, 0, 0]], np.float32))
        array([5, 5, 2, 0])
    """
    # Bit i of a number is the positive label i, so equal numbers are equal sets, and no table of sets is needed.
    keys: NDArray[np.int64] = (labels == 1).astype(np.int64) @ (1 << np.arange(labels.shape[1], dtype=np.int64))
    return keys
