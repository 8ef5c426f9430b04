"""Tests of the command line: the table of verbs, errors in one line, exit codes."""

from collections.abc import Callable
from pathlib import Path

import pytest

import medvill_pl.cli.entry
from medvill_pl.cli import main
from medvill_pl.tokenizer import ReportTokenizer


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_help_and_version_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert main([]) == 0
    assert capsys.readouterr().out == told
    for verb in ("fit", "validate", "test", "predict", "prepare", "describe", "tokenizer", "label", "demo"):
        assert f"\n  {verb} " in told
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{medvill_pl.__version__}\n"


def test_unknown_verb_is_told_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert capsys.readouterr().err == (
        "medvill: no verb 'train': choose one of fit, validate, test, predict, prepare, describe, tokenizer, "
        "label, demo\n"
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data.init_args.batchsize=3"], "Option 'batchsize' is not accepted"),
        (["--trainer.epochs=3"], "unrecognized arguments: --trainer.epochs=3"),
        (["--model.init_args.lr=fast"], "lr: Expected a <class 'float'>. Got value: fast"),
        (["--model.init_args.mask_strategy=causal"], "'bar', 'non_crossing', 'bi_seq2seq']. Got value: causal"),
        (["--model.init_args.backbone.image_encoder=vgg"], "'resnet_small', 'resnet_tiny']. Got value: vgg"),
        (["--model.class_path=no_such_module.Task"], "No module named 'no_such_module'"),
        (["-c=no-such-recipe.yaml"], "File does not exist"),
        (["--model.init_args.backbone_ckpt=x.ckpt", "--model.init_args.backbone=null"], "no such file: x.ckpt"),
        (["--model.init_args.backbone.image_encoder_weights=none.pth"], "no such file or folder: none.pth"),
        (["--data.init_args.image_size=64"], "image_size is 64, the model's 32"),
        (["--ckpt_path=gone.ckpt"], "gone.ckpt"),
        (["--trainer.logger.init_args.save_dir=taken/runs"], "Not a directory"),
    ],
)
def test_wrong_configuration_is_one_line(
    tiny_job: list[str], options: list[str], told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    assert main(["fit", *tiny_job, *options]) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("medvill fit: ")
    assert told in last


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

    monkeypatch.setitem(medvill_pl.cli.entry._VERBS, "demo", medvill_pl.cli.entry._Verb(fail, ""))
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "medvill demo: KeyError: 'lungs' (--traceback shows where)\n"


def test_interruption_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(verb: str, options: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(medvill_pl.cli.entry._VERBS, "demo", medvill_pl.cli.entry._Verb(interrupt, ""))
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
