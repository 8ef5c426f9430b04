"""``medvill prepare`` and ``medvill describe`` on the command line, and a preparation that is killed."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medvill_pl.cli import main
from medvill_pl.data.corpus import CorpusInfo, writer
from medvill_pl.preparation.open_i import prepare_open_i

Write = Callable[..., Path]


def test_open_i_from_the_command_line(write_open_i: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, out = str(write_open_i(tmp_path / "raw", 6)), str(tmp_path / "corpus")
    assert main(["prepare", "open-i", raw, out, "--dry-run"]) == 0
    assert "NLMCXR_reports.tgz\n" in (told := capsys.readouterr().out)
    assert told.endswith("nothing is missing\n")
    assert not (tmp_path / "corpus").exists()
    assert main(["prepare", "open-i", raw, out, "--image-size", "32", "--labels", "mesh", "--keep-margins"]) == 0
    told = capsys.readouterr().out
    assert "open-i\n" in told
    assert "set aside: 0" in told
    info = CorpusInfo.read(tmp_path / "corpus")
    assert (info.image_size, info.cut_margins) == (32, False)
    assert main(["prepare", "open-i", raw, str(tmp_path / "texts"), "--reports-only"]) == 0
    assert main(["describe", out, str(tmp_path / "texts")]) == 0
    assert (tmp_path / "corpus" / "describe.html").is_file()
    assert str(tmp_path / "corpus" / "describe.html") in capsys.readouterr().out


def test_the_others_from_the_command_line(
    write_mimic_cxr: Callable[..., None],
    write_vqa_rad: Write,
    make_pairs: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_mimic_cxr(tmp_path / "mimic", 20, side=32)
    small = ["--image-size", "32"]
    for words in (
        ["mimic-cxr", str(tmp_path / "mimic"), str(tmp_path / "a"), "--view", "frontal", "--all-images"],
        ["vqa-rad", str(write_vqa_rad(tmp_path / "vqa")), str(tmp_path / "b"), "--split", "strict"],
        ["pairs", str(make_pairs(12)), str(tmp_path / "c"), "--patient-column", "patient", "--credentialed"],
    ):
        assert main(["prepare", *words, "--dry-run"]) == 0
        assert main(["prepare", *words, *small]) == 0
    told = capsys.readouterr().out
    for source in ("mimic-cxr (credentialed", "vqa-rad\n", "pairs (credentialed"):
        assert source in told


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 2, "the following arguments are required: DATASET"),
        (["chexpert", "a", "b"], 2, "invalid choice: 'chexpert'"),
        (["open-i", "none", "out"], 1, "no such folder: none"),
        (["open-i", ".", "out", "--dry-run"], 1, ". has no NLMCXR_reports.tgz"),
        (["mimic-cxr", ".", "out"], 1, ". has no mimic-cxr-2.0.0-metadata.csv.gz"),
        (["vqa-rad", ".", "out"], 1, "get it from https://osf.io/89kps/"),
        (["pairs", "none.csv", "out", "--dry-run"], 1, "no such table: none.csv"),
        (["vqa-rad", ".", "out", "--image-size", "0"], 1, "--image-size and --workers must be positive"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        got = main(["prepare", *words])
    except SystemExit as end:
        got = int(str(end.code))
    (line,) = capsys.readouterr().err.splitlines()
    assert got == code
    assert line.startswith("medvill prepare")
    assert told in line
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_pairs_names_the_first_missing_image(
    make_pairs: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = make_pairs(3, ({"image": "images/none.png", "report": "Text."},))
    options = ["--patient-column", "patient", "--dry-run"]
    assert main(["prepare", "pairs", str(table), str(tmp_path / "corpus"), *options]) == 1
    assert "images/none.png" in capsys.readouterr().err


PREPARE = """
import sys
from pathlib import Path
from medvill_pl.data.corpus import writer
from medvill_pl.preparation.open_i import prepare_open_i

writer.SHARD_ROWS = 3
prepare_open_i(Path(sys.argv[1]), Path(sys.argv[2]), image_size=500, workers=2)
"""


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the fingerprint of the plan, which holds the paths of the images."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".plan"}


@pytest.mark.slow
def test_killed_preparation_goes_on_without_doing_a_shard_again(
    write_open_i: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SHARD_ROWS", 3)
    raw, folder = write_open_i(tmp_path / "raw", 60), tmp_path / "corpus"
    unpacked = tmp_path / ".corpus.images"
    places: list[Callable[[], bool]] = [
        lambda: len(list(unpacked.glob("*.png"))) > 10,  # while the archive is unpacked
        lambda: len(list(folder.glob("*.parquet"))) >= 2,
        lambda: len(list(folder.glob("*.parquet"))) >= 9,
    ]
    stamps: dict[str, int] = {}
    for is_reached in places:
        process = subprocess.Popen([sys.executable, "-c", PREPARE, str(raw), str(folder)])
        deadline = time.monotonic() + 60
        while not is_reached():
            assert process.poll() is None, "it ended too early"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "corpus.json").exists()
        now = {path.name: path.stat().st_ino for path in folder.glob("*.parquet")} if folder.exists() else {}
        assert now.items() >= stamps.items()
        stamps = now
    assert 9 <= len(stamps) < 20
    summary = prepare_open_i(raw, folder, image_size=500, workers=1)
    assert {path.name: path.stat().st_ino for path in folder.glob("*.parquet")}.items() >= stamps.items()
    assert not unpacked.exists()
    assert prepare_open_i(raw, tmp_path / "whole", image_size=500, workers=3) == summary
    assert contents(folder) == contents(tmp_path / "whole")
