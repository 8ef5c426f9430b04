"""Medical vision-language learning with PyTorch Lightning: MedViLL and its tasks.

The public names are imported when they are first used, so importing the package is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from medvill_pl.batch import FINDINGS, Batch
    from medvill_pl.callbacks.example_table import ExampleTable
    from medvill_pl.callbacks.prediction_table import PredictionTable
    from medvill_pl.callbacks.search_page import SearchPage
    from medvill_pl.callbacks.throughput import Throughput
    from medvill_pl.checkpoint_io import AtomicCheckpointIO
    from medvill_pl.data.folder import FolderDataModule
    from medvill_pl.data.mimic_cxr import MIMICCXRDataModule
    from medvill_pl.data.module import BaseDataModule
    from medvill_pl.data.open_i import OpenIDataModule
    from medvill_pl.data.pairs import PairsDataModule
    from medvill_pl.data.streaming import StreamingDataModule
    from medvill_pl.data.vqa_rad import VQARADDataModule
    from medvill_pl.labeler.base import Labeler
    from medvill_pl.labeler.chexpert import CheXpertLabeler
    from medvill_pl.masks import MaskStrategy, attention_mask
    from medvill_pl.models.medvill import BackboneConfig, BackboneOutput, MedViLL
    from medvill_pl.synthetic.datamodule import SyntheticDataModule, SyntheticVQADataModule
    from medvill_pl.tasks.base import BaseTask, StepOutput
    from medvill_pl.tasks.classification import ClassificationTask
    from medvill_pl.tasks.generation import GenerationTask
    from medvill_pl.tasks.pretraining import PretrainingTask
    from medvill_pl.tasks.result_table import ResultTable
    from medvill_pl.tasks.retrieval import RetrievalTask
    from medvill_pl.tasks.vqa import VQATask
    from medvill_pl.tokenizer import ReportTokenizer

_HOME = {
    "AtomicCheckpointIO": "checkpoint_io",
    "BackboneConfig": "models.medvill",
    "BackboneOutput": "models.medvill",
    "BaseDataModule": "data.module",
    "BaseTask": "tasks.base",
    "Batch": "batch",
    "CheXpertLabeler": "labeler.chexpert",
    "ClassificationTask": "tasks.classification",
    "ExampleTable": "callbacks.example_table",
    "FINDINGS": "batch",
    "FolderDataModule": "data.folder",
    "GenerationTask": "tasks.generation",
    "Labeler": "labeler.base",
    "MIMICCXRDataModule": "data.mimic_cxr",
    "MaskStrategy": "masks",
    "MedViLL": "models.medvill",
    "OpenIDataModule": "data.open_i",
    "PairsDataModule": "data.pairs",
    "PredictionTable": "callbacks.prediction_table",
    "PretrainingTask": "tasks.pretraining",
    "ReportTokenizer": "tokenizer",
    "ResultTable": "tasks.result_table",
    "RetrievalTask": "tasks.retrieval",
    "SearchPage": "callbacks.search_page",
    "StepOutput": "tasks.base",
    "StreamingDataModule": "data.streaming",
    "SyntheticDataModule": "synthetic.datamodule",
    "SyntheticVQADataModule": "synthetic.datamodule",
    "Throughput": "callbacks.throughput",
    "VQARADDataModule": "data.vqa_rad",
    "VQATask": "tasks.vqa",
    "attention_mask": "masks",
}

__all__ = [
    "FINDINGS",
    "AtomicCheckpointIO",
    "BackboneConfig",
    "BackboneOutput",
    "BaseDataModule",
    "BaseTask",
    "Batch",
    "CheXpertLabeler",
    "ClassificationTask",
    "ExampleTable",
    "FolderDataModule",
    "GenerationTask",
    "Labeler",
    "MIMICCXRDataModule",
    "MaskStrategy",
    "MedViLL",
    "OpenIDataModule",
    "PairsDataModule",
    "PredictionTable",
    "PretrainingTask",
    "ReportTokenizer",
    "ResultTable",
    "RetrievalTask",
    "SearchPage",
    "StepOutput",
    "StreamingDataModule",
    "SyntheticDataModule",
    "SyntheticVQADataModule",
    "Throughput",
    "VQARADDataModule",
    "VQATask",
    "__version__",
    "attention_mask",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'medvill_pl' has no attribute {name!r}")
    return getattr(import_module(f"medvill_pl.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
