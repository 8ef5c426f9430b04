"""``medvill label``: the 14 CheXpert observations of report texts."""

from pathlib import Path

from medvill_pl.cli.parser import Parser, add_labeler


def run(verb: str, options: list[str]) -> None:
    """Label the texts of a table and write a table with 14 columns more."""
    parser = Parser(f"medvill {verb}", description="Label reports with the 14 CheXpert observations.")
    parser.add_argument("table", type=Path, help="a .csv, .jsonl or .parquet with one report per row")
    parser.add_argument("--column", default="report", help="column with the text (default: report)")
    parser.add_argument("--output", type=Path, required=True, help="table to write: all columns and 14 more, as .csv")
    parser.add_argument("--explain", action="store_true", help="add a column with the evidence behind each label")
    add_labeler(parser)
    chosen = parser.parse_args(options)

    from medvill_pl.data.pairs import read_reports, read_table
    from medvill_pl.labeler.base import load_labeler
    from medvill_pl.labeler.table import label_table

    if chosen.output.exists():
        raise FileExistsError(f"{chosen.output} is there already: move it away or choose another file")
    labeler = load_labeler(chosen.labeler)
    texts = read_reports(chosen.table, chosen.column)
    label_table(read_table(chosen.table), texts, labeler, chosen.output, chosen.explain)
    print(f"{chosen.output} has the labels of {len(texts):,} reports by the {labeler.name}")
    if num_empty := texts.count(""):
        print(f"empty texts: {num_empty:,}")
