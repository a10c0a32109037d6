"""Phikon and Phikon-v2 of Owkin (Filiot et al. 2023 and 2024). Their files have transformers' names."""

from wsi_ips.models.encoders.entry import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EncoderEntry,
    TimmArchitecture,
    resized,
)

LICENCE = "Owkin non-commercial"

ENTRIES = (
    EncoderEntry(
        name="phikon",
        sources=("owkin/phikon",),
        files=("model.safetensors", "pytorch_model.bin"),
        licence=LICENCE,
        gated=False,
        architecture=TimmArchitecture(
            "vit_base_patch16_224", {"img_size": 224, "norm_layer": "LayerNorm-1e-12", "global_pool": ""}
        ),
        patch_px=224,
        transform=resized(224),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mpp=(0.5,),
        mpp_basis="stated",
        output="cls",
        prefix_tokens=1,
        width=768,
        parameters=85_798_656,
        precision="32",
        checked="run",
    ),
    EncoderEntry(
        name="phikon-v2",
        sources=("owkin/phikon-v2",),
        files=("model.safetensors",),
        licence=LICENCE,
        gated=False,
        architecture=TimmArchitecture(
            "vit_large_patch14_dinov2", {"img_size": 224, "patch_size": 16, "global_pool": ""}
        ),
        patch_px=224,
        transform=resized(224, interpolation="bicubic"),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mpp=(0.5,),
        mpp_basis="stated",
        output="cls",
        prefix_tokens=1,
        width=1024,
        parameters=303_350_784,
        precision="32",
        checked="run",
    ),
)
