"""GPFM (Ma et al. 2024)."""

from wsi_ips.models.encoders.entry import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EncoderEntry,
    TimmArchitecture,
    resized,
)

ENTRIES = (
    EncoderEntry(
        name="gpfm",
        sources=("majiabo/GPFM",),
        files=("GPFM.pth",),
        licence="unclear: its hub page says MIT, its repository CC-BY-NC-ND-4.0",
        gated=False,
        architecture=TimmArchitecture(
            "vit_large_patch14_dinov2", {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True}
        ),
        patch_px=512,
        transform=resized(224, interpolation="bicubic"),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        # Its own tiles are 512 px at 40x; others read 224 px at 20x, which covers nearly the same tissue.
        mpp=(0.25, 0.5),
        mpp_basis="magnification",
        output="cls",
        prefix_tokens=1,
        width=1024,
        parameters=303_227_904,
        precision="32",
        checked="run",
    ),
)
