"""Virchow and Virchow2 of Paige and Microsoft (Vorontsov et al. 2024; Zimmermann et al. 2024)."""

from wsi_ips.models.encoders.entry import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EncoderEntry,
    TimmArchitecture,
    resized,
)

ARGUMENTS = {
    "img_size": 224,
    "init_values": 1e-5,
    "mlp_ratio": 5.3375,
    "global_pool": "",
    "dynamic_img_size": True,
    "mlp_layer": "SwiGLUPacked",
    "act_layer": "SiLU",
}

ENTRIES = (
    EncoderEntry(
        name="virchow",
        sources=("paige-ai/Virchow",),
        files=("pytorch_model.bin",),
        licence="Apache-2.0",
        gated=True,
        architecture=TimmArchitecture("vit_huge_patch14_224", ARGUMENTS),
        patch_px=224,
        transform=resized(224, interpolation="bicubic"),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mpp=(0.5,),
        mpp_basis="stated",
        output="cls_mean",
        prefix_tokens=1,
        width=2560,
        parameters=631_229_184,
        precision="fp16",
        checked="run",
    ),
    EncoderEntry(
        name="virchow2",
        sources=("paige-ai/Virchow2",),
        files=("model.safetensors", "pytorch_model.bin"),
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        architecture=TimmArchitecture("vit_huge_patch14_224", {**ARGUMENTS, "reg_tokens": 4}),
        patch_px=224,
        transform=resized(224, interpolation="bicubic"),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mpp=(0.5, 0.25, 1.0, 2.0),
        mpp_basis="stated",
        output="cls_mean",
        prefix_tokens=5,
        width=2560,
        parameters=631_239_424,
        precision="fp16",
        checked="run",
    ),
)
