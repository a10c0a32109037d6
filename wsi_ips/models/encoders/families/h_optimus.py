"""H-optimus-0, H-optimus-1 and H0-mini of Bioptimus."""

from wsi_ips.models.encoders.entry import EncoderEntry, Statistics, TimmArchitecture, resized

MEAN: Statistics = (0.707223, 0.578729, 0.703617)
STD: Statistics = (0.211883, 0.230117, 0.177517)


def _h_optimus(number: int, licence: str) -> EncoderEntry:
    return EncoderEntry(
        name=f"h-optimus-{number}",
        sources=(f"bioptimus/H-optimus-{number}",),
        files=("model.safetensors", "pytorch_model.bin"),
        licence=licence,
        gated=True,
        # The architecture itself brings SwiGLU, SiLU and four registers.
        architecture=TimmArchitecture(
            "vit_giant_patch14_reg4_dinov2",
            {"img_size": 224, "init_values": 1e-5, "global_pool": "token", "dynamic_img_size": False},
        ),
        patch_px=224,
        transform=resized(224, interpolation="bicubic"),
        mean=MEAN,
        std=STD,
        mpp=(0.5,),
        mpp_basis="stated",
        output="cls",
        prefix_tokens=5,
        width=1536,
        parameters=1_134_774_272,
        precision="fp16",
        checked="run",
    )


ENTRIES = (
    _h_optimus(0, "Apache-2.0"),
    _h_optimus(1, "CC-BY-NC-ND-4.0"),
    EncoderEntry(
        name="h0-mini",
        sources=("bioptimus/H0-mini",),
        files=("model.safetensors", "pytorch_model.bin"),
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        # mlp_ratio is derived from the published 85.7 million parameters.
        architecture=TimmArchitecture(
            "vit_base_patch14_reg4_dinov2",
            {
                "img_size": 224,
                "mlp_ratio": 5.33334,
                "global_pool": "",
                "dynamic_img_size": True,
                "mlp_layer": "SwiGLUPacked",
                "act_layer": "SiLU",
            },
        ),
        patch_px=224,
        transform=resized(224, interpolation="bicubic"),
        mean=MEAN,
        std=STD,
        mpp=(0.5,),
        mpp_basis="magnification",
        output="cls",
        prefix_tokens=5,
        width=768,
        parameters=85_739_520,
        precision="fp16",
        checked="inferred",
    ),
)
