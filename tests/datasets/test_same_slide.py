"""One slide under two ids leaks from training to test, whatever the manifest calls it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import read_manifest, same_slides
from wsi_ips.errors import ManifestError

TASKS = [TaskConfig()]


def line(slide_id: str, split: str, path: str) -> str:
    return f"{slide_id},case {slide_id},tumor,{split},{path}\n"


def linked(slide: Path) -> str:
    (slide.parent / "link.tif").symlink_to(slide)
    return "link.tif"


def copied(slide: Path) -> str:
    shutil.copy(slide, slide.parent / "copy.tif")
    return "copy.tif"


def written_otherwise(slide: Path) -> str:
    (slide.parent / "below").mkdir()
    return f"below/../{slide.name}"


@pytest.mark.parametrize("again", [linked, copied, written_otherwise])
def test_a_file_in_training_and_in_test_is_refused(tmp_path: Path, again: Callable[[Path], str]) -> None:
    slide = tmp_path / "a.tif"
    slide.write_bytes(b"some slide" * 9000)
    path = tmp_path / "m.csv"
    path.write_text("slide_id,case_id,label,split,path\n" + line("a", "train", "a.tif")
                    + line("b", "test", again(slide)))  # fmt: skip
    with pytest.raises(ManifestError, match=r"'a' \(in train\) and 'b' \(in test\) are the same slide"):
        read_manifest(path, tasks=TASKS)
    assert len(read_manifest(path, tasks=TASKS, need_slides=False).records) == 2, "features, not slides"


def test_files_that_differ_between_the_samples_are_two(tmp_path: Path) -> None:
    content = bytearray(1_000_000)
    (tmp_path / "a.tif").write_bytes(content)
    content[30_000] = 1  # between two samples of a fingerprint
    (tmp_path / "b.tif").write_bytes(content)
    (tmp_path / "empty.tif").touch()
    (tmp_path / "nothing.tif").touch()
    assert list(same_slides({path.stem: path for path in sorted(tmp_path.iterdir())})) == []
