"""What the demo trains, on what, and for how long."""

from typing import Literal, NamedTuple, TypedDict, cast

from medvill_pl import (
    BackboneConfig,
    BaseDataModule,
    BaseTask,
    ClassificationTask,
    GenerationTask,
    ImageClassifier,
    MaskStrategy,
    MedViLL,
    PretrainingTask,
    RetrievalTask,
    SyntheticDataModule,
    SyntheticVQADataModule,
    VQATask,
)
from medvill_pl.synthetic.datamodule import SyntheticQuestions

STRATEGY = MaskStrategy.BAR
TASKS = ("generation", "vqa", "retrieval", "classification")  # the longest first
BACKBONE: BackboneConfig = {
    "image_encoder": "resnet_small",
    "freeze_image_encoder_stages": 5,
    "image_size": 128,
    "tokenizer": "synthetic",
    "max_tokens": 120,
    "hidden_size": 96,
    "num_layers": 2,
    "num_heads": 8,
    "intermediate_size": 192,
    "dropout": 0.0,
    "channels_last": True,
}
"""A small backbone whose image encoder is trained before, and then stays as it is."""


class Budget(NamedTuple):
    """How much the demo does, in images, steps and epochs: the same on every machine, however busy.

    Attributes:
        num_images: images of other patients that the image encoder is trained on.
        num_train: pairs to train on.
        num_test: pairs of the validation and of the test split.
        num_retrieved: pairs of the test split that are searched.
        image_encoder_steps: optimizer steps of the image encoder, with 48 images each.
        pretraining: epochs of pre-training.
        classification: epochs of fine-tuning for this task, as the next three.
        retrieval: likewise.
        vqa: likewise.
        generation: likewise.
    """

    num_images: int = 5000
    num_train: int = 8000
    num_test: int = 400
    num_retrieved: int = 100
    image_encoder_steps: int = 1100
    pretraining: int = 5
    classification: int = 2
    retrieval: int = 3
    vqa: int = 2
    generation: int = 4


DEFAULT = Budget()
FULL = Budget(
    num_images=10000,
    num_train=16000,
    num_retrieved=200,
    image_encoder_steps=3000,
    pretraining=6,
    classification=2,
    retrieval=3,
    vqa=2,
    generation=8,
)


class Data(NamedTuple):
    """The data module of each part; all but the first show the same images.

    Attributes:
        image_encoder: images of other patients than all the others.
        pretraining: pairs, half of them non-matching.
        generation: pairs.
        classification: pairs.
        retrieval: pairs, half of those in training non-matching; its test split is what is searched.
        vqa: questions.
    """

    image_encoder: SyntheticDataModule
    pretraining: SyntheticDataModule
    generation: SyntheticDataModule
    classification: SyntheticDataModule
    retrieval: SyntheticDataModule
    vqa: SyntheticVQADataModule

    def of(self, task: str) -> BaseDataModule:
        """The data module of one of the four tasks."""
        module: BaseDataModule = self._asdict()[task]
        return module


def make_data(budget: Budget, seed: int) -> Data:
    """The data modules, connected to the backbone, with all texts tokenised; no image is drawn yet."""

    def pairs(batch_size: int, num_test: int = budget.num_test, has_negatives: bool = False) -> SyntheticDataModule:
        return SyntheticDataModule(
            num_train=budget.num_train,
            num_val=budget.num_test,
            num_test=num_test,
            batch_size=batch_size,
            negatives="labels" if has_negatives else "none",
            bucket_batches=8,
            seed=seed,
        )

    data = Data(
        image_encoder=SyntheticDataModule(budget.num_images, 1, 1, batch_size=48, seed=seed, corpus_seed=1),
        pretraining=pairs(32, has_negatives=True),
        generation=pairs(16),
        classification=pairs(32),
        retrieval=pairs(16, budget.num_retrieved, has_negatives=True),
        vqa=SyntheticVQADataModule(budget.num_train, budget.num_test, budget.num_test, batch_size=64, seed=seed),
    )
    spec = MedViLL(**BACKBONE).input_spec
    for module in data:
        module.connect(spec)
        module.setup("fit")
        module.setup("test")
    return data


def make_classifier(budget: Budget, seed: int) -> ImageClassifier:
    """The image encoder with its own findings head, in place of the ImageNet weights that the paper starts from."""
    return ImageClassifier(
        image_encoder=BACKBONE["image_encoder"],
        image_size=BACKBONE["image_size"],
        tokenizer=BACKBONE["tokenizer"],
        max_tokens=BACKBONE["max_tokens"],
        channels_last=BACKBONE["channels_last"],
        token_weight=0.2,
        max_shift=4,
        lr=6e-3,
        warmup_steps=budget.image_encoder_steps // 5,
        schedule="linear",
        seed=seed,
    )


def make_pretraining(backbone: MedViLL, seed: int) -> PretrainingTask:
    """A backbone to be pre-trained by MLM and IRM."""
    return PretrainingTask.from_backbone(
        backbone,
        mask_strategy=STRATEGY.value,
        num_visual_samples=None,
        mlm_probability=0.3,
        lr=3e-3,
        warmup_steps=100,
        schedule="linear",
        seed=seed,
    )


class _Schedule(TypedDict):
    warmup_steps: int
    schedule: Literal["linear"]
    seed: int


def make_task(name: str, backbone: MedViLL, data: Data, seed: int) -> BaseTask:
    """One of the four tasks on a pre-trained backbone, which becomes its own."""
    schedule: _Schedule = {"warmup_steps": 50, "schedule": "linear", "seed": seed}
    if name == "classification":
        return ClassificationTask.from_backbone(backbone, use_report=False, lr=2e-3, **schedule)
    if name == "retrieval":
        num_candidates = min(100, len(data.retrieval.datasets["test"]))
        return RetrievalTask.from_backbone(backbone, num_candidates=num_candidates, lr=1e-3, **schedule)
    if name == "vqa":
        questions = cast(SyntheticQuestions, data.vqa.datasets["train"].examples)
        return VQATask.from_backbone(backbone, answers=sorted(set(questions.answers)), lr=1.5e-3, **schedule)
    return GenerationTask.from_backbone(backbone, objective="every_word", lr=3e-3, weight_decay=0.1, **schedule)
