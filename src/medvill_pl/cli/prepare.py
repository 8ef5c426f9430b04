"""``medvill prepare``: its options, and which function each dataset's go to."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict

from medvill_pl.cli.parser import Parser, add_labeler

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from medvill_pl.preparation.summary import Summary

_COLUMNS = ("image", "report", "patient", "split", "view", "id")


_Datasets: TypeAlias = "_SubParsersAction[Parser]"


def run(verb: str, options: list[str]) -> None:
    """Prepare a dataset, and print the summary; or in a dry run what was found."""
    parser = Parser(f"medvill {verb}", description="From a dataset as its publisher ships it to a corpus folder.")
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET", parser_class=Parser)
    for add in (_add_mimic_cxr, _add_open_i, _add_vqa_rad, _add_pairs):
        add(datasets, _common_options())
    chosen = parser.parse_args(options)
    if chosen.image_size < 1 or (chosen.workers is not None and chosen.workers < 1):
        raise ValueError("--image-size and --workers must be positive")
    chosen.run(chosen)


def _common_options() -> Parser:
    common = Parser(add_help=False)
    common.add_argument("source", type=Path, help="folder of the dataset, archives or unpacked (pairs: the table)")
    common.add_argument("output", type=Path, help="folder of the corpus; a run that was interrupted goes on in it")
    common.add_argument("--image-size", type=int, default=512, help="side of the square images (default: 512)")
    common.add_argument("--keep-margins", action="store_true", help="do not cut margins off the images")
    common.add_argument("--workers", type=int, help="images worked on at once (default: one per core)")
    common.add_argument("--dry-run", action="store_true", help="check the layout, name what is missing, write nothing")
    return common


def _add_mimic_cxr(datasets: _Datasets, common: Parser) -> None:
    parser = datasets.add_parser("mimic-cxr", parents=[common], help="MIMIC-CXR-JPG with the reports of MIMIC-CXR")
    parser.set_defaults(run=_mimic_cxr)
    parser.add_argument(
        "--view", choices=["AP", "PA", "frontal"], default="AP", help="view of the images (default: AP)"
    )
    parser.add_argument("--all-images", action="store_true", help="all images of a study (default: the first)")


def _add_open_i(datasets: _Datasets, common: Parser) -> None:
    parser = datasets.add_parser("open-i", parents=[common], help="Open-I, Indiana University")
    parser.set_defaults(run=_open_i)
    parser.add_argument(
        "--view-table", type=Path, help="indiana_projections.csv or the DICOM tags (default: looked for)"
    )
    parser.add_argument("--all-images", action="store_true", help="all frontal images of a report (default: one)")
    parser.add_argument("--split-file", type=Path, help=".csv with uid and split (default: split by the seed)")
    parser.add_argument("--labels", choices=["report", "mesh"], default="report", help="what is labelled")
    parser.add_argument("--reports-only", action="store_true", help="labels and texts alone, without images")
    add_labeler(parser)
    _add_seed(parser, "seed of the split")


def _add_vqa_rad(datasets: _Datasets, common: Parser) -> None:
    parser = datasets.add_parser("vqa-rad", parents=[common], help="VQA-RAD")
    parser.set_defaults(run=_vqa_rad)
    parser.add_argument(
        "--split",
        choices=["official", "strict"],
        default="official",
        help="strict leaves the rewordings of test questions out of training (default: official)",
    )
    parser.add_argument("--val-fraction", type=float, default=0.05, help="share of training for validation")
    _add_seed(parser, "seed of the images for validation")


def _add_pairs(datasets: _Datasets, common: Parser) -> None:
    parser = datasets.add_parser("pairs", parents=[common], help="a table of your own images and texts")
    parser.set_defaults(run=_pairs)
    for name in _COLUMNS:
        default = name if name in ("image", "report") else None
        parser.add_argument(f"--{name}-column", default=default, help=f"column of the {name} (default: {default})")
    parser.add_argument("--image-root", help="folder of the images (default: that of the table)")
    parser.add_argument("--val-fraction", type=float, default=0.1, help="share for validation, without a split column")
    parser.add_argument("--test-fraction", type=float, default=0.1, help="share for test, without a split column")
    parser.add_argument("--credentialed", action="store_true", help="text and images must not be shared")
    parser.add_argument("--no-labels", action="store_true", help="do not label texts without columns of findings")
    add_labeler(parser)
    _add_seed(parser, "seed of the split")


def _add_seed(parser: ArgumentParser, meaning: str) -> None:
    parser.add_argument("--seed", type=int, default=0, help=f"{meaning} (default: 0)")


class _OfAll(TypedDict):
    """What all preparations take."""

    image_size: int
    cut_margins: bool
    workers: int | None


def _of_all(chosen: Namespace) -> _OfAll:
    return _OfAll(image_size=chosen.image_size, cut_margins=not chosen.keep_margins, workers=chosen.workers)


def _print_files(files: Mapping[str, Path | None]) -> None:
    for name, path in files.items():
        print(f"{name}: {path or 'none'}")
    print("nothing is missing")


def _print_summary(summary: "Summary", output: Path) -> None:
    print("\n".join(summary.lines()))
    print(f"\n{output} has it all, with this summary in summary.json and the rows set aside in rejected.csv")


def _mimic_cxr(chosen: Namespace) -> None:
    from medvill_pl.preparation.mimic_cxr import check_mimic_cxr, prepare_mimic_cxr

    one_image = not chosen.all_images
    if chosen.dry_run:
        _print_files(check_mimic_cxr(chosen.source, view=chosen.view, one_image=one_image)._asdict())
        return
    common = _of_all(chosen)
    summary = prepare_mimic_cxr(chosen.source, chosen.output, view=chosen.view, one_image=one_image, **common)
    _print_summary(summary, chosen.output)


def _open_i(chosen: Namespace) -> None:
    from medvill_pl.labeler.base import load_labeler
    from medvill_pl.preparation.open_i import check_open_i, prepare_open_i, read_open_i_statistics

    if chosen.dry_run:
        files = check_open_i(chosen.source, view_table=chosen.view_table, reports_only=chosen.reports_only)
        _print_files(files._asdict())
        return
    labeler = load_labeler(chosen.labeler)
    if chosen.reports_only:
        summary = read_open_i_statistics(
            chosen.source,
            chosen.output,
            split_file=chosen.split_file,
            seed=chosen.seed,
            labels=chosen.labels,
            labeler=labeler,
        )
        print("\n".join(summary.lines()))
        print(f"\n{chosen.output} has reports.csv and summary.json")
        return
    summary = prepare_open_i(
        chosen.source,
        chosen.output,
        view_table=chosen.view_table,
        one_image=not chosen.all_images,
        split_file=chosen.split_file,
        seed=chosen.seed,
        labels=chosen.labels,
        labeler=labeler,
        **_of_all(chosen),
    )
    _print_summary(summary, chosen.output)


def _vqa_rad(chosen: Namespace) -> None:
    from medvill_pl.preparation.vqa_rad import check_vqa_rad, prepare_vqa_rad

    if chosen.dry_run:
        _print_files(check_vqa_rad(chosen.source)._asdict())
        return
    summary = prepare_vqa_rad(
        chosen.source,
        chosen.output,
        split=chosen.split,
        val_fraction=chosen.val_fraction,
        seed=chosen.seed,
        **_of_all(chosen),
    )
    _print_summary(summary, chosen.output)


def _pairs(chosen: Namespace) -> None:
    from medvill_pl.labeler.base import load_labeler
    from medvill_pl.preparation.pairs import prepare_pairs, read_pairs

    given = vars(chosen)
    columns = {f"{name}_column": given[f"{name}_column"] for name in _COLUMNS}
    columns |= {name: given[name] for name in ("image_root", "val_fraction", "test_fraction")}
    columns |= {"is_credentialed": chosen.credentialed, "split_seed": chosen.seed}
    if chosen.dry_run:
        rows, _ = read_pairs(chosen.source, **columns)
        missing = next((row.image for row in rows if not row.rejection and not Path(row.image).is_file()), None)
        if missing:
            raise FileNotFoundError(f"no such image: {missing}")
        _print_files({"table": chosen.source})
        return
    labeler = load_labeler(chosen.labeler)
    summary = prepare_pairs(
        chosen.source, chosen.output, label=not chosen.no_labels, labeler=labeler, **_of_all(chosen), **columns
    )
    _print_summary(summary, chosen.output)
