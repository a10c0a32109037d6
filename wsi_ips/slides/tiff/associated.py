"""The pictures that come with a TIFF slide, by the names that OpenSlide gives them: label, macro, thumbnail."""

from collections.abc import Collection, Mapping

from wsi_ips.slides.tiff.directories import NEW_SUBFILE_TYPE, TiffDirectories, TiffImage
from wsi_ips.slides.tiff.pictures import TiffPicture
from wsi_ips.slides.tile_layout import AssociatedImage

NAMES = ("label", "macro", "thumbnail")
LABEL, MACRO = 1, 9
"""Values of NewSubfileType in Aperio's and Huron's files."""


def by_subfile_type(file: TiffDirectories, levels: Collection[TiffImage]) -> dict[str, TiffImage]:
    """Aperio's and Huron's pictures, none of which is tiled: the second image is the thumbnail.

    What their NewSubfileType does not name may be named by its description. Of two with one name, the later one
    is taken, as OpenSlide does.
    """
    found: dict[str, TiffImage] = {}
    for image in file.images:
        if image.is_tiled:
            continue
        if image.number == 1:
            found["thumbnail"] = image
        elif name := {LABEL: "label", MACRO: "macro"}.get(image.integer(NEW_SUBFILE_TYPE)):
            found[name] = image
    return by_description(file, [*levels, *found.values()]) | found


def by_description(file: TiffDirectories, others: Collection[TiffImage]) -> dict[str, TiffImage]:
    """Images besides the ``others`` of which a line of the description begins with a picture's name.

    Of two with one name, the first is taken.
    """
    numbers = {image.number for image in others}
    found: dict[str, TiffImage] = {}
    for image in file.images:
        name = _described(image)
        if name and image.number not in numbers:
            found.setdefault(name, image)
    return found


def pictures(images: Mapping[str, TiffImage]) -> dict[str, AssociatedImage]:
    """As :attr:`SlideLayout.associated`, in alphabetical order."""
    return {name: TiffPicture.of(images[name]) for name in sorted(images)}


def _described(image: TiffImage) -> str:
    for line in image.description[:1000].splitlines():
        word = line.strip().lower()
        if name := next((name for name in NAMES if word.startswith(name)), ""):
            return name
    return ""
