"""CTransPath (Wang et al. 2022, Medical Image Analysis)."""

from wsi_ips.models.encoders.entry import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EncoderEntry,
    OwnArchitecture,
    resized,
)

ENTRIES = (
    EncoderEntry(
        name="ctranspath",
        sources=("1aurent/swin_tiny_patch4_window7_224.CTransPath",),
        files=("model.safetensors", "ctranspath.pth"),
        licence="GPL-3.0 (its authors: academic, non-commercial)",
        gated=False,
        architecture=OwnArchitecture("wsi_ips.models.encoders.own:ctranspath"),
        patch_px=224,
        transform=resized(224),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        # Pretrained at 0.5; its authors recommend 1.0.
        mpp=(1.0, 0.5),
        mpp_basis="stated",
        output="model",
        prefix_tokens=0,
        width=768,
        parameters=27_520_038,
        precision="32",
        checked="run",
    ),
)
