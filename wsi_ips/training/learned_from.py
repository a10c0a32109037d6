"""What a training learned from, by content: :class:`LearnedFrom`.

A training that is started again goes on from its last state, or is finished already. The names of the slides and
their labels do not tell whether that is still right: a slide may have been scanned again, features may have been
stored again by another encoder, a checkpoint that the training begins from may have been replaced. So a training
keeps fingerprints of the files that it learns from, and is refused when they are others now, as it is when a label
is another one.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from wsi_ips.config import EncoderConfig, FinetuneConfig
from wsi_ips.datasets.feature_files import find_features
from wsi_ips.datasets.manifest import SlideRecord
from wsi_ips.errors import WsiIpsError, first_of
from wsi_ips.models.encoders.registry import code_file
from wsi_ips.models.encoders.weights import fingerprint_of_weights, weights_file
from wsi_ips.slides.resolution import mpp_in_words
from wsi_ips.storage.location import Location
from wsi_ips.tiling.coords import slide_fingerprint
from wsi_ips.units import Mpp

AT_ONCE = 8
"""Threads that read samples of files, which is waiting on a network drive."""
MOST_NAMED = 3
"""How many slides a message names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedFrom:
    """Everything on disk that decides the result of a training, beside its settings, labels and coordinates.

    Attributes:
        slides: ``{slide_id: fingerprint}`` of each slide, or of the file with its features; empty where there is
            none, because the file cannot be read.
        mpp_given: ``{slide_id: µm per pixel}`` of the slides whose resolution the user gave.
        weights: ``{setting: checksum}`` of the files of weights, and of code, that the settings name.
        bag: The setting ``bag``, what shares a label.
    """

    slides: Mapping[str, str]
    mpp_given: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    bag: str = "slide"

    @classmethod
    def now(
        cls,
        records: Sequence[SlideRecord],
        config: FinetuneConfig,
        *,
        features: Path | None = None,
        slide_mpp: Callable[[str], Mpp | None] | None = None,
        slides: Mapping[str, str] | None = None,
    ) -> Self:
        """What a training would learn from if it began now. It has to be asked for before the files are read.

        Args:
            records: The slides.
            config: The settings of the training.
            features: Folder of stored features that are read instead of the slides.
            slide_mpp: Gives the resolution of a slide if the user knows it better than the file, or None.
            slides: The fingerprints of the slides, where they are known already (:func:`slide_fingerprints`).

        Raises:
            FeaturesError: Features of a slide are missing.
        """
        known = {record.slide_id: slide_mpp(record.slide_id) for record in records} if slide_mpp else {}
        return cls(
            slides=slide_fingerprints(records, features) if slides is None else slides,
            mpp_given={slide_id: float(mpp) for slide_id, mpp in known.items() if mpp is not None},
            weights=_weights(config),
            bag=config.bag,
        )

    def only(self, slide_ids: Iterable[str]) -> Self:
        """The same of these slides alone."""
        wanted = set(slide_ids)
        return replace(
            self,
            slides={name: print_ for name, print_ in self.slides.items() if name in wanted},
            mpp_given={name: mpp for name, mpp in self.mpp_given.items() if name in wanted},
        )

    def difference(self, now: Self) -> str:
        """Why a training that learned from this is not the one that would be done now, as a text. Empty if it is,
        as far as that is known: files that could not be read then, or cannot be read now, are not compared.
        """
        changed = [
            name
            for name, before in self.slides.items()
            if before and now.slides.get(name, "") not in ("", before)
        ]
        if changed:
            return f"{_named(changed)} changed since"
        for name in sorted(self.mpp_given.keys() | now.mpp_given.keys()):
            before, given = mpp_in_words(self.mpp_given.get(name)), mpp_in_words(now.mpp_given.get(name))
            if self.mpp_given.get(name) != now.mpp_given.get(name):
                return f"the resolution of slide {name!r} was {before}, now it is {given}"
        for setting, checksum in self.weights.items():
            if checksum and now.weights.get(setting, "") not in ("", checksum):
                return f"the file of {setting} has changed since"
        return "" if self.bag == now.bag else f"bag was {self.bag}, now it is {now.bag}"

    def updated(self, now: Self) -> Self:
        """What is known now, and what was known before of files that cannot be read now."""
        return replace(
            now,
            slides={
                name: now.slides.get(name) or before for name, before in {**now.slides, **self.slides}.items()
            },
            weights={**self.weights, **{name: known for name, known in now.weights.items() if known}},
        )

    @property
    def digest(self) -> str:
        """A short text that is another one for other content."""
        return sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The values by name."""
        return {
            "slides": dict(self.slides),
            "mpp_given": dict(self.mpp_given),
            "weights": dict(self.weights),
            "bag": self.bag,
        }

    @classmethod
    def from_json(cls, stored: Any) -> Self:
        """The object that :meth:`to_json` wrote. Raises ``KeyError``, ``TypeError``, ``ValueError``,
        ``OverflowError`` or ``AttributeError`` for anything else.
        """
        return cls(
            slides={str(name): str(each) for name, each in stored["slides"].items()},
            mpp_given={str(name): float(each) for name, each in stored["mpp_given"].items()},
            weights={str(name): str(each) for name, each in stored["weights"].items()},
            bag=str(stored["bag"]),
        )


def slide_fingerprints(records: Sequence[SlideRecord], features: Path | None = None) -> dict[str, str]:
    """``{slide_id: fingerprint}`` of each slide, or of the file of its stored features in the folder ``features``.

    Raises:
        FeaturesError: Features of a slide are missing.
    """
    ids = [record.slide_id for record in records]
    places: list[Location] = [record.path for record in records]
    if features is not None:
        found = find_features(features, ids)
        places = [found[slide_id] for slide_id in ids]
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="wsi_ips-fingerprint") as pool:
        return dict(zip(ids, pool.map(_fingerprint, places), strict=True))


def _fingerprint(place: Location) -> str:
    try:
        return slide_fingerprint(place)
    except (OSError, ValueError):  # whoever opens the slide says what is wrong with it
        return ""


def _weights(config: FinetuneConfig) -> dict[str, str]:
    """Checksums of the files that the settings name: those that the weights of a training begin from, and the
    Python file of an encoder of the user's own. These are of all their bytes, because the files of two trainings
    may differ in a small part only.
    """
    named = {
        "training.start": config.training.start,
        "selection.scorer": None if config.selection.scorer is None else config.selection.scorer.checkpoint,
        **_encoder_weights(config.model.encoder),
        "model.encoder.name": code_file(config.model.encoder.name),
    }
    return {setting: _checksum(path) for setting, path in named.items() if path is not None and path.exists()}


def _encoder_weights(encoder: EncoderConfig) -> dict[str, Path]:
    """The file that ``encoder.weights`` names, by the setting. Of a folder it is the one file that is read, by a
    name of its own: earlier versions noted the whole folder, and cannot be compared with.
    """
    # A folder that happens to be called timm, such as a clone of it, is no file of weights.
    if encoder.weights in ("timm", "none"):
        return {}
    path = Path(encoder.weights)
    if not path.is_dir():
        return {"model.encoder.weights": path}
    try:
        read = weights_file(encoder)
    except WsiIpsError:  # whoever reads it says what is wrong with it
        return {}
    return {} if read is None else {"model.encoder.weights, a folder,": read}


def _checksum(path: Path) -> str:
    try:
        return fingerprint_of_weights(path)
    except (OSError, WsiIpsError):  # whoever reads it says what is wrong with it
        return ""


def _named(slide_ids: Sequence[str]) -> str:
    shown = first_of(list(map(repr, slide_ids)), MOST_NAMED)
    if len(slide_ids) == 1:
        return f"the file of {shown} has"
    return f"the files of {len(slide_ids)} slides ({shown}) have"
