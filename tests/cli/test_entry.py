"""Tests of the command line: the table of verbs, errors in one line, exit codes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import medvill_pl.cli.demo
from medvill_pl.cli import main
from medvill_pl.tokenizer import ReportTokenizer


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_help_and_version_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    message = capsys.readouterr().out
    assert main([]) == 0
    assert capsys.readouterr().out == message
    for verb in ("fit", "validate", "test", "predict", "recipes", "prepare", "describe", "tokenizer", "label", "demo"):
        assert f"\n  {verb} " in message
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{medvill_pl.__version__}\n"


def test_unknown_verb_names_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert capsys.readouterr().err == (
        "medvill: no verb 'train': choose one of fit, validate, test, predict, recipes, prepare, describe, "
        "tokenizer, label, demo\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.init_args.batchsize=3"], "Option 'batchsize' is not accepted"),
        (["--trainer.epochs=3"], "unrecognized arguments: --trainer.epochs=3"),
        (["--model.init_args.lr=fast"], "lr: Expected a <class 'float'>. Got value: fast"),
        (["--model.init_args.mask_strategy=causal"], "'bar', 'non_crossing', 'bi_seq2seq']. Got value: causal"),
        (["--model.init_args.backbone.image_encoder=vgg"], "'resnet_small', 'resnet_tiny']. Got value: vgg"),
        (["--model.class_path=no_such_module.Task"], "No module named 'no_such_module'"),
        (["-c=no-such-recipe.yaml"], "no such recipe: no-such-recipe.yaml: `medvill recipes` lists"),
        (["-c"], "-c needs the file of a recipe"),
        (["--model.init_args.backbone_ckpt=x.ckpt", "--model.init_args.backbone=null"], "no such file: x.ckpt"),
        (["--model.init_args.backbone.image_encoder_weights=none.pth"], "no such file or folder: none.pth"),
        (["--data.init_args.image_size=64"], "image_size is 64, the model's 32"),
        (["--ckpt_path=gone.ckpt"], "gone.ckpt"),
        (["--trainer.logger.init_args.save_dir=taken/runs"], "Not a directory"),
        (["--ckpt_path=last"], "no run in runs/pretraining-synthetic has a last.ckpt"),
        (["--ckpt_path=last", "--trainer.logger=false"], "looks among the runs of a RunLogger, and there is none"),
    ],
)
def test_wrong_configuration_is_one_line(
    tiny_job: list[str], options: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file where a folder is expected")
    assert main(["fit", *tiny_job, *options]) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("medvill fit: ")
    assert message in last
    assert not (tmp_path / "runs").exists()  # a refused command takes no number


def print_config(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", *words, "--print_config"])
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config


def test_options_win_over_recipes_wherever_they_stand(tiny_job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config = print_config(["--model.init_args.lr=0.5", "--trainer.max_epochs=7", *tiny_job[:2]], capsys)
    assert (config["model"]["init_args"]["lr"], config["trainer"]["max_epochs"]) == (0.5, 7)


def test_defaults_of_all_jobs_are_shown_and_can_be_changed(
    tiny_job: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = print_config(tiny_job, capsys)["trainer"]
    (logger,) = trainer["logger"]
    assert logger["init_args"] == {"save_dir": "runs", "name": "pretraining-synthetic", "version": None}
    assert [one["class_path"] for one in trainer["callbacks"]] == ["medvill_pl.Throughput", "medvill_pl.BestCheckpoint"]
    changes = ["--trainer.callbacks.init_args.last_every_n_steps=5", "--trainer.callbacks+=medvill_pl.ExampleTable"]
    trainer = print_config([*tiny_job, *changes, "--trainer.logger.init_args.save_dir=elsewhere"], capsys)["trainer"]
    assert trainer["callbacks"][1]["init_args"]["last_every_n_steps"] == 5
    assert trainer["callbacks"][2]["class_path"] == "medvill_pl.ExampleTable"
    assert trainer["logger"][0]["init_args"]["save_dir"] == "elsewhere"
    off = ["--trainer.callbacks=null", "--trainer.logger=false"]
    trainer = print_config([*tiny_job, *off], capsys)["trainer"]
    assert (trainer["callbacks"], trainer["logger"]) == (None, False)


def test_public_classes_are_found_by_their_short_names() -> None:
    """In a process that has imported nothing yet."""
    code = """
import sys
from medvill_pl.cli import main
options = ["--model", "ClassificationTask", "--data", "SyntheticDataModule", "--trainer.callbacks+=ExampleTable"]
sys.exit(main(["fit", *options, "--print_config"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["model"]["class_path"] == "medvill_pl.ClassificationTask"
    assert config["data"]["class_path"] == "medvill_pl.SyntheticDataModule"
    assert config["trainer"]["callbacks"][-1]["class_path"] == "medvill_pl.ExampleTable"


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_help_of_a_job_is_short_and_loads_nothing_heavy(verb: str) -> None:
    code = f"""
import sys
from medvill_pl.cli import main
main(["{verb}", "-c", "pretraining/synthetic.yaml", "--help"])
print("loaded:", [name for name in ("torch", "lightning", "jsonargparse", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith(f"usage: medvill {verb} -c RECIPE")
    assert done.stdout.endswith("loaded: []\n")


def test_every_option_is_listed_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["test", "--help-all"])
    assert "--trainer.limit_test_batches" in capsys.readouterr().out


def test_unknown_key_in_a_recipe_is_named(
    tiny_job: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text("model:\n  init_args:\n    learning_rate: 1\n")
    assert main(["fit", *tiny_job, "-c", "mine.yaml"]) == 1
    assert "learning_rate" in capfd.readouterr().err.splitlines()[-1]


def test_traceback_is_shown_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        main(["tokenizer", "train", "nowhere.csv", "out", "--traceback"])
    monkeypatch.setenv("MEDVILL_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        main(["tokenizer", "train", "nowhere.csv", "out"])


def test_unexpected_error_is_named_by_its_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(verb: str, options: list[str]) -> None:
        raise KeyError("lungs")

    monkeypatch.setattr(medvill_pl.cli.demo, "run", fail)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "medvill demo: KeyError: 'lungs' (--traceback shows where)\n"


def test_interruption_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(verb: str, options: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(medvill_pl.cli.demo, "run", interrupt)
    assert main(["demo"]) == 130


def test_tokenizer_is_trained_from_a_table(make_pairs: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    table = make_pairs(12)
    assert main(["tokenizer", "train", str(table), "learnt", "--vocab-size", "60"]) == 0
    assert "from 12 reports are in learnt" in capsys.readouterr().out
    tokenizer = ReportTokenizer.load("learnt")
    assert tokenizer.decode(tokenizer.encode(["No pulmonary edema."])[0]) == "no pulmonary edema."
    assert main(["tokenizer", "train", str(table), "learnt"]) == 1
    assert "learnt is there already" in capsys.readouterr().err
    assert main(["tokenizer", "train", str(table), "other", "--report-column", "text"]) == 1
    assert "has no column 'text'; it has image, report" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["tokenizer", "train"])
    assert "the following arguments are required" in capsys.readouterr().err
