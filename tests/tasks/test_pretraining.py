"""Pre-training: masked language modelling and image-report matching under each strategy."""

import csv
import math
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from medvill_pl import MaskStrategy, PretrainingTask, SyntheticDataModule
from medvill_pl.batch import Batch
from medvill_pl.models.medvill import BackboneConfig, BackboneOutput
from medvill_pl.tasks.pretraining import MatchingLoss
from medvill_pl.tokenizer import mask_tokens

STRATEGIES = ("bidirectional", "seq2seq", "bar", "non_crossing", "bi_seq2seq")
PLAIN_STRATEGIES = STRATEGIES[:-1]
SCORES = ("mlm_loss", "mlm_accuracy", "mlm_perplexity", "irm_loss", "irm_accuracy")
NUM_VISUAL = 16

MakeTask = Callable[..., PretrainingTask]
MakeTrainer = Callable[..., Trainer]


class RecordingTask(PretrainingTask):
    """Notes step, mode, strategy and number of visual tokens of each pass."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.passes: list[tuple[int, bool, str, int]] = []

    def forward(self, batch: Batch, strategy: MaskStrategy) -> BackboneOutput:
        output = super().forward(batch, strategy)
        self.passes.append((self.global_step, self.training, str(strategy), output.visual.shape[1]))
        return output


class LossCurve(Callback):
    """Notes the MLM loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.losses.append(trainer.callback_metrics["train/mlm_loss_step"].item())


class GradientNotes(Callback):
    """Notes the gradient of each trainable weight."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor | None] = {}

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainable = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        self.gradients = {name: None if p.grad is None else p.grad.clone() for name, p in trainable.items()}


@pytest.fixture
def make_task(tiny: BackboneConfig) -> MakeTask:
    """Make a task in evaluation mode, with weights that follow from a seed."""

    def make(mask_strategy: str = "bar", cls: type = PretrainingTask, **arguments: Any) -> PretrainingTask:
        torch.manual_seed(0)
        changed = arguments.pop("backbone", {})
        return cls(backbone=tiny | changed, mask_strategy=mask_strategy, **({"lr": 1e-2} | arguments)).eval()

    return make


def make_data(**arguments: Any) -> SyntheticDataModule:
    sizes = {"num_train": 16, "num_val": 7, "num_test": 6, "image_size": 64, "batch_size": 4}
    return SyntheticDataModule(**(sizes | {"negatives": "labels", "num_workers": 0} | arguments))


@pytest.fixture
def data() -> SyntheticDataModule:
    return make_data()


@pytest.fixture
def batch() -> Batch:
    """Six pairs, three of them matching, padded to the longest report."""
    data = make_data(num_val=6, batch_size=6)
    data.setup("validate")
    batch: Batch = next(iter(data.val_dataloader()))
    assert batch["matched"].sum() == 3
    assert not batch["text_mask"].all()
    return batch


def noise(task: PretrainingTask) -> Batch:
    """Four pairs of noise and random words, which do not change with the corpus."""
    generator, tokenizer = torch.Generator().manual_seed(0), task.backbone.tokenizer
    lengths = torch.tensor([[12], [9], [7], [12]])
    places = torch.arange(12)
    words = torch.randint(5, 200, (4, 12), generator=generator)
    words = words.masked_fill(places == lengths - 1, tokenizer.sep_id)
    return Batch(
        id=["a", "b", "c", "d"],
        image=torch.randint(0, 256, (4, 1, 64, 64), generator=generator, dtype=torch.uint8),
        input_ids=words.masked_fill(places >= lengths, tokenizer.pad_id),
        text_mask=places < lengths,
        labels=torch.zeros(4, 14),
        matched=torch.tensor([True, False, True, False]),
        seed=torch.tensor([3, 1, 4, 1]),
    )


def step_losses(task: PretrainingTask, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Total, MLM and IRM loss of a batch."""
    output = task.step(task.masking(batch))
    return output.loss, output.losses["mlm_loss_step"], output.losses["irm_loss_step"]


def expected_scores(
    task: PretrainingTask, batches: list[Batch], strategy: str, on_non_matching: bool
) -> dict[str, float]:
    """All scores from logits of every place and every word, pair by pair in float64."""
    nll, right, bce, hits = [], [], [], []
    for batch in batches:
        everywhere = torch.ones_like(batch["matched"])
        masked = mask_tokens(
            batch["input_ids"],
            batch["text_mask"],
            batch["seed"],
            task.backbone.tokenizer,
            everywhere,
            task.mlm_probability,
        )
        is_chosen = torch.zeros(batch["input_ids"].numel(), dtype=torch.bool)
        is_chosen[masked.positions] = True
        is_chosen = is_chosen.view_as(batch["input_ids"])
        with torch.no_grad():
            output = task.backbone(
                images=batch["image"],
                input_ids=masked.input_ids,
                text_mask=batch["text_mask"],
                mask_strategy=strategy,
            )
            logits = task.backbone.mlm_logits(output.text).double()
            match = (output.pooled.double() @ task.irm_head.weight.double().T + task.irm_head.bias.double()).squeeze(1)
        for row, is_matching in enumerate(batch["matched"].tolist()):
            p = 1 / (1 + math.exp(-match[row].item()))
            bce.append(-math.log(p if is_matching else 1 - p))
            hits.append((p > 0.5) == is_matching)
            for place in is_chosen[row].nonzero()[:, 0].tolist() if is_matching or on_non_matching else ():
                word = batch["input_ids"][row, place].item()
                nll.append((logits[row, place].exp().sum().log() - logits[row, place, word]).item())
                right.append(logits[row, place].argmax().item() == word)
    mean_nll = sum(nll) / len(nll)
    return {
        "mlm_loss": mean_nll,
        "mlm_accuracy": sum(right) / len(right),
        "mlm_perplexity": math.exp(mean_nll),
        "irm_loss": sum(bce) / len(bce),
        "irm_accuracy": sum(hits) / len(hits),
    }


# -- losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("bidirectional", 6.33942),
        ("seq2seq", 6.38685),
        ("bar", 6.38901),
        ("non_crossing", 6.20178),
        ("bi_seq2seq", 6.37499),
    ],
)
def test_loss_of_seeded_weights_is_pinned(strategy: str, expected: float, make_task: MakeTask) -> None:
    task = make_task(strategy)
    assert task.step(task.masking(noise(task))).loss.item() == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("on_non_matching", [False, True])
@pytest.mark.parametrize("strategy", PLAIN_STRATEGIES)
def test_losses_are_cross_entropy_of_masked_tokens_and_of_matching(
    strategy: str, on_non_matching: bool, make_task: MakeTask, batch: Batch
) -> None:
    task = make_task(strategy, mlm_on_non_matching=on_non_matching)
    loss, mlm, irm = step_losses(task, batch)
    expected = expected_scores(task, [batch], strategy, on_non_matching)
    assert mlm.item() == pytest.approx(expected["mlm_loss"], rel=1e-5)
    assert irm.item() == pytest.approx(expected["irm_loss"], rel=1e-5)
    assert loss.item() == pytest.approx(expected["mlm_loss"] + expected["irm_loss"], rel=1e-5)


@pytest.mark.parametrize("on_non_matching", [False, True])
def test_tokens_are_masked_in_all_reports_and_predicted_where_asked(
    on_non_matching: bool, make_task: MakeTask, batch: Batch
) -> None:
    task = make_task(mlm_on_non_matching=on_non_matching)
    masked = task.masking(batch)
    is_replaced = masked["mlm_input_ids"] != batch["input_ids"]
    assert is_replaced.any(dim=1).all()
    rows = set((masked["mlm_positions"] // batch["input_ids"].shape[1]).tolist())
    assert rows == (set(range(6)) if on_non_matching else set(batch["matched"].nonzero()[:, 0].tolist()))
    assert torch.equal(masked["mlm_targets"], batch["input_ids"].flatten()[masked["mlm_positions"]])
    # Every replaced word of these rows is predicted.
    replaced = [
        place for place in is_replaced.flatten().nonzero()[:, 0].tolist() if place // len(is_replaced[0]) in rows
    ]
    assert set(replaced) <= set(masked["mlm_positions"].tolist())


def test_share_of_masked_tokens_is_the_probability(make_task: MakeTask) -> None:
    data = make_data(num_val=60, batch_size=60, negatives="none")
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    num_words = batch["text_mask"].sum() - 60  # the closing SEP is no word
    for probability in (0.15, 0.6):
        masked = make_task(mlm_probability=probability).masking(batch)
        assert len(masked["mlm_positions"]) / num_words == pytest.approx(probability, abs=0.03)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("has_targets", [True, False])
def test_every_trainable_weight_has_a_gradient(
    has_targets: bool, strategy: str, make_task: MakeTask, make_trainer: MakeTrainer, batch: Batch
) -> None:
    task, notes = make_task(strategy).train(), GradientNotes()
    if not has_targets:
        batch["matched"][:] = False
    trainer = make_trainer(callbacks=[notes], log_every_n_steps=1)
    trainer.fit(task, train_dataloaders=DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    gradients = notes.gradients
    assert [name for name, gradient in gradients.items() if gradient is None] == []  # DDP waits for each
    unused = tuple(f"backbone.{name}" for name in task.unused_parameters)
    assert gradients.keys() == {
        name for name, _ in task.named_parameters() if not unused or not name.startswith(unused)
    }
    assert ("backbone.text_cls_position_embedding" in gradients) == (strategy == "non_crossing")
    assert gradients["irm_head.weight"].any()
    logged = trainer.callback_metrics
    if has_targets:
        # A bias of all keys alike cancels in softmax.
        assert [name for name, gradient in gradients.items() if not gradient.any() and "key.bias" not in name] == []
    else:
        assert logged["train/mlm_loss_step"] == 0
        assert logged["train/loss"] == logged["train/irm_loss_step"]
        assert not gradients["backbone.mlm_head.bias"].any()


# -- who sees whom -------------------------------------------------------------------------------


def with_other_words(task: PretrainingTask, batch: Batch) -> Batch:
    """The batch with other reports of the same lengths."""
    ordinary = torch.from_numpy(task.backbone.tokenizer.ordinary_ids)
    words = ordinary[torch.randint(len(ordinary), batch["input_ids"].shape, generator=torch.Generator().manual_seed(1))]
    is_word = batch["text_mask"] & (batch["input_ids"] != task.backbone.tokenizer.sep_id)
    return Batch(**{**batch, "input_ids": torch.where(is_word, words, batch["input_ids"])})  # type: ignore[typeddict-item]


@pytest.mark.parametrize("strategy", PLAIN_STRATEGIES)
def test_matching_sees_the_report_but_under_seq2seq(strategy: str, make_task: MakeTask, batch: Batch) -> None:
    task = make_task(strategy)
    one, other = (
        task(task.masking(pairs), MaskStrategy(strategy)).pooled for pairs in (batch, with_other_words(task, batch))
    )
    assert torch.equal(one, other) == (strategy == "seq2seq")
    _, _, irm = step_losses(task, batch)
    irm.backward()
    embedding, tokenizer = task.backbone.report_embedding, task.backbone.tokenizer
    text_gradients = [embedding.position.grad, embedding.word.weight.grad[tokenizer.ordinary_ids]]
    assert all(bool(gradient.any()) == (strategy != "seq2seq") for gradient in text_gradients)
    assert embedding.word.weight.grad[tokenizer.cls_id].any()


def test_pooled_of_non_crossing_is_made_of_image_and_report(make_task: MakeTask, batch: Batch) -> None:
    task = make_task("non_crossing")
    masked = task.masking(batch)
    before = task(masked, MaskStrategy.NON_CROSSING)
    with torch.no_grad():
        task.backbone.text_cls_position_embedding += 1
    after = task(masked, MaskStrategy.NON_CROSSING)
    assert not torch.allclose(before.pooled, after.pooled)
    torch.testing.assert_close(before.cls, after.cls)  # CLS of the image sees no text
    torch.testing.assert_close(task.backbone.pooler(before.cls[:, None]) * text_part(task, masked), after.pooled)


def text_part(task: PretrainingTask, masked: Batch) -> Tensor:
    """What the report adds to the pooled embedding: the same whatever the image."""
    blank = Batch(**{**masked, "image": torch.zeros_like(masked["image"])})  # type: ignore[typeddict-item]
    output = task(blank, MaskStrategy.NON_CROSSING)
    return output.pooled / task.backbone.pooler(output.cls[:, None])


@pytest.mark.parametrize(("num_samples", "expected"), [(9, 9), (None, NUM_VISUAL), (180, NUM_VISUAL)])
def test_visual_tokens_are_sampled_in_training_steps_only(
    num_samples: int | None,
    expected: int,
    make_task: MakeTask,
    make_trainer: MakeTrainer,
    data: SyntheticDataModule,
) -> None:
    task = make_task(cls=RecordingTask, num_visual_samples=num_samples).train()
    trainer = make_trainer(max_steps=-1, max_epochs=1, limit_val_batches=1.0)
    trainer.fit(task, datamodule=data)
    trainer.predict(task, datamodule=data)
    seen = defaultdict(set)
    for _, is_training, _, num_visual in task.passes:
        seen[is_training].add(num_visual)
    assert seen == {True: {expected}, False: {NUM_VISUAL}}


def strategies_by_step(task: PretrainingTask) -> list[tuple[str, ...]]:
    steps = defaultdict(list)
    for step, is_training, strategy, _ in task.passes:
        if is_training:
            steps[step].append(strategy)
    return [tuple(steps[step]) for step in sorted(steps)]


def test_bi_seq2seq_draws_one_strategy_for_all_batches_of_a_step(
    make_task: MakeTask, make_trainer: MakeTrainer
) -> None:
    drawn = []
    for seed in (0, 0, 1):
        task = make_task("bi_seq2seq", cls=RecordingTask, seed=seed).train()
        trainer = make_trainer(max_steps=8, accumulate_grad_batches=2)
        trainer.fit(task, datamodule=make_data(num_train=8, batch_size=2))
        drawn.append(strategies_by_step(task))
    assert set(drawn[0]) == {("seq2seq",) * 2, ("bidirectional",) * 2}
    assert len(drawn[0]) == 8
    assert drawn[0] == drawn[1] != drawn[2]


# -- metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_non_matching", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_validation_scores_every_word_and_every_pair_once(
    batch_size: int, on_non_matching: bool, make_task: MakeTask, make_trainer: MakeTrainer
) -> None:
    # Batches of one pair often have nothing to predict; batches of 4 and 3 must not weigh the same.
    task, data = make_task("bar", mlm_on_non_matching=on_non_matching), make_data(batch_size=batch_size)
    with torch.no_grad():
        task.backbone.mlm_head.bias[task.backbone.tokenizer.encode(["."])[0]] += 9  # right now and then
    (scores,) = make_trainer(limit_val_batches=1.0).validate(task, datamodule=data, verbose=False)
    expected = expected_scores(task, list(data.val_dataloader()), "bar", on_non_matching)
    assert 0 < expected["mlm_accuracy"] < 1
    assert {name: scores[f"val/{name}"] for name in SCORES} == pytest.approx(expected, rel=1e-5)
    assert scores.keys() == {"val/loss", *(f"val/{name}" for name in SCORES)}


def test_bi_seq2seq_is_validated_under_both_strategies(
    make_task: MakeTask, make_trainer: MakeTrainer, data: SyntheticDataModule
) -> None:
    scores = {}
    for strategy in ("bi_seq2seq", "seq2seq", "bidirectional"):
        (scores[strategy],) = make_trainer(limit_val_batches=1.0).validate(
            make_task(strategy), datamodule=data, verbose=False
        )
    both = scores["bi_seq2seq"]
    assert both.keys() == {"val/loss", *(f"val/{n}_{s}" for n in SCORES for s in ("seq2seq", "bidirectional"))}
    for strategy in ("seq2seq", "bidirectional"):
        for name in SCORES:
            assert both[f"val/{name}_{strategy}"] == pytest.approx(scores[strategy][f"val/{name}"], rel=1e-5)
    expected = 0.75 * scores["seq2seq"]["val/loss"] + 0.25 * scores["bidirectional"]["val/loss"]
    assert both["val/loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("strategy", ["bar", "bi_seq2seq"])
def test_training_logs_losses_a_step_and_scores_an_epoch(
    strategy: str, make_task: MakeTask, make_trainer: MakeTrainer, data: SyntheticDataModule, tmp_path: Path
) -> None:
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(max_steps=-1, max_epochs=1, logger=logger, log_every_n_steps=1)
    trainer.fit(make_task(strategy).train(), datamodule=data)
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [row for row in rows if row["train/loss"]]
    (epoch,) = [row for row in rows if row["train/mlm_loss"]]
    assert len(steps) == trainer.global_step == 4
    for row in steps:
        total = float(row["train/mlm_loss_step"]) + float(row["train/irm_loss_step"])
        assert float(row["train/loss"]) == pytest.approx(total, rel=1e-5)
    assert all(epoch[f"train/{name}"] for name in SCORES)
    assert float(epoch["train/mlm_perplexity"]) == pytest.approx(math.exp(float(epoch["train/mlm_loss"])), rel=1e-4)
    irm = [float(row["train/irm_loss_step"]) for row in steps]  # batches of one size
    assert float(epoch["train/irm_loss"]) == pytest.approx(sum(irm) / 4, rel=1e-5)


def test_matching_loss_is_one_that_autocast_allows_on_a_gpu() -> None:
    """PyTorch refuses the cross-entropy of probabilities under CUDA's autocast, which a CPU's does not tell."""
    seen = []

    class Spy(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.nn.functional.binary_cross_entropy:
                seen.append(torch.is_autocast_enabled("cpu"))
            return func(*args, **(kwargs or {}))

    metric = MatchingLoss()
    with torch.autocast("cpu", torch.bfloat16), Spy():
        metric.update(torch.tensor([0.25]), torch.tensor([True]))
    assert seen == [False]
    assert metric.compute().item() == pytest.approx(1.3862944)


# -- predictions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("strategy", "runs_as"), [("bar", "bar"), ("bi_seq2seq", "seq2seq")])
def test_predictions_are_one_row_a_pair(
    strategy: str, runs_as: str, make_task: MakeTask, make_trainer: MakeTrainer, data: SyntheticDataModule
) -> None:
    task = make_task(strategy)
    rows = [row for batch in make_trainer().predict(task, datamodule=data) for row in batch]
    batches = list(data.predict_dataloader())
    assert [row["id"] for row in rows] == [name for batch in batches for name in batch["id"]]
    assert {row["id"] for row in rows} == set(data.datasets["test"].examples.ids)
    with torch.no_grad():
        whole = [Batch(**{**batch, "mlm_input_ids": batch["input_ids"]}) for batch in batches]  # no word is masked
        pooled = torch.cat([task(batch, MaskStrategy(runs_as)).pooled for batch in whole])
        expected = 1 / (1 + (-task.irm_head(pooled)).exp())
    assert [row["match_probability"] for row in rows] == pytest.approx(expected[:, 0].tolist(), rel=1e-5)
    assert all(row.keys() == {"id", "match_probability"} and type(row["match_probability"]) is float for row in rows)


@pytest.mark.parametrize("strategy", ["bar", "non_crossing"])
@pytest.mark.parametrize("on_non_matching", [False, True])
def test_filled_masks_tell_the_top_tokens_at_the_masked_positions(
    on_non_matching: bool, strategy: str, make_task: MakeTask, batch: Batch
) -> None:
    task = make_task(strategy, mlm_on_non_matching=on_non_matching)
    masked = task.masking(batch)
    with torch.no_grad():
        output = task(masked, MaskStrategy(strategy))
        probabilities = task.backbone.mlm_logits(output.text).softmax(dim=2)
        matching = task.irm_head(output.pooled).sigmoid()
    rows = batch["matched"].nonzero()[:, 0].tolist()
    reports = task.fill_masks(masked, num_candidates=3)
    assert [report.id for report in reports] == [batch["id"][row] for row in rows]

    for row, report in zip(rows, reports, strict=True):
        length = int(batch["text_mask"][row].sum())
        assert report.tokens == task.backbone.tokenizer.tokens(batch["input_ids"][row, :length].tolist())
        assert report.tokens[-1] == "[SEP]"
        assert report.match_probability == pytest.approx(matching[row].item(), rel=1e-5)
        replaced = (masked["mlm_input_ids"][row] != batch["input_ids"][row]).nonzero()[:, 0].tolist()
        assert set(replaced) <= set(report.masked) <= set(range(length - 1))
        assert len(report.masked) == len(report.predictions) == len(report.probabilities) > 0
        for place, words, shares in zip(report.masked, report.predictions, report.probabilities, strict=True):
            ranked = sorted(enumerate(probabilities[row, place].tolist()), key=lambda item: -item[1])[:3]
            assert words == task.backbone.tokenizer.tokens([index for index, _ in ranked])
            assert shares == pytest.approx([share for _, share in ranked], rel=1e-4)
            assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("is_training", [True, False])
def test_filling_masks_leaves_the_task_as_it_was(is_training: bool, make_task: MakeTask, batch: Batch) -> None:
    task = make_task(backbone={"freeze_image_encoder_stages": 2}).train(is_training)
    modes = [module.training for module in task.modules()]
    state = {name: value.clone() for name, value in task.state_dict().items()}
    first, second = (task.fill_masks(task.masking(batch)) for _ in range(2))
    assert first == second  # neither dropout nor sampling
    assert [module.training for module in task.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in task.state_dict().items())


# -- refusals ------------------------------------------------------------------------------------


def test_data_without_non_matching_pairs_are_refused_before_the_first_step(
    make_task: MakeTask, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer()
    with pytest.raises(ValueError, match="set the data module's negatives to 'labels'") as error:
        trainer.fit(make_task().train(), datamodule=make_data(negatives="none"))
    assert "\n" not in str(error.value)
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *[({"mlm_probability": p}, f"mlm_probability must be .* not {p}") for p in (0.0, 1.0, -0.1, 1.5, float("nan"))],
        *[({"num_visual_samples": n}, f"num_visual_samples must be .* not {n}") for n in (0, -3)],
        ({"mask_strategy": "causal"}, "unknown mask strategy 'causal'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str, make_task: MakeTask) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(**arguments)


# -- training ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["bar", "seq2seq", "non_crossing"])
def test_training_learns_sixteen_pairs_by_heart(strategy: str, make_task: MakeTask, make_trainer: MakeTrainer) -> None:
    data, curve = make_data(batch_size=16), LossCurve()
    data.setup("fit")
    batches = [next(iter(data.train_dataloader()))] * 60
    make_trainer(max_steps=60, callbacks=[curve]).fit(
        make_task(strategy, lr=3e-3, num_visual_samples=None).train(),
        train_dataloaders=DataLoader(batches, batch_size=None),  # type: ignore[arg-type]
    )
    assert len(curve.losses) == 60
    assert curve.losses[-1] < curve.losses[0] / 2


def test_gradient_checkpointing_runs_layers_again_and_changes_no_gradient(make_task: MakeTask, batch: Batch) -> None:
    runs, gradients = {}, {}
    for is_on in (False, True):
        task = make_task(num_visual_samples=9, backbone={"gradient_checkpointing": is_on}).train()
        calls: list[None] = []
        task.backbone.encoder.layers[0].expand.register_forward_hook(lambda *_, calls=calls: calls.append(None))
        torch.manual_seed(1)  # dropout and sampling
        step_losses(task, batch)[0].backward()
        runs[is_on] = len(calls)
        gradients[is_on] = {name: p.grad for name, p in task.named_parameters() if p.requires_grad}
    assert runs == {False: 1, True: 2}
    torch.testing.assert_close(gradients[True], gradients[False])


def test_mixed_precision_keeps_weights_in_float32_and_the_loss_close(
    make_task: MakeTask, make_trainer: MakeTrainer, data: SyntheticDataModule
) -> None:
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        task, trainer = make_task(), make_trainer(precision=precision, limit_val_batches=1.0)
        (scores,) = trainer.validate(task, datamodule=data, verbose=False)
        losses[precision] = scores["val/loss"]
        before = task.irm_head.weight.detach().clone()
        make_trainer(precision=precision).fit(task.train(), datamodule=data)
        assert not torch.equal(task.irm_head.weight, before)
        assert {p.dtype for p in task.parameters()} == {torch.float32}
    assert losses["bf16-mixed"] != losses["32-true"]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=5e-3)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compiled_backbone_takes_the_same_steps_and_saves_the_same_names(
    make_task: MakeTask,
    make_trainer: MakeTrainer,
    data: SyntheticDataModule,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # which other tests that compile have filled
    sizes = {"num_layers": 1, "dropout": 0.0}
    losses, keys = {}, {}
    for is_compiled in (False, True):
        task, curve = make_task(compile=is_compiled, num_visual_samples=None, backbone=sizes).train(), LossCurve()
        trainer = make_trainer(max_steps=3, callbacks=[curve])
        trainer.fit(task, datamodule=data)
        trainer.save_checkpoint(tmp_path / "task.ckpt")
        losses[is_compiled] = curve.losses
        keys[is_compiled] = torch.load(tmp_path / "task.ckpt", weights_only=True)["state_dict"].keys()
    # One graph for the trunk, and one for the rest that batches of other lengths share.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    assert keys[True] == keys[False]
