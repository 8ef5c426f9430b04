"""``medvill prepare``: its options, and which function each dataset's go to."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_COLUMNS = ("image", "report", "patient", "split", "view", "id")


def add_arguments(parser: ArgumentParser) -> None:
    """Add a subcommand a dataset with its options."""
    common = ArgumentParser(add_help=False)
    common.add_argument("source", type=Path, help="folder of the dataset, archives or unpacked (pairs: the table)")
    common.add_argument("output", type=Path, help="folder of the corpus; a run that was interrupted goes on in it")
    common.add_argument("--image-size", type=int, default=512, help="side of the square images (default: 512)")
    common.add_argument("--keep-margins", action="store_true", help="do not cut margins off the images")
    common.add_argument("--workers", type=int, help="images worked on at once (default: one a core)")
    common.add_argument("--dry-run", action="store_true", help="check the layout, name what is missing, write nothing")
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET", parser_class=type(parser))

    mimic = datasets.add_parser("mimic-cxr", parents=[common], help="MIMIC-CXR-JPG with the reports of MIMIC-CXR")
    mimic.set_defaults(run=_mimic_cxr)
    mimic.add_argument("--view", choices=["AP", "PA", "frontal"], default="AP", help="view of the films (default: AP)")
    mimic.add_argument("--all-images", action="store_true", help="all films of a study (default: the first)")

    open_i = datasets.add_parser("open-i", parents=[common], help="Open-I, Indiana University")
    open_i.set_defaults(run=_open_i)
    open_i.add_argument(
        "--view-table", type=Path, help="indiana_projections.csv or the DICOM tags (default: looked for)"
    )
    open_i.add_argument("--all-images", action="store_true", help="all frontal films of a report (default: one)")
    open_i.add_argument("--split-file", type=Path, help=".csv with uid and split (default: split by the seed)")
    open_i.add_argument("--labels", choices=["report", "mesh"], default="report", help="what is labelled")
    open_i.add_argument("--reports-only", action="store_true", help="labels and texts alone, without images")
    _add_labeler(open_i)
    _add_seed(open_i, "seed of the split")

    vqa_rad = datasets.add_parser("vqa-rad", parents=[common], help="VQA-RAD")
    vqa_rad.set_defaults(run=_vqa_rad)
    vqa_rad.add_argument(
        "--split",
        choices=["official", "strict"],
        default="official",
        help="strict leaves the rewordings of test questions out of training (default: official)",
    )
    vqa_rad.add_argument("--val-fraction", type=float, default=0.05, help="share of training for validation")
    _add_seed(vqa_rad, "seed of the images for validation")

    pairs = datasets.add_parser("pairs", parents=[common], help="a table of your own images and texts")
    pairs.set_defaults(run=_pairs)
    for name in _COLUMNS:
        default = name if name in ("image", "report") else None
        pairs.add_argument(f"--{name}-column", default=default, help=f"column of the {name} (default: {default})")
    pairs.add_argument("--image-root", help="folder of the images (default: that of the table)")
    pairs.add_argument("--val-fraction", type=float, default=0.1, help="share for validation, without a split column")
    pairs.add_argument("--test-fraction", type=float, default=0.1, help="share for test, without a split column")
    pairs.add_argument("--credentialed", action="store_true", help="text and images must not be shared")
    pairs.add_argument("--no-labels", action="store_true", help="do not label texts without columns of findings")
    _add_labeler(pairs)
    _add_seed(pairs, "seed of the split")


def _add_seed(parser: ArgumentParser, meaning: str) -> None:
    parser.add_argument("--seed", type=int, default=0, help=f"{meaning} (default: 0)")


def _add_labeler(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--labeler",
        default="medvill_pl.CheXpertLabeler",
        metavar="CLASS_PATH",
        help="class of the labeler (default: medvill_pl.CheXpertLabeler, which is rule-based)",
    )


def run(chosen: Namespace) -> None:
    """Prepare, and print the summary; or in a dry run what was found."""
    if chosen.image_size < 1 or (chosen.workers is not None and chosen.workers < 1):
        raise ValueError("--image-size and --workers must be positive")
    chosen.run(chosen)


def _tell_found(files: Mapping[str, Path | None]) -> None:
    for name, path in files.items():
        print(f"{name}: {path or 'none'}")
    print("nothing is missing")


def _tell(summary: Any, output: Path) -> None:
    print("\n".join(summary.lines()))
    print(f"\n{output} has it all, with this summary in summary.json and the rows set aside in rejected.csv")


def _of_all(chosen: Namespace) -> dict[str, Any]:
    return {"image_size": chosen.image_size, "cut_margins": not chosen.keep_margins, "workers": chosen.workers}


def _mimic_cxr(chosen: Namespace) -> None:
    from medvill_pl.preparation.mimic_cxr import check_mimic_cxr, prepare_mimic_cxr

    options = {"view": chosen.view, "one_image": not chosen.all_images}
    if chosen.dry_run:
        return _tell_found(check_mimic_cxr(chosen.source, **options)._asdict())
    return _tell(prepare_mimic_cxr(chosen.source, chosen.output, **options, **_of_all(chosen)), chosen.output)


def _open_i(chosen: Namespace) -> None:
    from medvill_pl.labeler.base import load_labeler
    from medvill_pl.preparation.open_i import check_open_i, prepare_open_i, read_open_i_statistics

    if chosen.dry_run:
        found = check_open_i(chosen.source, view_table=chosen.view_table, reports_only=chosen.reports_only)
        return _tell_found(found._asdict())
    options = {name: getattr(chosen, name) for name in ("split_file", "seed", "labels")}
    options["labeler"] = load_labeler(chosen.labeler)
    if chosen.reports_only:
        summary = read_open_i_statistics(chosen.source, chosen.output, **options)
        print("\n".join(summary.lines()))
        return print(f"\n{chosen.output} has reports.csv and summary.json")
    options |= {"view_table": chosen.view_table, "one_image": not chosen.all_images}
    return _tell(prepare_open_i(chosen.source, chosen.output, **options, **_of_all(chosen)), chosen.output)


def _vqa_rad(chosen: Namespace) -> None:
    from medvill_pl.preparation.vqa_rad import check_vqa_rad, prepare_vqa_rad

    if chosen.dry_run:
        return _tell_found(check_vqa_rad(chosen.source)._asdict())
    options = {name: getattr(chosen, name) for name in ("split", "val_fraction", "seed")}
    return _tell(prepare_vqa_rad(chosen.source, chosen.output, **options, **_of_all(chosen)), chosen.output)


def _pairs(chosen: Namespace) -> None:
    from medvill_pl.labeler.base import load_labeler
    from medvill_pl.preparation.pairs import prepare_pairs, read_pairs

    columns = {f"{name}_column": getattr(chosen, f"{name}_column") for name in _COLUMNS}
    columns |= {name: getattr(chosen, name) for name in ("image_root", "val_fraction", "test_fraction")}
    columns |= {"is_credentialed": chosen.credentialed, "split_seed": chosen.seed}
    if chosen.dry_run:
        rows, _ = read_pairs(chosen.source, **columns)
        missing = next((row.image for row in rows if not row.rejection and not Path(row.image).is_file()), None)
        if missing:
            raise FileNotFoundError(f"no such image: {missing}")
        return _tell_found({"table": chosen.source})
    options: dict[str, Any] = {"label": not chosen.no_labels, "labeler": load_labeler(chosen.labeler)}
    summary = prepare_pairs(chosen.source, chosen.output, **options, **_of_all(chosen), **columns)
    return _tell(summary, chosen.output)
