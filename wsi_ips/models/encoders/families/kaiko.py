"""The five encoders of kaiko.ai's "Towards Large-Scale Training of Pathology Foundation Models" (2024)."""

from typing import Any

from wsi_ips.models.encoders.entry import HALF, EncoderEntry, TimmArchitecture, resized

MIRROR = "1aurent/vit_{}.kaiko_ai_towards_large_pathology_fms"


def _kaiko(
    name: str, sources: tuple[str, ...], architecture: TimmArchitecture, *, prefix: int, width: int, n: int
) -> EncoderEntry:
    return EncoderEntry(
        name=f"kaiko-{name}",
        sources=sources,
        files=("model.safetensors", f"{name}.pth"),
        licence="Kaiko non-commercial v1",
        gated=False,
        architecture=architecture,
        patch_px=224,
        transform=resized(224),
        mean=HALF,
        std=HALF,
        mpp=(0.5,),
        mpp_basis="convention",
        output="cls",
        prefix_tokens=prefix,
        width=width,
        parameters=n,
        precision="32",
        checked="run",
    )


def _plain(size: str, patch: int, width: int, n: int) -> EncoderEntry:
    arguments: dict[str, Any] = {"img_size": 224, "dynamic_img_size": True}
    name = f"{size}_patch{patch}_224"
    return _kaiko(
        f"vit{size[0]}{patch}",
        (MIRROR.format(name),),
        TimmArchitecture(f"vit_{name}", arguments),
        prefix=1,
        width=width,
        n=n,
    )


ENTRIES = (
    _plain("small", 16, 384, 21_665_664),
    _plain("small", 8, 384, 21_670_272),
    _plain("base", 16, 768, 85_798_656),
    _plain("base", 8, 768, 85_807_872),
    _kaiko(
        "vitl14",
        (MIRROR.format("large_patch14_reg4_224"), MIRROR.format("large_patch14_reg4_dinov2")),
        TimmArchitecture("vit_large_patch14_reg4_dinov2", {"img_size": 518, "dynamic_img_size": True}),
        prefix=5,
        width=1024,
        n=304_370_688,
    ),
)
