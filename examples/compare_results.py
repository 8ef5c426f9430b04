"""Compare two models that were tested on the same examples, from what their `test` runs wrote; no model is needed.

python examples/compare_results.py runs/a/version_0/test.parquet runs/b/version_0/test.parquet --metrics auroc_micro
"""

import argparse
from pathlib import Path

from medvill_pl.evaluation.results import Results, compare


def main() -> None:
    """Print a table: value, mean and standard deviation over bootstraps, 95 % interval, both p-values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="test.parquet of the model to compare with")
    parser.add_argument("second", type=Path, help="test.parquet of the other")
    parser.add_argument("--metrics", nargs="+", help="names of metrics (default: all that both have)")
    parser.add_argument("--replicates", type=int, default=30, help="bootstraps of the test set (default: 30)")
    options = parser.parse_args()
    results = {str(path.parent): Results.read(path) for path in (options.first, options.second)}
    if len(results) < 2:
        parser.error("give the results of two runs")
    for name, result in results.items():
        print(f"{name}: {result.config['task']}, {len(result.rows):,} results, {result.config['data']['name']}")
        times = ", ".join(f"{ms:.1f} at batch {size}" for size, ms in result.config.get("ms_per_example", {}).items())
        print(f"  {result.config['device']}: ms per example {times}")
    columns = ("value", "mean", "deviation", "low", "high", "p_t_test", "p_paired")
    print(f"{'metric':<28} {'model':<28}" + "".join(f"{name:>10}" for name in columns))
    for row in compare(results, num_replicates=options.replicates, metrics=options.metrics):
        cells = "".join(f"{'' if row[name] is None else f'{row[name]:.4f}':>10}" for name in columns)
        print(f"{row['metric']:<28} {row['model'][-28:]:<28}{cells}")


if __name__ == "__main__":
    main()
