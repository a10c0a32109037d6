"""The kept patches of a run's slides as the network reads them: :class:`KeptBags`.

A run stores what the network said, and on request the embeddings of the kept patches. Asking the network again
needs its checkpoint. Embeddings that were not stored are made anew from the slide, or from its stored features.
What the network then says of the whole bag has to be what is stored; otherwise the slide, the checkpoint or the
settings are not those of the run, and every number would be of something else.

Shape suffixes: M kept patches, D width of embeddings.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import ValidationError
from torch import Tensor

from wsi_ips.config import StreamingConfig
from wsi_ips.config.section import first_problem
from wsi_ips.datasets.feature_files import open_features
from wsi_ips.errors import CheckpointError, ConfigError, ResultsError, one_line
from wsi_ips.evaluation.run.config import EvaluationConfig
from wsi_ips.heatmaps.maps import check_same_slide
from wsi_ips.inference.results import SlideResult, read_result
from wsi_ips.inference.run_folder import RunFolder, description_of, stored_location, turns_of_run
from wsi_ips.models.checkpoint import checkpoint_sha256, load_checkpoint
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.selection.slide_reading import encode_again
from wsi_ips.slides.folder import find_slides, unique_slide_ids
from wsi_ips.slides.registry import open_slide
from wsi_ips.storage.location import Location
from wsi_ips.streaming.device import pick_device
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.training.feature_bags import open_source

SAME_WITHIN = 5e-3
"""How far a probability may be from the stored one. Devices and decoders differ by less, another slide by more."""


@dataclass(frozen=True, slots=True, eq=False)
class KeptBag:
    """The kept patches of one slide, in the order of their ids.

    Attributes:
        result: What is stored of the slide.
        order_M: int64, the places of these patches among ``result.kept_ids_M``.
        emb_MD: Their embeddings, without position.
        places_M: Where they lie, in the form that the network wants.
        x_MD: What the aggregator reads of them.
    """

    result: SlideResult
    order_M: Tensor
    emb_MD: Tensor
    places_M: Tensor
    x_MD: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class KeptBags:
    """The network of a run, and where to find what it read.

    Attributes:
        run: The run.
        net: Its network, in eval mode on its device.
        of_features: Whether it reads stored features, not slides.
        turns: In how many orientations the run read the kept patches.
        streaming: How the run read slides.
        sha256: The SHA-256 of the checkpoint.
        elsewhere: ``{slide_id: where the slide is now}``; None: where ``predict`` read it.
        open_urls: Whether slides at URLs that the run names are opened.
    """

    run: RunFolder
    net: IPSNet
    of_features: bool
    turns: int
    streaming: StreamingConfig
    sha256: str
    elsewhere: Mapping[str, Location] | None
    open_urls: bool

    @classmethod
    def of(cls, config: EvaluationConfig) -> Self:
        """Load the network of the run that is evaluated.

        Raises:
            ConfigError: The run is of several models, or its model has no aggregator.
            CheckpointError: The checkpoint is missing, or is another one.
            ResultsError: ``run.json`` does not say which checkpoint was used.
        """
        run = RunFolder(config.run)
        described = description_of(run)
        if described.get("checkpoints"):
            raise ConfigError(
                f"{config.run} is the mean of several models, and patches are removed from what one model reads: "
                "predict with one checkpoint for --faithfulness"
            )
        if "held_out" in (described.get("config") or {}):
            raise ConfigError(
                f"{config.run} holds what the models of several folds predicted, and patches are removed from "
                "what one model reads: predict with one fold's checkpoint for --faithfulness"
            )
        path, sha256 = _checkpoint(run, described, config.checkpoint)
        net, pipeline = load_checkpoint(path)
        if not isinstance(net, IPSNet):
            raise ConfigError(
                f"{path}: faithfulness needs an aggregator that reads the kept patches, and attention "
                "sampling has none: leave --faithfulness out"
            )
        elsewhere = unique_slide_ids(find_slides(config.slides)) if config.slides is not None else None
        turns = turns_of_run(run)
        return cls(
            run,
            net.to(pick_device(config.device)).eval(),
            pipeline.model.encoder.features is not None,
            turns,
            _streaming(described),
            sha256,
            elsewhere,
            config.open_urls,
        )

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.net.parameters()).device

    @torch.no_grad()
    def read(self, slide_id: str) -> KeptBag:
        """The bag of one slide.

        Raises:
            ResultsError: The stored result cannot be used, or the network says something else of these patches
                than what is stored.
            FileError: The slide or its features cannot be read; the error is that of the file.
        """
        path = self.run.attention(slide_id)
        result = read_result(path)
        if result.checkpoint != self.sha256:
            raise ResultsError(path, "was made with another checkpoint than the run names", "predict again")
        ids_M = torch.from_numpy(result.kept_ids_M)
        order_M = ids_M.argsort()
        if result.kept_emb_MD is not None:
            emb_MD = torch.from_numpy(result.kept_emb_MD).to(self.device)
        else:
            emb_MD = self._encoded(result, ids_M)
        emb_MD, ids_M = emb_MD[order_M.to(self.device)], ids_M[order_M]
        places_M = ids_M
        if self.net.place_kind == "um":
            places_M = torch.from_numpy(result.coords.um_centres(ids_M.numpy()))
        try:
            bag = KeptBag(result, order_M, emb_MD, places_M, self.net.placed(emb_MD, places_M))
            said = self.net.read_placed(bag.x_MD).probabilities
        except RuntimeError as error:  # embeddings of another width, in a file that somebody has changed
            reason = one_line(error, most=200)
            raise ResultsError(
                path, f"holds kept patches that its network cannot read ({reason})", "predict again"
            ) from None
        _check_same(path, result, said)
        return bag

    def _encoded(self, result: SlideResult, ids_M: Tensor) -> Tensor:
        """Embeddings of the kept patches, made anew."""
        batch = self.streaming.batch
        if self.of_features:
            location = stored_location(result.slide_path, open_urls=False)
            with open_source(open_features(Path(str(location))), batch=batch, device=self.device) as source:
                return encode_again(self.net, source, ids_M, batch=batch)
        with open_slide(self._location(result)) as slide:
            check_same_slide(slide, result)
            stream = PatchStream(slide, result.coords, config=self.streaming, device=self.device)
            return encode_again(self.net, stream, ids_M, batch=batch, turns=self.turns)

    def _location(self, result: SlideResult) -> Location:
        slide_id = result.coords.slide_id
        if self.elsewhere is None:
            return stored_location(result.slide_path, open_urls=self.open_urls)
        if slide_id not in self.elsewhere:
            raise ResultsError(
                self.run.attention(slide_id),
                "is of a slide that is not among those of --slides",
                "add it there",
            )
        return self.elsewhere[slide_id]


def _check_same(path: Path, result: SlideResult, said: Mapping[str, Tensor]) -> None:
    """Raise :class:`ResultsError` if the network does not say what is stored in ``path``."""
    for task, classes in result.probabilities.items():
        for place, (name, stored) in enumerate(classes.items()):
            now = float(said[task][0, place])
            if math.isnan(stored) and math.isnan(now):  # survival without a baseline hazard
                continue
            if not abs(now - stored) <= SAME_WITHIN * max(1.0, abs(stored)):
                raise ResultsError(
                    path,
                    f"says {stored:.4g} for {name}, and the network now says {now:.4g} of the same patches",
                    "predict again, or name the slides and the checkpoint of the run",
                )


def _checkpoint(run: RunFolder, described: Mapping[str, Any], given: Path | None) -> tuple[Path, str]:
    """The checkpoint's file, and the SHA-256 that the run names."""
    its = described.get("checkpoint")
    if not isinstance(its, dict) or not its.get("sha256"):
        raise ResultsError(run.description, "does not say which checkpoint was used", "predict again")
    path = given or Path(str(its.get("path", "")))
    if not path.is_file():
        raise CheckpointError(path, "is not there, and faithfulness needs it", "name it with --checkpoint")
    if checkpoint_sha256(path) != its["sha256"]:
        raise CheckpointError(
            path, f"is not the checkpoint that made {run.root}", "name that one with --checkpoint"
        )
    return path, str(its["sha256"])


def _streaming(described: Mapping[str, Any]) -> StreamingConfig:
    """How the run read slides, as far as ``run.json`` says it."""
    config = described.get("config")
    told = config.get("streaming") if isinstance(config, dict) else None
    try:
        return StreamingConfig.model_validate(told or {})
    except ValidationError as error:
        raise ConfigError(
            f"run.json holds streaming settings that cannot be used: {first_problem(error)}"
        ) from None
