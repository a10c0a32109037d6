"""Settings of the model that a configuration leaves open, decided before anything learns.

They are ``model.encoder.standardise`` and ``model.attention.layer_norm``. What was decided is written into
``run.json`` and the checkpoint. A setting that is still open there means that it is not done, as in the files of
versions that did not know it.
"""

import json
from pathlib import Path
from typing import Literal

from wsi_ips.config import FinetuneConfig, ModelConfig
from wsi_ips.models.checkpoint_head import checkpoint_config
from wsi_ips.training.run_state import HEAD_START, RUN_NAME, STARTS, STATE_NAME


def decide_open_settings(config: FinetuneConfig, out: Path) -> FinetuneConfig:
    """The configuration, with all settings decided that it leaves open.

    A run that was begun in ``out`` goes on as it began, also one that an earlier version began; what begins from
    the checkpoint ``training.start`` does as that one does. Otherwise:

    - ``encoder.standardise``: features of several stages are standardised and all others centred. The published
      networks (the paper's block, attention sampling) and encoders with random weights stay as they are.
    - ``attention.layer_norm``: the direct block has it where the encoder begins with random weights.

    Raises:
        CheckpointError: The checkpoint ``training.start`` cannot be read.
    """
    before = _begun(out)
    if before is None and config.training.start is not None:
        before = checkpoint_config(config.training.start).model
    return with_open_settings_of(config, before or _decided(config))


def with_open_settings_of(config: FinetuneConfig, model: ModelConfig) -> FinetuneConfig:
    """The configuration, in which the settings that it leaves open are those of ``model``."""
    encoder, attention = config.model.encoder, config.model.attention
    if encoder.standardise is None:
        encoder = encoder.model_copy(update={"standardise": model.encoder.standardise})
    if attention.layer_norm is None and attention.block == "direct" and config.model.aggregator is None:
        attention = attention.model_copy(update={"layer_norm": model.attention.layer_norm})
    settled = config.model.model_copy(update={"encoder": encoder, "attention": attention})
    return config.model_copy(update={"model": settled})


def _decided(config: FinetuneConfig) -> ModelConfig:
    """The model of a new training, with its settings decided. What is not done stays open, as earlier versions
    write it."""
    model, sampling = config.model, config.selection.selector == "attention_sampling"
    standardise: Literal["centre"] | bool | None = True if model.encoder.pools_stages else "centre"
    if model.encoder.begins_random or model.attention.block == "paper" or sampling:
        standardise = None
    layer_norm = True if model.encoder.begins_random and model.aggregator is None and not sampling else None
    return model.model_copy(
        update={
            "encoder": model.encoder.model_copy(update={"standardise": standardise}),
            "attention": model.attention.model_copy(update={"layer_norm": layer_norm}),
        }
    )


def _begun(out: Path) -> ModelConfig | None:
    """The model of the run in ``out`` that training goes on with. None: there is none, or none that can be read.

    Where the run itself has not come to its first epoch yet, its head start or one of its starts says it.
    """
    folders = [out, out / HEAD_START, *(out / STARTS).glob("*"), *(out / HEAD_START / STARTS).glob("*")]
    for folder in (folder for folder in folders if (folder / STATE_NAME).exists()):
        try:
            run = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
            return ModelConfig.model_validate(run["config"]["model"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
