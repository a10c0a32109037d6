"""Hibou-B and Hibou-L of HistAI (Nechaev et al. 2024). Their files are assumed to have transformers' names."""

from wsi_ips.models.encoders.entry import EncoderEntry, TimmArchitecture, resized


def _hibou(letter: str, source: str, size: str, width: int, parameters: int) -> EncoderEntry:
    return EncoderEntry(
        name=f"hibou-{letter}",
        sources=(source,),
        files=("model.safetensors",),
        licence="Apache-2.0",
        gated=True,
        # The grid of positions is fitted to 224 px when the file is read, whatever its own is.
        architecture=TimmArchitecture(f"vit_{size}_patch14_reg4_dinov2", {"img_size": 224}),
        patch_px=224,
        transform=resized(224, interpolation="bicubic"),
        mean=(0.7068, 0.5755, 0.722),
        std=(0.195, 0.2316, 0.1816),
        mpp=(0.5,),
        mpp_basis="convention",
        output="cls",
        prefix_tokens=5,
        width=width,
        parameters=parameters,
        precision="fp16",
        checked="inferred",
    )


ENTRIES = (
    _hibou("b", "histai/hibou-b", "base", 768, 85_727_232),
    _hibou("l", "histai/hibou-L", "large", 1024, 303_230_976),
)
