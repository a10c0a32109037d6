"""Every setting. Sections are frozen, ranges are checked, and an unknown key is refused.

A part of the program receives its own section, never the whole configuration. This package imports neither numpy
nor torch.
"""

from wsi_ips.config.aggregator import AgainstCollapseConfig, AggregatorConfig
from wsi_ips.config.encoder import Computing, EncoderConfig, LoraConfig, Precision, TransformConfig
from wsi_ips.config.heat import HeatOptions
from wsi_ips.config.model import (
    LETTERS,
    AttentionConfig,
    CoarseConfig,
    ModelConfig,
    SamplingConfig,
    ScorerConfig,
    SelectionConfig,
    TaskConfig,
    Turns,
    TurnsConfig,
    task_queries,
)
from wsi_ips.config.pipeline import BatchConfig, FinetuneConfig, PipelineConfig, WorkersConfig
from wsi_ips.config.section import LARGEST_OVERLAY_PX, Fraction, Section, settings_fingerprint
from wsi_ips.config.slides import (
    DiskCacheConfig,
    StreamingConfig,
    TilingConfig,
    TissueConfig,
    TissueModelConfig,
    UpsamplingConfig,
)
from wsi_ips.config.specification import (
    READ_NO_FILE,
    NamedSpecification,
    SpecificationTable,
    read_specification_table,
)
from wsi_ips.config.survival import SurvivalConfig
from wsi_ips.config.training import AugmentConfig, ClassWeights, Monitor, TrainingConfig

__all__ = [
    "LARGEST_OVERLAY_PX",
    "LETTERS",
    "READ_NO_FILE",
    "AgainstCollapseConfig",
    "AggregatorConfig",
    "AttentionConfig",
    "AugmentConfig",
    "BatchConfig",
    "ClassWeights",
    "CoarseConfig",
    "Computing",
    "DiskCacheConfig",
    "EncoderConfig",
    "FinetuneConfig",
    "Fraction",
    "HeatOptions",
    "LoraConfig",
    "ModelConfig",
    "Monitor",
    "NamedSpecification",
    "PipelineConfig",
    "Precision",
    "SamplingConfig",
    "ScorerConfig",
    "Section",
    "SelectionConfig",
    "SpecificationTable",
    "StreamingConfig",
    "SurvivalConfig",
    "TaskConfig",
    "TilingConfig",
    "TissueConfig",
    "TissueModelConfig",
    "TrainingConfig",
    "TransformConfig",
    "Turns",
    "TurnsConfig",
    "UpsamplingConfig",
    "WorkersConfig",
    "read_specification_table",
    "settings_fingerprint",
    "task_queries",
]
