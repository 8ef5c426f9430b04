"""``medvill tokenizer``: a WordPiece vocabulary from reports."""

from pathlib import Path

from medvill_pl.cli.parser import Parser


def run(verb: str, options: list[str]) -> None:
    """Train a tokenizer on the reports of a corpus or a table, and save it to a folder."""
    parser = Parser(f"medvill {verb}", description="Learn a WordPiece vocabulary from reports.")
    parser.add_argument("action", choices=["train"])
    parser.add_argument("corpus", help="a prepared corpus (its training split is read), or a .csv, .jsonl or .parquet")
    parser.add_argument("output", type=Path, help="folder to write tokenizer.json and vocab.txt to")
    parser.add_argument("--report-column", default="report", help="column with the text (default: report)")
    parser.add_argument("--vocab-size", type=int, default=30522, help="most tokens to learn (default: 30522, as BERT)")
    parser.add_argument("--min-frequency", type=int, default=2, help="rarest pair of tokens to join (default: 2)")
    chosen = parser.parse_args(options)

    from medvill_pl.data.pairs import read_reports
    from medvill_pl.tokenizer import ReportTokenizer

    if chosen.output.exists():
        raise FileExistsError(f"{chosen.output} is there already: move it away or choose another folder")
    reports = read_reports(Path(chosen.corpus), chosen.report_column)
    tokenizer = ReportTokenizer.train(reports, chosen.vocab_size, chosen.min_frequency)
    tokenizer.save(chosen.output)
    print(f"{tokenizer.vocab_size:,} tokens from {len(reports):,} reports are in {chosen.output}")
