"""The corpus form: what every dataset is prepared into, and how it is read.

A corpus is a folder of Parquet shards, a ``corpus.json`` that is written last, and a
``rejected.csv`` of the rows that could not be used.
"""

from medvill_pl.data.corpus.reader import CorpusExamples
from medvill_pl.data.corpus.schema import CorpusInfo, Row
from medvill_pl.data.corpus.writer import write_corpus

__all__ = ["CorpusExamples", "CorpusInfo", "Row", "write_corpus"]
