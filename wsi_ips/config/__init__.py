"""Every knob. Frozen, ranges checked, a key that is not known refused. Imports neither numpy nor torch.

A part of the program receives its own section, never the whole configuration.
"""

from wsi_ips.config.model import (
    READ_NO_FILE,
    AttentionConfig,
    CoarseConfig,
    EncoderConfig,
    ModelConfig,
    NamedSpecification,
    SamplingConfig,
    SelectionConfig,
    SpecificationTable,
    TaskConfig,
    read_specification_table,
    task_queries,
)
from wsi_ips.config.pipeline import BatchConfig, DemoConfig, FinetuneConfig, PipelineConfig
from wsi_ips.config.section import LARGEST_OVERLAY_PX, Fraction, Section, fingerprint
from wsi_ips.config.slides import (
    ImageDataConfig,
    MegapixelMnistConfig,
    StreamingConfig,
    SyntheticConfig,
    TilingConfig,
    TissueConfig,
    TissueModelConfig,
    TrafficSignsConfig,
    UpsamplingConfig,
)
from wsi_ips.config.training import AugmentConfig, ClassWeights, Monitor, TrainingConfig
from wsi_ips.nuclei.config import DetectorConfig, DetectorTrainingConfig
from wsi_ips.search.config import (
    ControllerConfig,
    EvolutionConfig,
    ProxyConfig,
    SearchConfig,
    SearchSpaceConfig,
    StrategyName,
)

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
    "Monitor",
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
