"""Tissue by a model that the user supplies as TorchScript or ONNX: :func:`learned_tissue` runs it tile by tile.

Shape suffixes: N batch, C or K channels, H rows, W columns.
"""

import importlib
import warnings
from collections.abc import Callable
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import TissueConfig, TissueModelConfig
from wsi_ips.config.slides import file_sha256
from wsi_ips.errors import ConfigError, SegmenterError, one_line
from wsi_ips.slides.base import RgbImage, SlideReader
from wsi_ips.storage.files import system_cause
from wsi_ips.tiling.bright_field import Found
from wsi_ips.tiling.picture import slide_window
from wsi_ips.tiling.tissue import TissueView
from wsi_ips.units import Size

Mask = NDArray[np.bool_]
"""(H, W) bool array."""
Floats = NDArray[np.float32]
"""Array of float32."""
Network = Callable[[Floats], NDArray[np.floating]]
"""A model as a function from (1, 3, H, W) float32 to its output."""

MOST_TILES = 200_000
"""The most tiles of a slide: a description with far too few µm per pixel would run for days."""


def learned_tissue(view: TissueView, config: TissueConfig) -> Found:
    """The slide's tissue according to ``config.model``: the segmenter ``model`` of ``tissue.SEGMENTERS``.

    The slide is read at the model's µm per pixel, one tile at a time, so that memory is that of a tile and of the
    mask. A pixel of the mask is tissue where at least half of the model's pixels in it are; a mask that is finer
    than the model's pixels takes each value from the pixel that it lies in. What cannot be read is white for the
    model and set to True in ``view.unread_HW``.

    Raises :class:`SegmenterError` for a model that is missing, has changed, or does not run.
    """
    assert config.model is not None
    model, slide, slide_mpp, unread_HW = config.model, view.slide, view.slide_mpp, view.unread_HW
    size_px, l0_per_px = view.size_px, view.l0_per_px
    network = load_network(model)
    l0_per_model_px = model.mpp / slide_mpp
    width, height = (ceil(length / l0_per_model_px) for length in slide.info.l0_size)
    step = model.tile_px - 2 * model.overlap_px
    columns, rows = ceil(width / step), ceil(height / step)
    if columns * rows > MOST_TILES:
        raise SegmenterError(
            model.file,
            f"would need {columns * rows} tiles of this slide",
            "check that mpp in its description is in µm per pixel",
        )
    tissue_HW, seen_HW = np.zeros(size_px[::-1], np.float32), np.zeros(size_px[::-1], np.float32)
    for top in range(0, height, step):
        for left in range(0, width, step):
            inner = (left, top, min(step, width - left), min(step, height - top))
            share_HW, tile_unread_HW = _one_tile(
                slide, network, model, inner, (width, height), l0_per_model_px
            )
            x = _mask_pixels(left, share_HW.shape[1], l0_per_model_px / l0_per_px, size_px[0])
            y = _mask_pixels(top, share_HW.shape[0], l0_per_model_px / l0_per_px, size_px[1])
            at = np.ix_(y, x)
            np.add.at(tissue_HW, at, share_HW >= model.threshold)
            np.add.at(seen_HW, at, 1)
            if tile_unread_HW.any():
                np.logical_or.at(unread_HW, at, tile_unread_HW)
    return Found(np.asarray(tissue_HW * 2 >= np.maximum(seen_HW, 1)))


def _mask_pixels(first: int, count: int, scale: float, length: int) -> NDArray[np.intp]:
    """The pixel of the mask in which the centre of each of the model's pixels lies."""
    return np.minimum(((np.arange(first, first + count) + 0.5) * scale).astype(np.intp), length - 1)


def _one_tile(
    slide: SlideReader,
    network: Network,
    model: TissueModelConfig,
    inner: tuple[int, int, int, int],
    size_px: Size,
    l0_per_px: float,
) -> tuple[Floats, Mask]:
    """Share of tissue in the inner part (left, top, width, height) of a tile, and which of its pixels cannot be
    read.
    """
    left, top, width, height = inner
    start = (max(0, left - model.overlap_px), max(0, top - model.overlap_px))
    ends = (
        min(size_px[0], left + width + model.overlap_px),
        min(size_px[1], top + height + model.overlap_px),
    )
    part = (ends[0] - start[0], ends[1] - start[1])
    unread_hw = np.zeros(part[::-1], bool)
    rgb_hw3 = slide_window(slide, start, part, l0_per_px=l0_per_px, unread_HW=unread_hw)
    # What lies beyond the slide is white, as it is in patches.
    tile_HWC = np.full((model.tile_px, model.tile_px, 3), 255, np.uint8)
    tile_HWC[: part[1], : part[0]] = rgb_hw3
    share_HW = _shares(network, model, tile_HWC)
    y, x = top - start[1], left - start[0]
    return share_HW[y : y + height, x : x + width], unread_hw[y : y + height, x : x + width]


def _shares(network: Network, model: TissueModelConfig, tile_HWC: RgbImage) -> Floats:
    """Share of tissue at each pixel of a tile according to the model, (tile_px, tile_px) float32 in 0..1."""
    mean_3, std_3 = np.asarray(model.mean, np.float32), np.asarray(model.std, np.float32)
    scaled_HWC = (tile_HWC.astype(np.float32) / 255 - mean_3) / std_3
    try:
        out = np.asarray(network(np.ascontiguousarray(scaled_HWC.transpose(2, 0, 1)[None])))
    except Exception as error:  # noqa: BLE001 - what a broken file makes these raise is not documented
        raise SegmenterError(
            model.file,
            f"does not run on (1, 3, {model.tile_px}, {model.tile_px}) ({one_line(error, most=200)})",
            "check tile_px in its description",
        ) from None
    out_KHW = out[0] if out.ndim == 4 else out
    if out_KHW.ndim != 3 or len(out) != 1 or not 0 < out_KHW[0].size <= 4 * model.tile_px**2:
        raise SegmenterError(
            model.file,
            f"gives an array of shape {out.shape}",
            "export it with an output of shape (1, channels, height, width)",
        )
    if model.channel >= len(out_KHW):
        raise SegmenterError(
            model.file,
            f"gives {len(out_KHW)} channels, its description asks for {model.channel}",
            "correct channel in its description; channels count from 0",
        )
    values_KHW = out_KHW.astype(np.float32)
    if not np.isfinite(values_KHW).all():
        raise SegmenterError(
            model.file, "gives numbers that are not finite", "check mean and std in its description"
        )
    share_HW = _activated(values_KHW, model)
    rows, columns = (np.arange(model.tile_px) * length // model.tile_px for length in share_HW.shape)
    return np.asarray(share_HW[np.ix_(rows, columns)], np.float32)


def _activated(values_KHW: Floats, model: TissueModelConfig) -> Floats:
    """The output's channel for tissue after its activation, (H, W)."""
    if model.activation == "softmax":
        powers_KHW = np.exp(values_KHW - values_KHW.max(axis=0))
        return np.asarray(powers_KHW[model.channel] / powers_KHW.sum(axis=0))
    values_HW = values_KHW[model.channel]
    return np.asarray(
        1 / (1 + np.exp(-values_HW.clip(-60, 60))) if model.activation == "sigmoid" else values_HW
    )


def load_network(model: TissueModelConfig) -> Network:
    """Load the model onto the CPU, as a function from (1, 3, H, W) float32 to its output.

    ``*.onnx`` is run by onnxruntime, anything else has to be TorchScript; nothing is unpickled. Raises
    :class:`SegmenterError` for a file that is missing, is not the one that the config was made with, or is no
    model, and :class:`ConfigError` where onnxruntime is not installed.
    """
    path = model.file
    if not path.is_file():
        raise SegmenterError(path, "no such tissue model (tiling.tissue.model)", "put the file there again")
    if file_sha256(path) != model.sha256:
        raise SegmenterError(
            path,
            f"is another tissue model than the one that was configured (sha256 {model.sha256[:12]})",
            "put that one there again, or name this one in tiling.tissue.model and train anew",
        )
    try:
        return _onnx(path) if path.suffix.lower() == ".onnx" else _torchscript(path)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - what a broken file makes these raise is not documented
        if cause := system_cause(error):
            raise SegmenterError(path, cause.problem, cause.fix) from None
        raise SegmenterError(
            path,
            f"is neither TorchScript nor ONNX ({one_line(error, most=160)})",
            "export it with torch.jit.trace, torch.jit.script or torch.onnx; a state dict is no model",
        ) from None


def _torchscript(path: Path) -> Network:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # TorchScript is called deprecated; its files are still what users have
        module = torch.jit.load(str(path), map_location="cpu").eval()

    def run(batch_NCHW: Floats) -> NDArray[np.floating]:
        with torch.inference_mode():
            out = module(torch.from_numpy(batch_NCHW))
        return np.asarray(out.float().numpy())

    return run


def _onnx(path: Path) -> Network:
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError:
        raise ConfigError(f"{path}: ONNX models need onnxruntime: pip install 'wsi_ips[segmenter]'") from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(batch_NCHW: Floats) -> NDArray[np.floating]:
        return np.asarray(session.run(None, {name: batch_NCHW})[0])

    return run
