"""BaseTask: stages, optimizer, checkpoints and backbones, for any task."""

import copy
import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy

from medvill_pl import (
    BackboneTask,
    BaseTask,
    ClassificationTask,
    GenerationTask,
    MedViLL,
    PretrainingTask,
    ReportTokenizer,
    RetrievalTask,
    StepOutput,
    SyntheticDataModule,
    SyntheticVQADataModule,
    VQATask,
)
from medvill_pl.batch import Batch
from medvill_pl.models.image_encoder import make_cnn
from medvill_pl.models.medvill import BackboneConfig
from medvill_pl.tasks.step import NonFiniteLossError

MakeTrainer = Callable[..., Trainer]


class NormalityTask(BackboneTask):
    """The smallest task: is the image normal?"""

    def __init__(self, backbone: BackboneConfig | None = None, backbone_ckpt: str | None = None) -> None:
        super().__init__(backbone, backbone_ckpt, lr=1e-2)
        self.save_hyperparameters()
        self.head = nn.Linear(self.backbone.hparams["hidden_size"], 1)

    def metrics(self, stage: str) -> Mapping[str, MetricCollection]:
        return {"normality": MetricCollection({"accuracy": BinaryAccuracy()})}

    def step(self, batch: Batch) -> StepOutput:
        output = self.backbone(images=batch["image"], input_ids=batch["input_ids"], text_mask=batch["text_mask"])
        logits, target = self.head(output.pooled).squeeze(1), batch["labels"][:, 0] == 1
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target.float())
        return StepOutput(loss, {"normality": (logits.sigmoid(), target)})


class PoisonedTask(PretrainingTask):
    """Has a loss that is ``poison`` in the third step."""

    poison = float("nan")

    def step(self, batch: Batch) -> StepOutput:
        output = super().step(batch)
        return output._replace(loss=output.loss * self.poison) if self.global_step == 2 else output


class Watcher(Callback):
    """Notes learning rates, and weights and pairs as they were when the last batch began."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.modes: set[bool] = set()
        self.parameters: dict[str, Tensor] = {}
        self.ids: list[str] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.modes |= {module.training for module in pl_module.modules()}
        self.parameters = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        self.ids = batch["id"]


@pytest.fixture
def data() -> SyntheticDataModule:
    return make_data()


def make_data(**arguments: Any) -> SyntheticDataModule:
    sizes = {"num_train": 8, "num_val": 6, "num_test": 6, "image_size": 64, "batch_size": 4}
    return SyntheticDataModule(**(sizes | {"negatives": "labels", "num_workers": 0} | arguments))


def make_task(backbone: BackboneConfig, **arguments: Any) -> PretrainingTask:
    torch.manual_seed(0)
    return PretrainingTask(backbone=backbone, **({"lr": 1e-2} | arguments))


def saved(task: BaseTask, trainer: Trainer, path: Path) -> Path:
    """Path of the checkpoint of a task that a trainer has fitted."""
    trainer.save_checkpoint(path)
    return path


@pytest.fixture
def checkpoint(tiny: BackboneConfig, data: SyntheticDataModule, make_trainer: MakeTrainer, tmp_path: Path) -> Path:
    """A checkpoint of pre-training, after one step."""
    trainer = make_trainer()
    trainer.fit(make_task(tiny), datamodule=data)
    return saved(trainer.lightning_module, trainer, tmp_path / "task.ckpt")


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# -- stages --------------------------------------------------------------------------------------


def normality(task: NormalityTask, batches: list[Batch]) -> tuple[float, float]:
    """Loss and accuracy over all pairs, worked out by hand."""
    task.eval()
    losses, hits = [], []
    for batch in batches:
        with torch.no_grad():
            output = task.backbone(images=batch["image"], input_ids=batch["input_ids"], text_mask=batch["text_mask"])
            probability = task.head(output.pooled).sigmoid().squeeze(1).double()
        is_normal = batch["labels"][:, 0] == 1
        losses += torch.where(is_normal, -probability.log(), -(1 - probability).log()).tolist()
        hits += ((probability > 0.5) == is_normal).tolist()
    return sum(losses) / len(losses), sum(hits) / len(hits)


def test_smallest_task_runs_through_all_stages_and_logs_under_their_names(
    tiny: BackboneConfig, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    # Batches of 4 and of 3 pairs: a mean of batches would not be the mean of pairs.
    data, logger = make_data(num_val=7, num_test=7, batch_size=4), CSVLogger(tmp_path)
    trainer = make_trainer(max_steps=-1, max_epochs=2, limit_val_batches=1.0, logger=logger, log_every_n_steps=1)
    task = NormalityTask(tiny)
    trainer.fit(task, datamodule=data)
    expected = normality(task, list(data.val_dataloader()))
    logged = trainer.callback_metrics
    assert logged.keys() == {"train/loss", "train/accuracy", "val/loss", "val/accuracy"}
    assert (logged["val/loss"].item(), logged["val/accuracy"].item()) == pytest.approx(expected, rel=1e-5)
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["train/loss"] != "" for row in rows) == trainer.global_step == 4

    trainer.test(task, datamodule=data)
    expected = normality(task, list(data.test_dataloader()))
    logged = trainer.callback_metrics
    assert logged.keys() == {"test/loss", "test/accuracy"}
    assert (logged["test/loss"].item(), logged["test/accuracy"].item()) == pytest.approx(expected, rel=1e-5)


def test_smallest_task_saves_and_loads_a_checkpoint(
    tiny: BackboneConfig, data: SyntheticDataModule, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    task, trainer = NormalityTask(tiny), make_trainer()
    trainer.fit(task, datamodule=data)
    path = saved(task, trainer, tmp_path / "normality.ckpt")
    assert same_weights(NormalityTask.load_from_checkpoint(path), task)
    assert same_weights(PretrainingTask(backbone_ckpt=str(path)).backbone, task.backbone)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops_training_before_the_step(
    poison: float, tiny: BackboneConfig, make_trainer: MakeTrainer
) -> None:
    task, watcher = PoisonedTask(backbone=tiny, lr=1e-2), Watcher()
    task.poison = poison
    trainer = make_trainer(max_steps=4, callbacks=[watcher])
    with pytest.raises(NonFiniteLossError, match=rf"^the train loss is {poison} at epoch 1, step 2; .*$") as error:
        trainer.fit(task, datamodule=make_data())
    assert all(name in str(error.value) for name in watcher.ids)
    assert len(watcher.ids) == 4
    assert all(torch.equal(p, watcher.parameters[name]) for name, p in task.named_parameters())
    assert trainer.global_step == 2


def test_validation_names_the_batch_whose_loss_is_nan(
    tiny: BackboneConfig, data: SyntheticDataModule, make_trainer: MakeTrainer
) -> None:
    task = make_task(tiny)
    nn.init.constant_(task.irm_head.bias, float("nan"))
    with pytest.raises(NonFiniteLossError, match="the val loss is nan") as error:
        make_trainer(limit_val_batches=1.0).validate(task, datamodule=data, verbose=False)
    assert all(name in str(error.value) for name in next(iter(data.val_dataloader()))["id"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 32}, "the data's image_size is 32, the model's 64: say it once"),
        (
            {"tokenizer": "vocab.txt"},
            r"the data's tokenizer \(6 tokens\) is not the model's \(272 tokens\): say it once",
        ),
        ({"max_tokens": 200}, "the data's max_tokens is 200, the model reads 120: say it once"),
    ],
    ids=["image_size", "tokenizer", "max_tokens"],
)
@pytest.mark.parametrize("stage", ["fit", "validate", "predict"])
def test_data_that_do_not_fit_the_backbone_are_refused(
    stage: str,
    arguments: dict[str, Any],
    message: str,
    tiny: BackboneConfig,
    make_trainer: MakeTrainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nno\n")
    with pytest.raises(ValueError, match=message) as error:
        getattr(make_trainer(), stage)(make_task(tiny), datamodule=make_data(**arguments))
    assert "\n" not in str(error.value)


def test_equal_tokenizer_from_another_file_fits(
    tiny: BackboneConfig, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    ReportTokenizer.load("synthetic").save(tmp_path / "tokenizer")
    trainer = make_trainer()
    trainer.fit(make_task(tiny), datamodule=make_data(tokenizer=str(tmp_path / "tokenizer" / "vocab.txt")))
    assert trainer.global_step == 1


# -- optimiser -----------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [0, 2])
def test_every_trainable_weight_is_in_one_group_and_biases_and_norms_do_not_decay(
    frozen: int, tiny: BackboneConfig, data: SyntheticDataModule, make_trainer: MakeTrainer
) -> None:
    task, trainer = make_task(tiny | {"freeze_image_encoder_stages": frozen}, weight_decay=0.25), make_trainer()
    trainer.fit(task, datamodule=data)
    decay = {id(p): group["weight_decay"] for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in trainer.optimizers[0].param_groups) == len(decay)

    tables = {"backbone.report_embedding.position", "backbone.visual_embedding.location"}
    matrices = {
        f"{name}.weight"
        for name, module in task.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding)
    }
    unused = tuple(f"backbone.{name}" for name in task.unused_parameters)
    trainable = {name: p for name, p in task.named_parameters() if p.requires_grad and not name.startswith(unused)}
    assert decay == {id(p): 0.25 if name in matrices | tables else 0.0 for name, p in trainable.items()}
    stem_is_trained = any(name.startswith("backbone.image_encoder.stages.0") for name in trainable)
    assert stem_is_trained == (frozen == 0)


@pytest.mark.parametrize(
    ("warmup_steps", "expected"), [(0, [1, 1, 1, 1, 1]), (1, [1, 1, 1, 1, 1]), (4, [0.25, 0.5, 0.75, 1, 1])]
)
def test_rate_rises_linearly_and_stays(
    warmup_steps: int, expected: list[float], tiny: BackboneConfig, data: SyntheticDataModule, make_trainer: MakeTrainer
) -> None:
    watcher = Watcher()
    make_trainer(max_steps=5, callbacks=[watcher]).fit(
        make_task(tiny, lr=2e-3, warmup_steps=warmup_steps), datamodule=data
    )
    assert watcher.rates == pytest.approx([2e-3 * share for share in expected])


def test_gradients_can_be_clipped(tiny: BackboneConfig, data: SyntheticDataModule, make_trainer: MakeTrainer) -> None:
    task, trainer = make_task(tiny), make_trainer(gradient_clip_val=1e-3)
    trainer.fit(task, datamodule=data)
    first_moments = [state["exp_avg"] for state in trainer.optimizers[0].state_dict()["state"].values()]
    norm = torch.cat([moment.flatten() / (1 - 0.9) for moment in first_moments]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)


# -- backbones -----------------------------------------------------------------------------------


def test_task_shares_the_backbone_object_it_is_made_from(
    backbone: MedViLL, data: SyntheticDataModule, make_trainer: MakeTrainer
) -> None:
    before = copy.deepcopy(backbone)
    task = PretrainingTask.from_backbone(backbone, mask_strategy="seq2seq", lr=1e-2)
    assert task.backbone is backbone
    assert same_weights(backbone, before)
    make_trainer().fit(task, datamodule=data)
    assert not torch.equal(backbone.cls_position_embedding, before.cls_position_embedding)


@pytest.mark.parametrize("strategy", ["bar", "non_crossing"])
def test_shared_backbone_trains_what_the_strategy_uses(
    strategy: str, backbone: MedViLL, data: SyntheticDataModule, make_trainer: MakeTrainer
) -> None:
    for name in ("bar", strategy):  # the first task leaves no trace
        trainer = make_trainer()
        trainer.fit(PretrainingTask.from_backbone(backbone, mask_strategy=name), datamodule=data)
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert (id(backbone.text_cls_position_embedding) in trained) == (strategy == "non_crossing")


class Outer(LightningModule):
    """A module of somebody else's, with an argument that is called like one of the backbone's."""

    def __init__(self, config: BackboneConfig, dropout: float = 0.9) -> None:
        super().__init__()
        self.backbone = MedViLL(**config)


@pytest.mark.parametrize("make", [make_task, Outer], ids=["task", "module"])
def test_backbone_within_a_module_knows_its_own_arguments_only(
    make: Callable[[BackboneConfig], BaseTask | Outer], tiny: BackboneConfig
) -> None:
    assert make(tiny).backbone.config() == MedViLL(**tiny).config()


def test_backbone_of_a_checkpoint_has_its_weights(checkpoint: Path) -> None:
    expected = PretrainingTask.load_from_checkpoint(checkpoint)
    task = PretrainingTask(backbone_ckpt=str(checkpoint), mask_strategy="seq2seq")
    assert same_weights(task.backbone, expected.backbone)
    assert not same_weights(task, expected)  # the heads are new
    assert task.backbone.trained_on == expected.backbone.trained_on


def test_backbone_of_a_saved_folder_has_its_weights(backbone: MedViLL, tmp_path: Path) -> None:
    backbone.trained_on = [{"name": "elsewhere", "pairs": 7, "credentialed": True}]
    backbone.save_pretrained(tmp_path / "backbone")
    task = PretrainingTask(backbone_ckpt=str(tmp_path / "backbone"))
    assert same_weights(task.backbone, backbone)
    assert task.backbone.trained_on == backbone.trained_on


@pytest.mark.parametrize("source", ["checkpoint", "folder", "object"])
def test_whatever_a_backbone_comes_from_it_trains_in_training_mode(
    source: str,
    backbone: MedViLL,
    checkpoint: Path,
    data: SyntheticDataModule,
    make_trainer: MakeTrainer,
    tmp_path: Path,
) -> None:
    backbone.save_pretrained(tmp_path / "folder")
    task = {
        "checkpoint": lambda: PretrainingTask(backbone_ckpt=str(checkpoint)),
        "folder": lambda: PretrainingTask(backbone_ckpt=str(tmp_path / "folder")),
        "object": lambda: PretrainingTask.from_backbone(MedViLL.from_pretrained(tmp_path / "folder")),
    }[source]()
    watcher = Watcher()
    make_trainer(callbacks=[watcher]).fit(task, datamodule=data)
    assert watcher.modes == {True}  # else dropout and BatchNorm would be off


TASKS = (ClassificationTask, RetrievalTask, VQATask, GenerationTask)


@pytest.mark.parametrize("cls", TASKS)
@pytest.mark.parametrize("source", ["checkpoint", "folder", "object", "none"])
def test_every_task_starts_from_any_backbone_and_trains_it(
    source: str,
    cls: type[BaseTask],
    backbone: MedViLL,
    tiny: BackboneConfig,
    checkpoint: Path,
    make_trainer: MakeTrainer,
    tmp_path: Path,
) -> None:
    backbone.save_pretrained(tmp_path / "folder")
    saved_one = PretrainingTask.load_from_checkpoint(checkpoint).backbone
    torch.manual_seed(1)
    task, expected = {
        "checkpoint": lambda: (cls(backbone_ckpt=str(checkpoint)), saved_one),
        "folder": lambda: (cls(backbone_ckpt=str(tmp_path / "folder")), backbone),
        "object": lambda: (cls.from_backbone(backbone), backbone),
        "none": lambda: (cls(backbone=tiny), None),
    }[source]()
    assert expected is None or same_weights(task.backbone, expected)
    before = task.backbone.cls_position_embedding.detach().clone()
    data = make_data()
    if cls is VQATask:
        data = SyntheticVQADataModule(num_train=8, num_val=4, num_test=4, image_size=64, batch_size=4)
    make_trainer().fit(task, datamodule=data)
    assert not torch.equal(task.backbone.cls_position_embedding, before)
    assert task.backbone.trained_on[-1]["name"] == data.name


@pytest.mark.parametrize("cls", TASKS)
def test_backbone_of_another_architecture_is_told_from_the_data(
    cls: type[BaseTask], tiny: BackboneConfig, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    MedViLL(**{**tiny, "image_size": 32}).save_pretrained(tmp_path / "small")
    data = make_data() if cls is not VQATask else SyntheticVQADataModule(8, 4, 4, image_size=64)
    with pytest.raises(ValueError, match="the data's image_size is 64, the model's 32: say it once"):
        make_trainer().fit(cls(backbone_ckpt=str(tmp_path / "small")), datamodule=data)


@pytest.mark.parametrize("cls", TASKS)
@pytest.mark.parametrize("stage", ["test", "predict"])
def test_checkpoint_of_another_task_is_refused_in_one_line(
    stage: str, cls: type[BaseTask], tiny: BackboneConfig, checkpoint: Path, make_trainer: MakeTrainer
) -> None:
    task = cls(backbone=tiny, num_candidates=2) if cls is RetrievalTask else cls(backbone=tiny)
    data = make_data() if cls is not VQATask else SyntheticVQADataModule(8, 4, 4, image_size=64)
    message = (
        f"^the checkpoint is of another task than {cls.__name__}: to start from its backbone, give it as backbone_ckpt$"
    )
    with pytest.raises(ValueError, match=message) as error:
        getattr(make_trainer(), stage)(task, datamodule=data, ckpt_path=checkpoint)
    assert "\n" not in str(error.value)


def test_backbone_and_backbone_ckpt_together_are_refused(tiny: BackboneConfig, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="give either backbone or backbone_ckpt"):
        PretrainingTask(backbone=tiny, backbone_ckpt=str(checkpoint))


@pytest.mark.parametrize("name", ["missing.ckpt", "missing/folder/of/backbone", "owner/name", "empty"])
def test_missing_backbone_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(FileNotFoundError, match=name) as error:
        PretrainingTask(backbone_ckpt=name)
    assert "\n" not in str(error.value)


def write_garbage(path: Path) -> None:
    path.write_bytes(b"this is no checkpoint")


def write_list(path: Path) -> None:
    torch.save([torch.zeros(2)], path)


def write_state_dict(path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), path)


def write_foreign_checkpoint(path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(2)}, "hyper_parameters": {"backbone": "resnet"}, "epoch": 3}, path)


@pytest.mark.parametrize("write", [write_garbage, write_list, write_state_dict, write_foreign_checkpoint])
def test_file_that_is_no_tasks_checkpoint_is_refused(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    write(path)
    with pytest.raises(ValueError, match=str(path)) as error:
        PretrainingTask(backbone_ckpt=str(path))
    assert "\n" not in str(error.value)


# -- checkpoints ---------------------------------------------------------------------------------


def assert_plain(value: Any, place: str = "") -> None:
    """Check that a value is made of what any reader of a checkpoint knows."""
    if isinstance(value, dict):
        for key, item in value.items():
            assert type(key) is str
            assert_plain(item, f"{place}/{key}")
    else:
        assert value is None or type(value) in (str, int, float, bool), f"{place} is a {type(value)}"


def test_checkpoint_stands_alone(
    tiny: BackboneConfig, data: SyntheticDataModule, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    tokenizer, vision, source = tmp_path / "vocab.txt", tmp_path / "vision.safetensors", tmp_path / "start.ckpt"
    ReportTokenizer.load("synthetic").save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "vocab.txt").rename(tokenizer)
    save_file(make_cnn("resnet_tiny").state_dict(), vision)
    first = make_trainer()
    first.fit(make_task(tiny | {"tokenizer": str(tokenizer), "image_encoder_weights": str(vision)}), datamodule=data)
    saved(first.lightning_module, first, source)
    second = make_trainer()
    task = PretrainingTask(backbone_ckpt=str(source), mask_strategy="non_crossing", num_visual_samples=None, lr=3e-3)
    second.fit(task, datamodule=data)
    path = saved(task, second, tmp_path / "task.ckpt")

    for file in (tokenizer, vision, source):
        file.unlink()
    loaded = PretrainingTask.load_from_checkpoint(path)
    assert same_weights(loaded, task)
    assert loaded.backbone.tokenizer == task.backbone.tokenizer
    assert (loaded.hparams["mask_strategy"], loaded.lr, loaded.num_visual_samples) == ("non_crossing", 3e-3, None)
    content = torch.load(path, weights_only=True)
    assert_plain(content["hyper_parameters"])
    assert str(tmp_path) not in str(content["hyper_parameters"])


def test_loaded_checkpoint_goes_on_training(
    checkpoint: Path, data: SyntheticDataModule, make_trainer: MakeTrainer
) -> None:
    task, trainer = PretrainingTask.load_from_checkpoint(checkpoint), make_trainer(max_steps=2)
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint)
    assert trainer.global_step == 2


def test_saving_leaves_the_task_as_it_was(
    tiny: BackboneConfig, data: SyntheticDataModule, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    task, trainer = make_task(tiny), make_trainer()
    trainer.fit(task, datamodule=data)
    before = copy.deepcopy(dict(task.hparams))
    saved(task, trainer, tmp_path / "task.ckpt")
    assert dict(task.hparams) == before


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"num_layers": 1}, "num_layers is 2 there and 1 here"),
        (
            {"intermediate_size": 32, "num_heads": 4},
            "num_heads is 2 there and 4 here; intermediate_size is 64 there and 32",
        ),
        ({"max_tokens": 100}, "max_tokens is 120 there and 100 here"),
        ({"image_encoder": "resnet_small"}, "image_encoder is resnet_tiny there and resnet_small here"),
    ],
)
def test_checkpoint_of_another_configuration_is_refused_in_one_line(
    change: BackboneConfig,
    difference: str,
    tiny: BackboneConfig,
    checkpoint: Path,
    data: SyntheticDataModule,
    make_trainer: MakeTrainer,
) -> None:
    with pytest.raises(ValueError, match=f"^the checkpoint is of another configuration: {difference}.*$") as error:
        make_trainer(max_steps=2).fit(make_task(tiny | change), datamodule=data, ckpt_path=checkpoint)
    assert "\n" not in str(error.value)


def test_checkpoint_of_another_tokenizer_is_refused_without_printing_it(
    tiny: BackboneConfig, checkpoint: Path, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    words = [f"word{number}" for number in range(ReportTokenizer.load("synthetic").vocab_size - 5)]
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    task, data = make_task(tiny | {"tokenizer": str(vocab)}), make_data(tokenizer=str(vocab))
    with pytest.raises(ValueError, match=r"^the checkpoint is of another configuration: the tokenizer is another$"):
        make_trainer(max_steps=2).fit(task, datamodule=data, ckpt_path=checkpoint)


def test_what_weights_do_not_depend_on_may_differ(
    tiny: BackboneConfig, checkpoint: Path, data: SyntheticDataModule, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(max_steps=2)
    task = make_task(tiny | {"dropout": 0.3, "gradient_checkpointing": True})
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint)
    assert trainer.global_step == 2


# -- record of training --------------------------------------------------------------------------

CORPUS = {"name": "synthetic v1", "pairs": 8, "credentialed": False}


class SecretDataModule(SyntheticDataModule):
    """A corpus that may not be shared."""

    name, is_credentialed = "secret corpus", True


def test_training_is_recorded_once_and_evaluation_is_not(
    tiny: BackboneConfig, data: SyntheticDataModule, make_trainer: MakeTrainer
) -> None:
    task = make_task(tiny)
    make_trainer().test(task, datamodule=data, verbose=False)
    assert task.backbone.trained_on == []
    for _ in range(2):
        make_trainer().fit(task, datamodule=data)
    assert task.backbone.trained_on == [CORPUS | {"name": data.name}]
    make_trainer().fit(task, datamodule=SecretDataModule(num_train=4, num_val=4, image_size=64, negatives="labels"))
    assert task.backbone.trained_on[1:] == [{"name": "secret corpus", "pairs": 4, "credentialed": True}]
    assert task.backbone.is_credentialed


def test_record_of_training_goes_with_the_checkpoint(checkpoint: Path, data: SyntheticDataModule) -> None:
    assert PretrainingTask.load_from_checkpoint(checkpoint).backbone.trained_on == [CORPUS | {"name": data.name}]


def test_resuming_on_another_corpus_records_both(
    tiny: BackboneConfig, checkpoint: Path, data: SyntheticDataModule, make_trainer: MakeTrainer
) -> None:
    task, trainer = make_task(tiny), make_trainer(max_steps=2)
    secret = SecretDataModule(num_train=4, num_val=4, image_size=64, batch_size=4, negatives="labels")
    trainer.fit(task, datamodule=secret, ckpt_path=checkpoint)
    assert trainer.global_step == 2
    assert [corpus["name"] for corpus in task.backbone.trained_on] == [data.name, "secret corpus"]
