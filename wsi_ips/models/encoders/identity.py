"""What stored features are of: which encoder (:class:`EncoderIdentity`) saw patches of which size
(:class:`FeaturesOrigin`).

Features of two encoders may be equally wide, and so are those of small and large patches. A model that learned
from one of them gives an answer for the others as well, and that answer is wrong. So every file of features that
wsi_ips writes says which encoder made it and how large its patches are; of other programs' files, TRIDENT's and
STAMP's say how large they are. A model keeps what its features said, and features that it reads later are compared
with that.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Self

from wsi_ips.config import EncoderConfig
from wsi_ips.config.encoder import IDENTITY

DIGITS = 12
"""Hexadecimal digits of a SHA-256 that are kept, as :data:`IDENTITY` has them."""
COMPARED_APART = ("name", "weights")
"""Settings that have a place of their own in an identity. Both may be paths, which differ between machines."""
LEARNS_ONLY = ("trainable", "project", "standardise", "features", "batch_norm", "drop_path", "lora")
"""Settings that change nothing before an encoder learns."""
MOST_RATIO = 1.25
"""By which factor patches may differ in size before they are others. Programs that know only a magnification take
0.25 µm per pixel for what is 0.22 to 0.28, and encoders are given 224 px as well as 256 px.
"""


@dataclass(frozen=True, slots=True)
class EncoderIdentity:
    """What tells an encoder from others.

    Attributes:
        name: Its name, as ``encoder.name``.
        settings: Digest of what else decides its features: transform, pooling, code, ...
        weights: ``file:`` and a digest of the file of weights; where no file was given, the name of the weights
            (``timm``, ``none``, a package).
    """

    name: str
    settings: str
    weights: str

    @classmethod
    def of_settings(cls, name: str, settings: Mapping[str, Any]) -> Self:
        """The identity of an encoder that ``features`` stores with these settings.

        Args:
            name: Its name.
            settings: ``checkpoint`` (SHA-256 of a model), or ``encoder`` (its configuration) with
                ``weights_sha256``; what else there is belongs to its code.
        """
        settings = dict(settings)
        encoder = dict(settings.pop("encoder", {}))
        file = settings.pop("checkpoint", None) or settings.pop("weights_sha256", None)
        weights = f"file:{file[:DIGITS]}" if file else _word(str(encoder.get("weights", "none")))
        left_out = (*COMPARED_APART, *LEARNS_ONLY)
        settings["encoder"] = {key: value for key, value in encoder.items() if key not in left_out}
        settings.pop("patches", None)  # how slides are tiled
        digest = sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:DIGITS]
        return cls(_word(name), digest, weights)

    @classmethod
    def from_text(cls, text: str | None) -> Self | None:
        """The identity that a text holds; None for no text, or one of another form."""
        return cls(*text.split(" ")) if text is not None and re.fullmatch(IDENTITY, text) else None

    def __str__(self) -> str:
        return f"{self.name} {self.settings} {self.weights}"

    def difference(self, other: Self) -> str:
        """What the other encoder is if it is not this one, in words. Empty if it is this one, or if nobody can
        tell: weights from a file and weights by name may be the same.
        """
        if self.name != other.name:
            return other.name
        if self.settings != other.settings:
            return f"{other.name} with other settings"
        comparable = self.weights.startswith("file:") == other.weights.startswith("file:")
        return f"{other.name} with other weights" if comparable and self.weights != other.weights else ""


@dataclass(frozen=True, slots=True)
class FeaturesOrigin:
    """What stored features are of, as far as it is known.

    Attributes:
        encoder: The encoder that made them. None: not known.
        um_patch: Side of their patches in µm. None: not known.
    """

    encoder: EncoderIdentity | None = None
    um_patch: float | None = None

    @classmethod
    def of_config(cls, encoder: EncoderConfig) -> Self:
        """What a model that reads stored features learned from."""
        return cls(EncoderIdentity.from_text(encoder.features_of), encoder.features_patch_um)

    def into(self, encoder: EncoderConfig) -> EncoderConfig:
        """The configuration of a model that learns from such features."""
        of = None if self.encoder is None else str(self.encoder)
        return encoder.model_copy(update={"features_of": of, "features_patch_um": self.um_patch})

    def filled_from(self, other: Self) -> Self:
        """This, with what is not known taken from ``other``."""
        return type(self)(self.encoder or other.encoder, self.um_patch or other.um_patch)

    def difference(self, other: Self) -> tuple[str, str] | None:
        """Where both are known and differ: what the other's features are of, and what these are of, in words."""
        if self.encoder and other.encoder and (theirs := self.encoder.difference(other.encoder)):
            return theirs, self.encoder.name
        if self.um_patch and other.um_patch:
            small, large = sorted((self.um_patch, other.um_patch))
            if large > MOST_RATIO * small:
                return f"patches of {other.um_patch:.4g} µm", f"patches of {self.um_patch:.4g} µm"
        return None


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:120] or "_"
