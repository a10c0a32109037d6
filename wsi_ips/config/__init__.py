"""Every knob. Frozen, ranges checked, a key that is not known refused. Imports neither numpy nor torch.

A part of the program receives its own section, never the whole configuration.
"""

from wsi_ips.config.batch import BatchConfig
from wsi_ips.config.coarse import CoarseConfig, SamplingConfig
from wsi_ips.config.data import ImageDataConfig, MegapixelMnistConfig, SyntheticConfig, TrafficSignsConfig
from wsi_ips.config.detection import DetectorConfig, DetectorTrainingConfig
from wsi_ips.config.limits import LARGEST_OVERLAY_PX
from wsi_ips.config.model import (
    AttentionConfig,
    EncoderConfig,
    ModelConfig,
    SelectionConfig,
    TaskConfig,
    task_queries,
)
from wsi_ips.config.pipeline import DemoConfig, FinetuneConfig, PipelineConfig
from wsi_ips.config.search import (
    ControllerConfig,
    EvolutionConfig,
    ProxyConfig,
    SearchConfig,
    SearchSpaceConfig,
    StrategyName,
)
from wsi_ips.config.section import Fraction, Section, fingerprint
from wsi_ips.config.slides import StreamingConfig, TilingConfig, TissueConfig, UpsamplingConfig
from wsi_ips.config.specification import (
    READ_NO_FILE,
    NamedSpecification,
    SpecificationTable,
    read_specification_table,
)
from wsi_ips.config.tissue_model import TissueModelConfig
from wsi_ips.config.training import AugmentConfig, ClassWeights, TrainingConfig

__all__ = [
    "LARGEST_OVERLAY_PX",
    "READ_NO_FILE",
    "AttentionConfig",
    "AugmentConfig",
    "BatchConfig",
    "ClassWeights",
    "CoarseConfig",
    "ControllerConfig",
    "DemoConfig",
    "DetectorConfig",
    "DetectorTrainingConfig",
    "EncoderConfig",
    "EvolutionConfig",
    "FinetuneConfig",
    "Fraction",
    "ImageDataConfig",
    "MegapixelMnistConfig",
    "ModelConfig",
    "NamedSpecification",
    "PipelineConfig",
    "ProxyConfig",
    "SamplingConfig",
    "SearchConfig",
    "SearchSpaceConfig",
    "Section",
    "SelectionConfig",
    "SpecificationTable",
    "StrategyName",
    "StreamingConfig",
    "SyntheticConfig",
    "TaskConfig",
    "TilingConfig",
    "TissueConfig",
    "TissueModelConfig",
    "TrafficSignsConfig",
    "TrainingConfig",
    "UpsamplingConfig",
    "fingerprint",
    "read_specification_table",
    "task_queries",
]
