"""What is written down about a published encoder: :class:`EncoderEntry`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wsi_ips.config import TransformConfig

Output = Literal["cls", "cls_mean", "model"]
"""What becomes the embedding: the class token (``cls``), the class token beside the mean of the patch tokens
(``cls_mean``), or what the network pools itself (``model``).
"""
Statistics = tuple[float, float, float]
"""A value for each of red, green and blue, in 0..1."""

IMAGENET_MEAN: Statistics = (0.485, 0.456, 0.406)
IMAGENET_STD: Statistics = (0.229, 0.224, 0.225)
HALF: Statistics = (0.5, 0.5, 0.5)
CLIP_MEAN: Statistics = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Statistics = (0.26862954, 0.26130258, 0.27577711)

UNCHANGED = TransformConfig()
"""A transform that leaves patches as they are."""

HUB = "https://huggingface.co/"
"""Address of the Hugging Face hub."""


@dataclass(frozen=True, slots=True)
class TimmArchitecture:
    """A network that timm builds.

    Attributes:
        name: Its name in timm.
        arguments: Keyword arguments of ``timm.create_model``. Classes are written as the words of
            :data:`wsi_ips.models.encoders.network.LAYERS`.
        stage: The feature stage that is average-pooled. None: the whole network is used.
    """

    name: str
    arguments: Mapping[str, Any]
    stage: int | None = None


@dataclass(frozen=True, slots=True)
class OwnArchitecture:
    """A network that timm does not have.

    Attributes:
        build: A function without arguments, or its place as ``package.module:function``. It returns a module
            that maps normalised pixels (n, 3, P, P) to (n, width). If the module has a method
            ``renamed(tensors)``, the tensors of a weights file go through it first: ``{name in the file:
            tensor}`` to ``{name in the module: tensor}``.
    """

    build: str | Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderEntry:
    """An encoder that can be used by its name.

    Attributes:
        name: What a user calls it.
        sources: Repositories on the Hugging Face hub that hold its weights, that of the authors first. Empty if
            none does: the function of an :class:`OwnArchitecture` then loads the weights itself, and for a
            :class:`TimmArchitecture` the user names a file.
        files: Names of the weights file there, the preferred one first; empty without sources.
        licence: The licence of the weights.
        gated: Whether the hub asks for consent first.
        architecture: The network.
        patch_px: Side in pixels of the patches that it is meant for.
        transform: What is done to such a patch.
        mean, std: Mean and standard deviation of red, green and blue, in 0..1.
        mpp: µm per pixel of the patches that it was trained on, the recommended one first. Empty if nobody says.
        mpp_basis: Whether the authors state the resolution (``stated``), name only a magnification
            (``magnification``), or users have settled on it (``convention``).
        output: What becomes the embedding.
        prefix_tokens: Number of class and register tokens in front of the patch tokens; 0 if there are no
            tokens.
        width: Width of an embedding.
        parameters: Number of weights of the network as it is built here.
        precision: The precision that its authors compute in.
        checked: ``run`` if the architecture was built and counted against published figures, ``inferred`` if an
            argument was derived from such figures, ``read`` if it was written down from code alone.
    """

    name: str
    sources: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    licence: str
    gated: bool = False
    architecture: TimmArchitecture | OwnArchitecture
    patch_px: int
    transform: TransformConfig = UNCHANGED
    mean: Statistics
    std: Statistics
    mpp: tuple[float, ...] = ()
    mpp_basis: Literal["stated", "magnification", "convention", "none"] = "none"
    output: Output = "model"
    prefix_tokens: int = 0
    width: int
    parameters: int
    precision: Literal["32", "bf16", "fp16"] = "32"
    checked: Literal["run", "inferred", "read"] = "read"

    @property
    def problem(self) -> str:
        """What is impossible in this entry, in words; "" if nothing is.

        It is asked when the encoder is asked for, so that a wrong entry breaks no other one of its module.
        """
        wrong = {
            f"name is {self.name!r}, but has to be in lower case and without ':' and '/'": (
                self.name != self.name.lower() or {":", "/"} & set(self.name)
            ),
            f"sources are {self.sources!r} and files {self.files!r}, but one goes with the other": (
                bool(self.sources) != bool(self.files)
            ),
            "licence is empty": not self.licence,
            f"mean is {self.mean!r} and std {self.std!r}, but each has three values, and std is above 0": (
                not len(self.mean) == len(self.std) == 3 or min(self.std) <= 0
            ),
            f"mpp is {self.mpp!r}, but µm per pixel are above 0": any(mpp <= 0 for mpp in self.mpp),
            f"mpp_basis is {self.mpp_basis!r} and mpp {self.mpp!r}, but 'none' goes with no mpp": (
                bool(self.mpp) != (self.mpp_basis != "none")
            ),
            **{
                f"{field} is {value}, but has to be above 0": value <= 0
                for field, value in (
                    ("patch_px", self.patch_px),
                    ("width", self.width),
                    ("parameters", self.parameters),
                )
            },
            f"output is {self.output!r}, but prefix_tokens is {self.prefix_tokens}": (
                self.output != "model" and self.prefix_tokens <= 0
            ),
        }
        return "; ".join(words for words, is_wrong in wrong.items() if is_wrong)

    @property
    def brings_weights(self) -> bool:
        """Whether the function that builds the network also loads its weights, since no repository holds them."""
        return not self.sources and isinstance(self.architecture, OwnArchitecture)

    @property
    def input_px(self) -> int:
        """Side in pixels of the picture that the network itself gets."""
        return self.transform.crop or self.transform.resize or self.patch_px

    @property
    def page(self) -> str:
        """The page of the encoder, with its licence and, if it is gated, the form that asks for consent; "" for an
        encoder without sources.
        """
        return HUB + self.sources[0] if self.sources else ""


def resized(
    px: int, *, crop: int | None = None, interpolation: Literal["bilinear", "bicubic"] = "bilinear"
) -> TransformConfig:
    """The usual transform: resize to ``px`` pixels, then keep the central ``crop`` pixels."""
    return TransformConfig(resize=px, crop=crop, interpolation=interpolation)
