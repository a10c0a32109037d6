"""What has to be known of a published encoder before it is listed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wsi_ips.config import TransformConfig

Output = Literal["cls", "cls_mean", "model"]
Statistics = tuple[float, float, float]

IMAGENET_MEAN: Statistics = (0.485, 0.456, 0.406)
IMAGENET_STD: Statistics = (0.229, 0.224, 0.225)
HALF: Statistics = (0.5, 0.5, 0.5)
CLIP_MEAN: Statistics = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Statistics = (0.26862954, 0.26130258, 0.27577711)

HUB = "https://huggingface.co/"


@dataclass(frozen=True, slots=True)
class TimmArchitecture:
    """A network that timm builds.

    name: timm's name of it. arguments: keyword arguments of ``timm.create_model``; classes are written as the
    words of :data:`wsi_ips.models.encoders.network.LAYERS`. stage: the feature stage that is average-pooled; none:
    the whole network.
    """

    name: str
    arguments: Mapping[str, Any]
    stage: int | None = None


@dataclass(frozen=True, slots=True)
class OwnArchitecture:
    """A network that timm does not have.

    build: a function without arguments, or its place as ``package.module:function``. It returns a module that maps
    normalised pixels (n, 3, P, P) to (n, width). Where the module has a method ``renamed(tensors)``, weights files
    go through it first: {name in the file: tensor} to {name in the module: tensor}.
    """

    build: str | Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderEntry:
    """An encoder that can be used by its name. Every field has to be given.

    - name: what a user calls it.
    - sources: repositories on the Hugging Face hub that hold its weights, the authors' first.
    - files: names of the weights file there, the preferred one first.
    - licence: of the weights. gated: whether the hub asks for consent first.
    - patch_px: side in pixels of the patches that it is meant for. transform: what is done to such a patch.
    - mean, std: of red, green and blue in 0..1.
    - mpp: micrometres per pixel of the patches that it was trained on, the recommended one first; empty where
      nobody says. mpp_basis: whether the authors state that (``stated``), name only a magnification, or users have
      settled on it (``convention``).
    - output: the class token, the class token beside the mean of the patch tokens, or what the network pools
      itself. prefix_tokens: class and register tokens in front of the patch tokens; 0 where there are no tokens.
    - width: of an embedding. parameters: weights of the network as it is built here.
    - precision: that its authors compute in.
    - checked: ``run`` where the architecture was built and counted against published figures, ``inferred`` where
      an argument was derived from such figures, ``read`` where it was written down from code alone.
    """

    name: str
    sources: tuple[str, ...]
    files: tuple[str, ...]
    licence: str
    gated: bool
    architecture: TimmArchitecture | OwnArchitecture
    patch_px: int
    transform: TransformConfig
    mean: Statistics
    std: Statistics
    mpp: tuple[float, ...]
    mpp_basis: Literal["stated", "magnification", "convention", "none"]
    output: Output
    prefix_tokens: int
    width: int
    parameters: int
    precision: Literal["32", "bf16", "fp16"]
    checked: Literal["run", "inferred", "read"]

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for metadata that cannot be: a wrong entry is an error at import."""
        wrong = [
            what
            for what, holds in {
                "name": self.name == self.name.lower() and not {":", "/"} & set(self.name),
                "sources": bool(self.sources),
                "files": bool(self.files),
                "licence": bool(self.licence),
                "mean and std": len(self.mean) == len(self.std) == 3 and min(self.std) > 0,
                "mpp": all(mpp > 0 for mpp in self.mpp) and bool(self.mpp) == (self.mpp_basis != "none"),
                "sizes": min(self.patch_px, self.width, self.parameters) > 0,
                "output": self.output == "model" or self.prefix_tokens > 0,
            }.items()
            if not holds
        ]
        if wrong:
            raise ValueError(f"encoder {self.name!r} has wrong {', '.join(wrong)}")

    @property
    def input_px(self) -> int:
        """Side in pixels of the picture that the network itself gets."""
        return self.transform.crop or self.transform.resize or self.patch_px

    @property
    def page(self) -> str:
        """The page with its licence and, where it is gated, the form to ask for it."""
        return HUB + self.sources[0]


def resized(
    px: int, *, crop: int | None = None, interpolation: Literal["bilinear", "bicubic"] = "bilinear"
) -> TransformConfig:
    """The usual transform: resize to ``px``, then keep the centre of ``crop`` pixels."""
    return TransformConfig(resize=px, crop=crop, interpolation=interpolation)
