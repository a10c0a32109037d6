"""The tile encoder of Prov-GigaPath (Xu et al. 2024, Nature)."""

from wsi_ips.models.encoders.entry import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EncoderEntry,
    TimmArchitecture,
    resized,
)

ENTRIES = (
    EncoderEntry(
        name="gigapath",
        sources=("prov-gigapath/prov-gigapath",),
        files=("pytorch_model.bin",),
        licence="Apache-2.0 (its card limits it to research)",
        gated=True,
        # Its patches have 16 pixels, although the architecture's name says 14.
        architecture=TimmArchitecture(
            "vit_giant_patch14_dinov2",
            {
                "img_size": 224,
                "patch_size": 16,
                "embed_dim": 1536,
                "depth": 40,
                "num_heads": 24,
                "init_values": 1e-5,
                "mlp_ratio": 5.33334,
            },
        ),
        patch_px=256,
        transform=resized(256, crop=224, interpolation="bicubic"),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mpp=(0.5,),
        mpp_basis="stated",
        output="cls",
        prefix_tokens=1,
        width=1536,
        parameters=1_134_953_984,
        precision="fp16",
        checked="run",
    ),
)
