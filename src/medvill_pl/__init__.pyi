# The public names, in the one list there is. Type checkers and editors read it; `__init__.py` makes the lazy imports,
# `__all__` and `dir()` from it. `X as X` is how a stub says that a name is public.

from .atomic_checkpoint_io import AtomicCheckpointIO as AtomicCheckpointIO
from .baselines.image_classifier import ImageClassifier as ImageClassifier
from .batch import FINDINGS as FINDINGS
from .batch import Batch as Batch
from .callbacks.best_checkpoint import BestCheckpoint as BestCheckpoint
from .callbacks.example_table import ExampleTable as ExampleTable
from .callbacks.prediction_table import PredictionTable as PredictionTable
from .callbacks.search_page import SearchPage as SearchPage
from .callbacks.throughput import Throughput as Throughput
from .data.folder import FolderDataModule as FolderDataModule
from .data.mimic_cxr import MIMICCXRDataModule as MIMICCXRDataModule
from .data.module import BaseDataModule as BaseDataModule
from .data.open_i import OpenIDataModule as OpenIDataModule
from .data.pairs import PairsDataModule as PairsDataModule
from .data.streaming import StreamingDataModule as StreamingDataModule
from .data.vqa_rad import VQARADDataModule as VQARADDataModule
from .evaluation.results import Results as Results
from .evaluation.results import compare as compare
from .labeler.base import Labeler as Labeler
from .labeler.chexpert import CheXpertLabeler as CheXpertLabeler
from .masks import MaskStrategy as MaskStrategy
from .masks import attention_mask as attention_mask
from .models.config import BackboneConfig as BackboneConfig
from .models.decoding.config import DecodingConfig as DecodingConfig
from .models.decoding.generate import generate as generate
from .models.medvill import BackboneOutput as BackboneOutput
from .models.medvill import MedViLL as MedViLL
from .runs import RunLogger as RunLogger
from .synthetic.datamodule import SyntheticDataModule as SyntheticDataModule
from .synthetic.datamodule import SyntheticVQADataModule as SyntheticVQADataModule
from .tasks.backbone_task import BackboneTask as BackboneTask
from .tasks.base import BaseTask as BaseTask
from .tasks.checkpoints import load_backbone as load_backbone
from .tasks.classification import ClassificationTask as ClassificationTask
from .tasks.generation import GenerationTask as GenerationTask
from .tasks.pretraining import PretrainingTask as PretrainingTask
from .tasks.result_table import ResultTable as ResultTable
from .tasks.retrieval import RetrievalTask as RetrievalTask
from .tasks.step import StepOutput as StepOutput
from .tasks.vqa import VQATask as VQATask
from .tokenizer import InputSpec as InputSpec
from .tokenizer import ReportTokenizer as ReportTokenizer

__version__: str
