"""Which encoder made stored features: :class:`EncoderIdentity`.

Features of two encoders may be equally wide. A model that learned from one of them gives an answer for features of
the other as well, and that answer is wrong. So every file of features that wsi_ips writes says which encoder made
it. A model keeps what its features said, and features that it reads later are compared with that.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Self

from wsi_ips.config.encoder import IDENTITY

DIGITS = 12
"""Hexadecimal digits of a SHA-256 that are kept, as :data:`IDENTITY` has them."""
COMPARED_APART = ("name", "weights")
"""Settings that have a place of their own in an identity. Both may be paths, which differ between machines."""
LEARNS_ONLY = ("trainable", "project", "features", "batch_norm", "drop_path", "lora")
"""Settings that change nothing before an encoder learns."""


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


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:120] or "_"
