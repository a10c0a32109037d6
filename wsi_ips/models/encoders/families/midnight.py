"""Midnight-12k of kaiko.ai (Karasikov et al. 2025) and OpenMidnight of Sophont."""

from wsi_ips.models.encoders.entry import (
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    EncoderEntry,
    TimmArchitecture,
    resized,
)

ENTRIES = (
    EncoderEntry(
        name="midnight-12k",
        sources=("kaiko-ai/midnight",),
        files=("model.safetensors",),
        licence="MIT",
        gated=False,
        # Its file has positions for 518 px, which are fitted to 224 px once, as transformers does at each call.
        architecture=TimmArchitecture("vit_giant_patch14_dinov2", {"img_size": 224, "global_pool": ""}),
        patch_px=224,
        transform=resized(224),
        mean=HALF,
        std=HALF,
        mpp=(0.5, 0.25, 1.0, 2.0),
        mpp_basis="stated",
        output="cls_mean",
        prefix_tokens=1,
        width=3072,
        parameters=1_134_769_664,
        precision="fp16",
        checked="run",
    ),
    EncoderEntry(
        name="openmidnight",
        sources=("SophontAI/OpenMidnight",),
        files=("teacher_checkpoint_load.pt", "teacher_checkpoint.pth"),
        licence="Apache-2.0",
        gated=True,
        architecture=TimmArchitecture(
            "vit_giant_patch14_reg4_dinov2", {"img_size": 224, "global_pool": "token"}
        ),
        patch_px=224,
        transform=resized(224),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mpp=(),
        mpp_basis="none",
        output="cls",
        prefix_tokens=5,
        width=1536,
        parameters=1_134_774_272,
        precision="fp16",
        checked="run",
    ),
)
