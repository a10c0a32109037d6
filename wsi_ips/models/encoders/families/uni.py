"""UNI and UNI2-h of Mahmood Lab (Chen et al. 2024, Nature Medicine)."""

from typing import Any

from wsi_ips.models.encoders.entry import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EncoderEntry,
    TimmArchitecture,
    resized,
)

UNI_ARGUMENTS: dict[str, Any] = {
    "img_size": 224,
    "patch_size": 16,
    "init_values": 1e-5,
    "dynamic_img_size": True,
}

ENTRIES = (
    EncoderEntry(
        name="uni",
        sources=("MahmoodLab/UNI", "MahmoodLab/uni"),
        files=("pytorch_model.bin",),
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        architecture=TimmArchitecture("vit_large_patch16_224", UNI_ARGUMENTS),
        patch_px=224,
        transform=resized(224),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mpp=(0.5,),
        mpp_basis="magnification",
        output="cls",
        prefix_tokens=1,
        width=1024,
        parameters=303_350_784,
        precision="32",
        checked="run",
    ),
    EncoderEntry(
        name="uni2-h",
        sources=("MahmoodLab/UNI2-h",),
        files=("pytorch_model.bin",),
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        architecture=TimmArchitecture(
            "vit_giant_patch14_224",
            {
                "img_size": 224,
                "patch_size": 14,
                "depth": 24,
                "num_heads": 24,
                "embed_dim": 1536,
                "mlp_ratio": 2.66667 * 2,
                "init_values": 1e-5,
                "no_embed_class": True,
                "reg_tokens": 8,
                "dynamic_img_size": True,
                "mlp_layer": "SwiGLUPacked",
                "act_layer": "SiLU",
            },
        ),
        patch_px=224,
        transform=resized(224),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mpp=(0.5,),
        mpp_basis="convention",
        output="cls",
        prefix_tokens=9,
        width=1536,
        parameters=681_394_176,
        precision="bf16",
        checked="run",
    ),
)
