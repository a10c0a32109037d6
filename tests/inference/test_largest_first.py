"""In which order workers are given slides, and what that is worth on a large cluster."""

from pathlib import Path

import pytest

from benchmarks.cluster import LOAD_S, TISSUE_S, Cluster, Ran, drawn, run
from wsi_ips.inference.slide_tasks import largest_first
from wsi_ips.inference.slide_work import SlideJob
from wsi_ips.storage.location import locate


def file(path: Path, size: int) -> SlideJob:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return SlideJob(path.stem, path)


def test_large_files_are_begun_first_and_equal_ones_in_their_order(tmp_path: Path) -> None:
    jobs = [
        file(tmp_path / f"{name}.tif", size) for name, size in (("a", 10), ("b", 30), ("c", 20), ("d", 30))
    ]
    assert [job.slide_id for job in largest_first(jobs)] == ["b", "d", "c", "a"]


def test_folders_count_with_all_their_files_and_unknown_sizes_come_first(tmp_path: Path) -> None:
    small, mirax = file(tmp_path / "small.tif", 100), file(tmp_path / "mirax.mrxs", 1)
    file(tmp_path / "mirax" / "Data0001.dat", 400)
    zarr = tmp_path / "slide.zarr"
    file(zarr / "0" / "0.0", 150)
    url = locate("https://example.org/slide.tif")
    jobs = [
        small,
        mirax,
        SlideJob("zarr", zarr),
        SlideJob("gone", tmp_path / "gone.tif"),
        SlideJob("url", url),
    ]
    assert [job.slide_id for job in largest_first(jobs)] == ["gone", "url", "mirax", "zarr", "small"]


@pytest.fixture(scope="module")
def slides() -> list[tuple[SlideJob, float, int]]:
    return drawn(300, seed=3)


WORKERS = 20


@pytest.fixture(scope="module")
def whole(slides: list[tuple[SlideJob, float, int]]) -> Ran:
    return run(slides, WORKERS)


def test_the_programs_order_leaves_few_workers_waiting(
    slides: list[tuple[SlideJob, float, int]], whole: Ran
) -> None:
    by_name = run(slides, WORKERS, order=list)
    assert whole.efficiency(WORKERS) >= 0.9
    assert by_name.efficiency(WORKERS) < whole.efficiency(WORKERS)
    assert whole.tail_s < by_name.tail_s


def test_a_lost_node_costs_its_share_and_what_it_had_in_hand(
    slides: list[tuple[SlideJob, float, int]], whole: Ran
) -> None:
    lost = run(slides, WORKERS, lost=2, at=whole.seconds / 2)
    assert lost.begun_again == 2
    assert lost.work_s == whole.work_s
    assert whole.seconds < lost.seconds
    assert lost.efficiency(WORKERS) >= 0.85
    assert lost.there_s == pytest.approx(WORKERS * lost.seconds - 2 * (lost.seconds - whole.seconds / 2))
    assert lost.efficiency_of_those_there() > lost.efficiency(WORKERS)


def test_a_node_lost_early_costs_what_its_workers_would_have_done_and_little_else(
    slides: list[tuple[SlideJob, float, int]], whole: Ran
) -> None:
    """A tenth of the workers, lost before they were done with anything: the others' time is as well used."""
    lost = run(slides, WORKERS, lost=2, at=whole.seconds / 10)
    assert lost.efficiency_of_those_there() >= 0.95
    assert lost.efficiency(WORKERS) >= 0.85


def test_workers_that_take_the_place_of_lost_ones_are_given_slides(
    slides: list[tuple[SlideJob, float, int]], whole: Ran
) -> None:
    lost = run(slides, WORKERS, lost=2, at=whole.seconds / 10)
    replaced = run(slides, WORKERS, lost=2, at=whole.seconds / 10, replaced_after=60)
    assert replaced.efficiency_of_those_there() >= 0.93
    assert whole.seconds < replaced.seconds < lost.seconds


def test_the_simulated_workers_load_once_beside_their_first_tissue_and_do_one_slide_at_a_time() -> None:
    slides = drawn(3, seed=0)
    ran = run(slides, 1)
    assert ran.seconds == pytest.approx(ran.work_s + LOAD_S - TISSUE_S, abs=1.0)
    assert ran.there_s == ran.seconds
    assert isinstance(Cluster(2, {}, lost=0, lost_at=0).nthreads(), dict)
