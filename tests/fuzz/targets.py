"""What is fuzzed: for each kind of input, the way that the program's commands take with it.

A target is a function of (given, out): the file or folder that the program is given, and a folder to write into.
It returns, or raises what the command would print. Heavy modules are imported where they are used: a child loads
no more than its targets need.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tests.fuzz.viewer_target import ask_viewer, client_of
from wsi_ips.config import TaskConfig, TilingConfig
from wsi_ips.errors import WsiIpsError
from wsi_ips.progress import silent

Run = Callable[[Path, Path], None]

TILING = {"patch_px": 32, "patch_mpp": 1.0, "min_tissue": 0.1, "allow_upsampling": True}
SIDE = 256
MOST_LEVELS = 6


@dataclass(frozen=True, slots=True)
class Target:
    """seeds: names that begin with one of these. run: the name of a function in a module, ``module:function``."""

    seeds: tuple[str, ...]
    run: str
    share: float = field(default=1.0)
    """Of the time, against the other targets."""


def every(*steps: Callable[[], object]) -> None:
    """Take all steps, whichever of them are refused; raise the first refusal at the end."""
    refused: list[WsiIpsError] = []
    for step in steps:
        try:
            step()
        except WsiIpsError as error:
            str(error)
            refused.append(error)
    if refused:
        raise refused[0]


# -- slides ----------------------------------------------------------------------------------------------------


def read_slide(given: Path, out: Path) -> None:
    """``info``, regions of each level, label and macro; ``tile`` with its preview; a stream of all patches."""
    every(lambda: _regions(given, out), lambda: _tile(given, out), lambda: _stream(given))


def _regions(given: Path, out: Path) -> None:
    from wsi_ips.commands.info import describe_slides
    from wsi_ips.slides.base import AssociatedReader
    from wsi_ips.slides.registry import open_slide

    describe_slides(given, as_json=True, pictures={"thumbnail": out / "thumbnail.png"})
    with open_slide(given) as slide:
        info = slide.info
        steps: list[Callable[[], object]] = []
        for number, level in enumerate(info.levels[:MOST_LEVELS]):
            size = (min(level.size[0], SIDE), min(level.size[1], SIDE))
            for share in (0.0, 0.7):
                place = (int(info.l0_size[0] * share), int(info.l0_size[1] * share))
                steps.append(lambda n=number, p=place, s=size: slide.read(p, level=n, size_px=s))  # type: ignore[misc]
        if isinstance(slide, AssociatedReader):
            pictures = slide
            steps += [lambda n=name: pictures.read_associated(n) for name, _ in info.associated]  # type: ignore[misc]
        every(*steps)


def _tile(given: Path, out: Path) -> None:
    from wsi_ips.commands.recipe import make_job
    from wsi_ips.commands.tile import TileJob
    from wsi_ips.heatmaps.tissue_preview import write_preview
    from wsi_ips.tiling.patches import SlideToTile, TilingFolder, tile_one

    job = make_job({"command": "tile", "slides": str(given), "out": str(out / "tiles"), "mask_preview": True,
                    "tiling": TILING}, source="fuzz")  # fmt: skip
    assert isinstance(job, TileJob)
    folder = TilingFolder(job.out, job.tiling, job.layout, preview=write_preview, alone=given)
    tiled = tile_one(folder, SlideToTile("s", given, None))
    if tiled.raised is not None:
        raise tiled.raised
    assert tile_one(folder, SlideToTile("s", given, None)).was_there


def _stream(given: Path) -> None:
    from wsi_ips.config import StreamingConfig
    from wsi_ips.slides.registry import open_slide
    from wsi_ips.streaming.stream import PatchStream
    from wsi_ips.tiling.patches import tile_slide
    from wsi_ips.units import Mpp

    tiling = TilingConfig.model_validate({**TILING, "min_tissue": 0.0001})
    with open_slide(given) as slide:
        mpp = None if slide.info.mpp_xy else Mpp(0.5)
        coords, _ = tile_slide(slide, tiling, slide_id="s", mpp=mpp)
        if len(coords):
            config = StreamingConfig(batch=16, threads=2, max_bad_tiles=0.9)
            for _ in islice(PatchStream(slide, coords, config=config), 20):
                pass


def read_tile(given: Path, out: Path) -> None:
    """One stored tile of 64x64 pixels, by the codec that its name ends with."""
    from wsi_ips.slides.codecs.base import TileError
    from wsi_ips.slides.codecs.jpeg import Colours, JpegTiles
    from wsi_ips.slides.codecs.jpeg2000 import Jpeg2000Tiles
    from wsi_ips.slides.codecs.plain import Packing, PlainTiles, RleTiles
    from wsi_ips.slides.tiff.restart_intervals import JpegHeader, StackedIntervals

    data, size = given.read_bytes(), (64, 64)
    view = memoryview(data)
    packings = {".lzw": Packing.LZW, ".zlib": Packing.DEFLATE, ".packbits": Packing.PACKBITS,
                ".zstd": Packing.ZSTD, ".lzma": Packing.LZMA}  # fmt: skip
    formats: list[Any] = []
    with suppress(TileError):
        if given.name == "restart.jpg":
            header = JpegHeader.parse(data)
            formats = [StackedIntervals(header=header, interval=(32, 8), per_tile=8, cols=2)]
        elif given.suffix == ".jpg":
            formats = [
                JpegTiles(size=size, colours=colours) for colours in (Colours.YCBCR, Colours.AS_STATED)
            ]
        elif given.suffix == ".j2k":
            formats = [Jpeg2000Tiles(size=size), Jpeg2000Tiles(size=size, ycbcr=True)]
        elif given.suffix == ".rle":
            formats = [RleTiles(size=size)]
        else:
            formats = [PlainTiles(size=size, packing=packings[given.suffix], horizontal_predictor=each)
                       for each in (False, True)]  # fmt: skip
    for form in formats:
        form.refusal(data[:4096])
        decoder = form.decoder()
        for scale in decoder.scales:
            with suppress(TileError):
                decoder.decode([view], np.empty((form.size[1] // scale, form.size[0] // scale, 3), np.uint8))
        with suppress(TileError):
            decoder.jpeg([view])


# -- stored numbers --------------------------------------------------------------------------------------------


def read_coordinates(given: Path, out: Path) -> None:
    """Coordinates by themselves, of their slide, and as patches that a model reads."""
    from tests.fuzz.seeds_of_runs import slide_info
    from wsi_ips.tiling.coords import read_coords, stored_tiled_from
    from wsi_ips.tiling.patches import StoredPatches

    class Slide:
        info = slide_info()

    tiling = TilingConfig(patch_px=32, patch_mpp=0.5)
    stored = StoredPatches(given.parent, tiling)
    every(
        lambda: read_coords(given),
        lambda: read_coords(given, info=slide_info()),
        lambda: stored_tiled_from(given),
        lambda: stored(Slide(), slide_id="s", mpp=None),  # type: ignore[arg-type]
    )


def read_features(given: Path, out: Path) -> None:
    """A file of features and all of its rows."""
    import h5py

    from wsi_ips.datasets.feature_files import open_features, read_rows

    found = open_features(given)
    rows = np.arange(min(len(found), 1000))
    with h5py.File(given, "r") as file:
        read_rows(file, given, rows)
        read_rows(file, given, rows[::-2])


def read_stored_result(given: Path, out: Path) -> None:
    """A slide's result, as a map of its attention."""
    from wsi_ips.inference.results import read_result

    read_result(given)


def show_run(given: Path, out: Path) -> None:
    """``overlay``, ``export``, ``report``, ``evaluate`` and the viewer, of a run's folder."""
    from wsi_ips.commands.recipe import make_job, run_job

    run, slides = str(given), str(given.parent / "slides")
    jobs: list[dict[str, Any]] = [
        {"command": "overlay", "run": run, "out": str(out / "overlays"), "slides": slides, "side_px": 200},
        {"command": "export", "run": run, "out": str(out / "export"), "slides": slides, "format": "geojson"},
        {"command": "report", "run": run, "out": str(out / "report.html"), "slides": slides},
        {
            "command": "evaluate",
            "run": run,
            "manifest": str(given.parent / "labels.csv"),
            "out": str(out / "evaluation"),
            "bootstrap": 20,
            "plots": False,
        },
    ]
    every(
        *(lambda job=job: run_job(make_job(job, source="fuzz"), silent) for job in jobs),
        lambda: _viewed(given),
    )  # type: ignore[misc]


def _viewed(run: Path) -> None:
    """What the viewer says of each slide of a run."""
    client = client_of(run)
    for slide in client.get("/api/runs/0/slides").json().get("slides", [])[:5]:
        below = f"runs/0/slides/{slide['slide_id']}"
        for address in (f"/api/{below}", f"/api/{below}/legend", f"/api/{below}/patches",
                        f"/{below}/thumbnail.jpg",
                        f"/api/{below}/objects?left=0&top=0&right=999&bottom=999",
                        f"/{below}/heat/9/0_0.png", f"/{below}/slide/9/0_0.jpg"):  # fmt: skip
            client.get(address)


def read_weights(given: Path, out: Path) -> None:
    from wsi_ips.models.encoders.weights import read_state_dict, without_prefix

    state = read_state_dict(given)
    with suppress(ValueError):  # two networks that fit: the caller says so
        without_prefix(state, {"weight": next(iter(state.values()))})


def read_checkpoint(given: Path, out: Path) -> None:
    from wsi_ips.models.checkpoint import checkpoint_config, load_checkpoint

    every(lambda: checkpoint_config(given), lambda: load_checkpoint(given))


def read_training_state(given: Path, out: Path) -> None:
    from tests.fuzz.seeds_of_runs import RUN_NAME
    from wsi_ips.training.run_state import load_state

    load_state(given, run=RUN_NAME)


# -- text ------------------------------------------------------------------------------------------------------


def read_table(given: Path, out: Path) -> None:
    """A table by the reader that its name asks for."""
    from wsi_ips.datasets.camelyon import read_reference, read_stages
    from wsi_ips.datasets.checksums import read_checksums, verify_folder
    from wsi_ips.datasets.manifest import read_manifest
    from wsi_ips.evaluation.froc import read_detections
    from wsi_ips.evaluation.plots import read_history
    from wsi_ips.inference.predictions import read_case_table, read_predictions
    from wsi_ips.inference.telemetry import read_slide_table
    from wsi_ips.nuclei.found_table import FoundTable
    from wsi_ips.slides.resolution import read_mpp_table

    tasks = [TaskConfig()]

    def found() -> None:
        table = FoundTable.read(given)
        table.l0_rings([int(row) for row in table.rows_in(0, 0, 1000, 1000)[:100]])

    readers: Mapping[str, Callable[[], object]] = {
        "manifest": lambda: every(
            lambda: read_manifest(given, tasks=tasks, need_slides=False),
            lambda: read_manifest(given, tasks=tasks),
            lambda: read_manifest(given, tasks=tasks, root=given.parent),
        ),
        "mpp": lambda: read_mpp_table(given),
        "reference": lambda: read_reference(given),
        "stages": lambda: read_stages(given),
        "checksums": lambda: every(lambda: read_checksums(given), lambda: verify_folder(given.parent)),
        "detections": lambda: read_detections(given),
        "history": lambda: read_history(given),
        "found": found,
        "cases": lambda: read_case_table(given, ["a", "b"]),
        "predictions": lambda: read_predictions(given, tasks=tasks),
        "slides": lambda: read_slide_table(given),
    }
    readers[given.stem]()


def read_outlines(given: Path, out: Path) -> None:
    """Outlines as tissue (GeoJSON), lesions (ASAP) or nuclei (ImageScope), drawn as a mask too."""
    from wsi_ips.datasets.annotations import check_inside, lesion_area, lesion_mask, read_asap
    from wsi_ips.nuclei import data as nucleus_outlines
    from wsi_ips.tiling.contours import ContourFolder, outlined_tissue
    from wsi_ips.units import Mpp

    size = (100, 100)
    if given.suffix == ".geojson":
        polygons = ContourFolder(given.parent).polygons("s", l0_size=size)
        outlined_tissue(polygons, l0_size=size, slide_mpp=Mpp(0.5), thumbnail_mpp=8.0)
    elif given.name == "imagescope.xml":
        outlines = nucleus_outlines.read_outlines(given)
        nucleus_outlines.drawn(outlines, left=0, top=0, side=100)
    else:
        regions = read_asap(given)
        every(
            lambda: check_inside(given, regions, size),
            lambda: lesion_mask(regions, downsample=1.0, size=size),
            lambda: lesion_area(given, l0_size=size),
        )


def read_recipe(given: Path, out: Path) -> None:
    """A recipe up to the job that it describes, and ``--set`` over it."""
    from wsi_ips.commands.recipe import load_recipe, make_job, with_overrides

    values = load_recipe(given)
    every(
        lambda: make_job(values, source=str(given)),
        lambda: make_job(with_overrides(values, ["out=x", "tiling.patch_px=64"]), source=str(given)),
    )


def _target(*seeds: str, run: Run, share: float = 1.0) -> Target:
    return Target(seeds, f"{run.__module__}:{run.__name__}", share)


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "tiff": _target("tiff/", run=read_slide, share=4),
        "ndpi": _target("ndpi/", run=read_slide),
        "dicom": _target("dicom/", run=read_slide, share=2),
        "mirax": _target("mirax/", run=read_slide),
        "zarr": _target("zarr/", run=read_slide, share=2),
        "image": _target("image/", run=read_slide, share=0.5),
        "codec": _target("codec/", run=read_tile),
        "coords": _target("coords/", run=read_coordinates),
        "features": _target("features/", run=read_features, share=0.5),
        "result": _target("result/", run=read_stored_result, share=0.5),
        "run": _target("run/", run=show_run, share=1.5),
        "weights": _target("weights/", run=read_weights, share=0.5),
        "checkpoint": _target("checkpoint/", run=read_checkpoint, share=0.5),
        "state": _target("state/", run=read_training_state, share=0.5),
        "tables": _target("tables/", run=read_table),
        "outlines": _target("outlines/", run=read_outlines),
        "recipe": _target("recipe/", run=read_recipe),
        "viewer": _target("viewer/", run=ask_viewer, share=0.5),
    }
)
