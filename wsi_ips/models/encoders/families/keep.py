"""KEEP (Zhou et al. 2024): the image tower."""

from wsi_ips.models.encoders.entry import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EncoderEntry,
    OwnArchitecture,
    resized,
)

ENTRIES = (
    EncoderEntry(
        name="keep",
        sources=("Astaxanthin/KEEP",),
        files=("model.safetensors",),
        licence="MIT",
        gated=False,
        architecture=OwnArchitecture("wsi_ips.models.encoders.own:keep"),
        patch_px=224,
        transform=resized(224, interpolation="bicubic"),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mpp=(),
        mpp_basis="none",
        output="model",
        prefix_tokens=1,
        width=768,
        parameters=304_728_576,
        precision="fp16",
        checked="read",
    ),
)
