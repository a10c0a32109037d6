"""Which patches suit an encoder: :func:`fitting_tiling` fills in what the user has not set, and warns of a
misfit.
"""

import logging

from wsi_ips.config import EncoderConfig, TilingConfig, TransformConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.encoders.entry import EncoderEntry
from wsi_ips.models.encoders.registry import entry_of

SAME_MPP = 0.02
"""Two resolutions that differ by less than this share count as the same."""
ENLARGED = 1.5
"""By which factor it is worth enlarging small patches; docs/learning.md has the figures."""
SMALL = 0.75
"""Patches whose side is less than this share of the pictures that an encoder learned from count as small."""

logger = logging.getLogger(__name__)


def fitting_tiling(
    tiling: TilingConfig, encoder: EncoderConfig, *, said: set[str] | None = None
) -> TilingConfig:
    """The tiling with the ``patch_px`` and ``patch_mpp`` of a listed encoder in place of those that the user has
    not set.

    What the user has set stays, and a warning with both numbers says where it differs. For an encoder that is
    not listed, the tiling is returned as it is; a model of timm with pretrained weights gets a warning if the
    patches are far smaller than the pictures that it learned from, and nothing enlarges them. A warning that is in
    ``said`` is not given again, and a new one is added to it.

    Raises:
        ConfigError: The patches of the encoder are not larger than the overlap that was set.
    """
    entry = entry_of(encoder.name)
    if entry is None:
        _warn(too_small(encoder, patch_px=tiling.patch_px), said)
        return tiling
    own: dict[str, float] = {"patch_px": entry.input_px if encoder.transform == "none" else entry.patch_px}
    if entry.mpp:
        own["patch_mpp"] = entry.mpp[0]
    missing = {name: value for name, value in own.items() if name not in tiling.model_fields_set}
    fitted = tiling.model_copy(update=missing)
    if fitted.overlap_px >= fitted.patch_px:
        raise ConfigError(
            f"tiling.overlap_px {fitted.overlap_px} must be smaller than the {fitted.patch_px} px of "
            f"{entry.name}'s patches"
        )
    _warn(misfit(entry, encoder, patch_px=fitted.patch_px, patch_mpp=fitted.patch_mpp), said)
    return fitted


def _warn(text: str, said: set[str] | None) -> None:
    if text and text not in (said or ()):
        logger.warning("%s", text)
        if said is not None:
            said.add(text)


def misfit(entry: EncoderEntry, encoder: EncoderConfig, *, patch_px: int, patch_mpp: float) -> str:
    """In which way these patches differ from those that the encoder was trained on, as a text. Empty if they do
    not.
    """
    wanted_px = entry.input_px if encoder.transform == "none" else entry.patch_px
    known = not entry.mpp or any(abs(patch_mpp / mpp - 1) <= SAME_MPP for mpp in entry.mpp)
    if known and patch_px == wanted_px:
        return ""
    resolutions = " or ".join(f"{mpp:g}" for mpp in entry.mpp)
    meant = f"{wanted_px} px" + (f" at {resolutions} µm per pixel" if resolutions else "")
    transform = entry.transform if encoder.transform == "own" else encoder.transform
    seen = patch_mpp
    if isinstance(transform, TransformConfig) and transform.resize:
        seen = patch_mpp * patch_px / transform.resize
    return (
        f"encoder {entry.name} is meant for patches of {meant}; these have {patch_px} px at {patch_mpp:g}, which "
        f"it sees at {seen:.3g} µm per pixel"
    )


def too_small(encoder: EncoderConfig, *, patch_px: int) -> str:
    """What to do about patches that are far smaller than the pictures that a model of timm learned from, as a
    text. Empty if they are not, or if nobody knows.
    """
    if (
        encoder.transform == "none"
        or isinstance(encoder.transform, TransformConfig)
        or encoder.weights == "none"
    ):
        return ""
    import timm  # takes a second, which an encoder that is listed does not have to wait here

    try:
        known = timm.models.get_pretrained_cfg(encoder.name)
    except (RuntimeError, ValueError, KeyError):
        return ""
    if known is None or known.fixed_input_size or patch_px >= SMALL * known.input_size[-1]:
        return ""
    side = known.input_size[-1]
    larger = min(side, round(ENLARGED * patch_px))
    return (
        f"encoder {encoder.name} learned from pictures of {side} px and is given patches of {patch_px} px; it "
        f"may see more in patches that are enlarged: encoder.transform: {{resize: {larger}}} (docs/encoders.md)"
    )
