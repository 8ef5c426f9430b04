"""BackboneTask: what is trained and what is frozen, checkpoints of today and of version 0.1."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, LearningRateFinder
from lightning.pytorch.tuner.tuning import Tuner
from torch import Tensor, nn

from medvill_pl import (
    BackboneConfig,
    BaseTask,
    Batch,
    ClassificationTask,
    GenerationTask,
    MedViLL,
    PretrainingTask,
    StepOutput,
    SyntheticDataModule,
    load_backbone,
)

MakeTrainer = Callable[..., Trainer]
V0_1 = Path(__file__).parents[1] / "assets" / "v0_1"


def make_data(**arguments: Any) -> SyntheticDataModule:
    sizes = {"num_train": 8, "num_val": 4, "num_test": 4, "batch_size": 4, "negatives": "labels", "num_workers": 0}
    return SyntheticDataModule(**(sizes | arguments))


class Modes(Callback):
    """Notes which modules are in training mode, and which weights are trained, while a batch is trained on."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # type: ignore[override]
        self.training = {name for name, module in pl_module.named_modules() if module.training}
        self.trained = {name for name, weight in pl_module.named_parameters() if weight.requires_grad}


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(before: Mapping[str, Tensor], module: nn.Module) -> set[str]:
    after = module.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


# -- what is trained -------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [lambda part: part.requires_grad_(False), lambda part: part.freeze()])
def test_what_a_user_froze_is_not_trained(
    freeze: Callable[[Any], object], tiny: BackboneConfig, make_trainer: MakeTrainer
) -> None:
    task = ClassificationTask(tiny, lr=0.1)
    freeze(task.backbone)
    before, modes = weights_of(task), Modes()
    make_trainer(callbacks=[modes]).fit(task, datamodule=make_data())
    assert changed(before, task) == {"head.weight", "head.bias"}  # BatchNorm's statistics neither
    assert not any(weight.requires_grad for weight in task.backbone.parameters())


def test_part_that_a_user_froze_stays_frozen_and_its_batch_norm_as_it_is(
    tiny: BackboneConfig, make_trainer: MakeTrainer
) -> None:
    task = PretrainingTask(tiny, lr=0.1)
    task.backbone.image_encoder.requires_grad_(False)
    before = weights_of(task)
    make_trainer().fit(task, datamodule=make_data())
    assert not any(name.startswith("backbone.image_encoder") for name in changed(before, task))
    assert "backbone.pooler.dense.weight" in changed(before, task)


def test_frozen_base_weights_of_an_adapter_are_not_switched_on(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    task = PretrainingTask(tiny, lr=0.1)
    base = task.backbone.pooler.dense
    base.requires_grad_(False)
    task.adapter = nn.Linear(2, 2)  # as LoRA puts trained weights beside frozen ones
    before = weights_of(base)
    make_trainer(strategy="auto").fit(task, datamodule=make_data())
    assert changed(before, base) == set()


@pytest.mark.parametrize("cls", [ClassificationTask, PretrainingTask, GenerationTask])
def test_linear_probe_trains_the_heads_alone_and_leaves_no_trace(
    cls: type[Any], tiny: BackboneConfig, make_trainer: MakeTrainer
) -> None:
    task, modes = cls(tiny, lr=0.1, freeze_backbone=True), Modes()
    before = weights_of(task)
    make_trainer(callbacks=[modes]).fit(task, datamodule=make_data())
    assert changed(before, task)
    touched = changed(before, task) | modes.training | modes.trained
    touched -= {name for name in touched if "mlm_head" in name and cls is not ClassificationTask}
    assert {name for name in touched if name.startswith("backbone.")} == set()
    assert all(weight.requires_grad for weight in task.backbone.parameters())


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_what_a_stage_switched_off_is_switched_on_again(
    stage: str, tiny: BackboneConfig, make_trainer: MakeTrainer
) -> None:
    task, modes = ClassificationTask(tiny), Modes()
    getattr(make_trainer(callbacks=[modes], limit_val_batches=1), stage)(task, datamodule=make_data())
    assert all(weight.requires_grad for weight in task.parameters())
    if stage == "fit":
        assert not any(name.startswith("backbone.mlm_head") for name in modes.trained)


def test_masked_tokens_are_shown_without_a_change_of_modes(tiny: BackboneConfig) -> None:
    task, data = PretrainingTask(tiny), make_data()
    task.train()
    task.backbone.pooler.eval()
    data.connect(task.input_spec)
    data.setup("fit")
    batch = task.masking(next(iter(data.val_dataloader())))
    modes = [module.training for module in task.modules()]
    task.fill_masks(batch)
    assert [module.training for module in task.modules()] == modes
    with pytest.raises(KeyError):
        task.fill_masks(Batch(id=batch["id"], image=batch["image"]))  # type: ignore[typeddict-item]
    assert [module.training for module in task.modules()] == modes


# -- Lightning's own tools -------------------------------------------------------------------------


def test_constant_rate_has_no_scheduler(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    for arguments, number in (({}, 0), ({"warmup_steps": 2}, 1), ({"schedule": "linear"}, 1)):
        trainer = make_trainer()
        trainer.fit(PretrainingTask(tiny, **arguments), datamodule=make_data())  # type: ignore[arg-type]
        assert len(trainer.lr_scheduler_configs) == number


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_backbone_can_be_unfrozen_later(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    task = ClassificationTask(tiny, lr=1e-2)
    finetuning, before = BackboneFinetuning(unfreeze_backbone_at_epoch=1), weights_of(task)
    trainer = make_trainer(max_steps=-1, max_epochs=2, callbacks=[finetuning])
    trainer.fit(task, datamodule=make_data())
    assert "backbone.pooler.dense.weight" in changed(before, task)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_learning_rate_can_be_searched(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    task = ClassificationTask(tiny, lr=1e-3)
    finder = LearningRateFinder(num_training_steps=4, early_stop_threshold=None)
    make_trainer(callbacks=[finder]).fit(task, datamodule=make_data())
    assert finder.optimal_lr is not None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_batch_size_can_be_scaled(tiny: BackboneConfig, make_trainer: MakeTrainer) -> None:
    task, data, trainer = ClassificationTask(tiny), make_data(batch_size=1), make_trainer(enable_checkpointing=True)
    found = Tuner(trainer).scale_batch_size(task, datamodule=data, max_trials=2, steps_per_trial=1)
    assert found == data.batch_size == 4


# -- checkpoints -----------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tiny: BackboneConfig, make_trainer: MakeTrainer, tmp_path: Path) -> Path:
    """A checkpoint of classification from the image alone."""
    trainer = make_trainer()
    trainer.fit(ClassificationTask(tiny, use_report=False), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    return tmp_path / "task.ckpt"


def test_backbone_given_anew_has_the_same_tokenizer(tiny: BackboneConfig, checkpoint: Path) -> None:
    task = ClassificationTask.load_from_checkpoint(checkpoint, backbone=tiny)
    assert (task.use_report, task.backbone.tokenizer.vocab_size) == (False, 272)


def test_checkpoint_is_not_tested_with_another_input(
    tiny: BackboneConfig, checkpoint: Path, make_trainer: MakeTrainer
) -> None:
    with pytest.raises(ValueError, match="use_report is False there and True here"):
        make_trainer().test(ClassificationTask(tiny, use_report=True), datamodule=make_data(), ckpt_path=checkpoint)
    with pytest.raises(ValueError, match="use_report is False there and True here"):
        ClassificationTask.load_from_checkpoint(checkpoint, use_report=True)
    with pytest.raises(ValueError, match="uncertain is negative there and ignore here"):
        ClassificationTask.load_from_checkpoint(checkpoint, uncertain="ignore")


def test_checkpoint_of_version_0_1_gives_the_same_backbone() -> None:
    backbone, expected = load_backbone(str(V0_1 / "pretraining.ckpt")).eval(), torch.load(V0_1 / "outputs.pt")
    inputs = {"images": expected["image"], "input_ids": expected["input_ids"], "text_mask": expected["text_mask"]}
    for strategy, outputs in expected["outputs"].items():
        with torch.no_grad():
            output = backbone(**inputs, mask_strategy=strategy)
        torch.testing.assert_close(output.pooled, outputs["pooled"], atol=1e-6, rtol=0)
        torch.testing.assert_close(output.text, outputs["text"], atol=1e-6, rtol=0)


def test_checkpoint_of_version_0_1_loads_with_the_arguments_renamed() -> None:
    task = GenerationTask.load_from_checkpoint(V0_1 / "generation.ckpt")
    assert (task.decoding.max_new_tokens, task.decoding.min_new_tokens) == (6, 2)
    assert task.backbone.hparams["image_encoder"] == "resnet_tiny"


def test_run_of_version_0_1_is_resumed_with_its_optimizer(make_trainer: MakeTrainer) -> None:
    hparams = torch.load(V0_1 / "pretraining.ckpt")["hyper_parameters"]
    task = PretrainingTask.load_from_checkpoint(V0_1 / "pretraining.ckpt")
    trainer = make_trainer(max_steps=3)
    trainer.fit(task, datamodule=make_data(bucket_batches=1), ckpt_path=V0_1 / "pretraining.ckpt")
    assert trainer.global_step == 3  # the checkpoint had two
    steps = {int(state["step"]) for state in trainer.optimizers[0].state_dict()["state"].values()}
    assert (steps, hparams["lr"]) == ({3}, task.lr)


class FixedBackboneTask(ClassificationTask):
    """Takes no argument for its backbone."""

    def __init__(self, lr: float = 1e-3) -> None:
        sizes: BackboneConfig = {"hidden_size": 8, "num_layers": 1, "num_heads": 1, "intermediate_size": 8}
        super().__init__({"image_encoder": "resnet_tiny", "image_size": 32, "tokenizer": "synthetic"} | sizes, lr=lr)


def test_task_that_fixes_its_backbone_loads(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.fit(FixedBackboneTask(lr=2e-3), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    task = FixedBackboneTask.load_from_checkpoint(tmp_path / "task.ckpt")
    assert (task.lr, task.input_spec.image_size) == (2e-3, 32)


# -- a task without a backbone ---------------------------------------------------------------------


class MeanTask(BaseTask):
    """Knows no backbone: predicts findings from the mean of the pixels."""

    score_fn = "medvill_pl.evaluation.classification.classification_scores"

    def __init__(self) -> None:
        super().__init__(lr=1e-2)
        self.head = nn.Linear(1, 14)

    def step(self, batch: Batch) -> StepOutput:
        logits = self.head(batch["image"].float().mean((1, 2, 3))[:, None] / 255)
        target = (batch["labels"] == 1).float()
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target)
        return StepOutput(loss, results={"id": batch["id"], "probability": logits.sigmoid(), "label": target})

    def score_context(self, stage: str, rows: Any) -> dict[str, Any]:
        return {"findings": [str(number) for number in range(14)], "threshold": None, "frequency": None}

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        return [{"id": name} for name in batch["id"]]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_task_without_a_backbone_runs_through_all_stages(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    task, data = MeanTask(), make_data(image_size=64)
    trainer = make_trainer(limit_val_batches=1.0)
    trainer.fit(task, datamodule=data)
    (scores,) = trainer.test(task, datamodule=data, verbose=False)
    assert "test/auroc_micro" in scores
    assert (tmp_path / "test.parquet").is_file()
    assert not any(isinstance(module, MedViLL) for module in task.modules())
