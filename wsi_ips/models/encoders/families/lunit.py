"""The two DINO encoders of Lunit's benchmark of self-supervised learning (Kang et al. 2023, CVPR)."""

from wsi_ips.models.encoders.entry import EncoderEntry, TimmArchitecture, resized


def _lunit(patch: int, parameters: int) -> EncoderEntry:
    return EncoderEntry(
        name=f"lunit-vits{patch}",
        sources=(f"1aurent/vit_small_patch{patch}_224.lunit_dino",),
        files=("model.safetensors", f"dino_vit_small_patch{patch}_ep200.torch"),
        licence="Lunit non-commercial",
        gated=False,
        architecture=TimmArchitecture(
            f"vit_small_patch{patch}_224", {"img_size": 224, "dynamic_img_size": True}
        ),
        # The mirror's rule keeps 0.9 of a picture: 248 px are read, and the 224 px in their middle are seen.
        patch_px=248,
        transform=resized(248, crop=224, interpolation="bicubic"),
        # What it was trained with; the mirror's own description has timm's defaults.
        mean=(0.70322989, 0.53606487, 0.66096631),
        std=(0.21716536, 0.26081574, 0.20723464),
        mpp=(0.5, 0.25),
        mpp_basis="stated",
        output="cls",
        prefix_tokens=1,
        width=384,
        parameters=parameters,
        precision="32",
        checked="run",
    )


ENTRIES = (_lunit(16, 21_665_664), _lunit(8, 21_670_272))
