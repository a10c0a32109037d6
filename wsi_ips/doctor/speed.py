"""How fast tiles are decoded and patches are encoded here, in a few seconds each."""

import time
from collections.abc import Callable

from wsi_ips.doctor.findings import Check, Finding

SECONDS = 3.0
"""How long each speed is measured."""

SLOW_TILES_S = 150.0
"""JPEG tiles of 256 px a second and thread below which decoding is unusually slow: a laptop does 1,000."""

ENCODER = "resnet18"
"""The encoder that is measured, from timm and without its weights."""

PATCH_PX = 224
"""Side of its patches."""

BATCH = 32
"""How many patches it gets at a time."""

SLOW_PATCHES_S = 5.0
"""Patches a second below which a slide of 10,000 patches takes more than half an hour."""


def speed_checks() -> list[Check]:
    """The checks of this module, in the order in which they are shown."""
    return [Check("speed of decoding", decoding), Check("speed of encoding", encoding)]


def decoding() -> Finding:
    """Tiles a second that the JPEG codec of slides decodes, in one thread and in as many as are usable."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    import simplejpeg

    from wsi_ips.doctor.pixels import TILE_PX, drawn
    from wsi_ips.slides.codecs.jpeg import Colours, JpegTiles
    from wsi_ips.storage.system import usable_processors

    picture = np.ascontiguousarray(drawn()[:TILE_PX, :TILE_PX])
    data = memoryview(simplejpeg.encode_jpeg(picture, 80, "RGB", "420"))
    decoder = JpegTiles(size=(TILE_PX, TILE_PX), colours=Colours.YCBCR, tables=b"").decoder()

    def decode_for(seconds: float) -> int:
        out = np.empty((TILE_PX, TILE_PX, 3), np.uint8)
        return _count(lambda: decoder.decode([data], out), seconds)

    one = decode_for(SECONDS) / SECONDS
    threads = usable_processors()
    with ThreadPoolExecutor(threads) as pool:
        together = sum(pool.map(decode_for, [SECONDS] * threads)) / SECONDS
    told = f"{one:,.0f} JPEG tiles of {TILE_PX} px a second in one thread, {together:,.0f} in {threads}"
    if one < SLOW_TILES_S:
        fix = "other programs use the processors, or simplejpeg was built without SIMD: install its wheel"
        return Finding("speed of decoding", "warning", told, fix)
    return Finding("speed of decoding", "ok", told)


def encoding() -> Finding:
    """Patches a second that a small encoder makes features of, on the device that ``auto`` picks."""
    import timm
    import torch

    from wsi_ips.streaming.device import pick_device

    device = pick_device()
    torch.manual_seed(0)
    encoder = timm.create_model(ENCODER, pretrained=False, num_classes=0).to(device).eval()
    patches = torch.rand(BATCH, 3, PATCH_PX, PATCH_PX, device=device)

    def encode() -> None:
        encoder(patches).sum().item()  # waits for the device

    with torch.inference_mode():
        encode()  # the first batch also pays for what is set up
        start = time.perf_counter()
        batches = _count(encode, SECONDS)
        rate = batches * BATCH / (time.perf_counter() - start)
    told = f"{rate:,.0f} patches of {PATCH_PX} px a second, {ENCODER} in float32 on {device}"
    if rate < SLOW_PATCHES_S:
        fix = "see what else uses the processors; use a GPU, or store features once with wsi-ips features"
        return Finding("speed of encoding", "warning", told, fix)
    return Finding("speed of encoding", "ok", told)


def _count(work: Callable[[], None], seconds: float) -> int:
    """How often the work can be done in so many seconds; at least once."""
    end, done = time.perf_counter() + seconds, 0
    while True:
        work()
        done += 1
        if time.perf_counter() >= end:
            return done
