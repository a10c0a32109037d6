"""Which map of a slide is shown (:func:`choose_heat`), its values, and what it is in words.

Maps of attention belong to a task, a query, a head, or are means of those. Maps of contributions say what each
patch adds to an output of the network. A head that reads the mean of the patches' embeddings
(``model.attention.block: direct``) makes each logit a sum over the kept patches, so that what one of them adds is
exact; patches that were not kept add exactly 0. Attention says how much a patch weighs in that mean, its
contribution which way it pulls and how far. Contributions are the default where the head gives them. Maps of
gradients hold gradient times input, which every aggregator has, where ``predict --explain gradient`` asked for it.

Shape suffixes: N patches, M kept patches, H heads, T queries, K outputs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import HeatOptions
from wsi_ips.config.heat import DEFAULT_HEAT, MapKind
from wsi_ips.config.survival import RISK, are_of_survival
from wsi_ips.errors import ConfigError, ResultsError
from wsi_ips.heatmaps.display_scale import DisplayScale, is_flat, scale_of, short, signed
from wsi_ips.inference.results import SlideResult
from wsi_ips.slides.base import SlideReader
from wsi_ips.slides.folder import files_of
from wsi_ips.storage.fingerprint import files_fingerprint
from wsi_ips.tiling.grid import PatchCoords

NOT_TOLD = (
    "this model's head does not tell what a patch contributes "
    "(model.attention.block: direct does, in predictions of this version)"
)
"""Problem and fix, in words, for a model without contributions."""

NOT_ASKED = (
    "this run holds no map of gradients; predict into the same folder again with --explain gradient, which "
    "adds it"
)
"""Problem and fix, in words, for a result without gradients."""

TITLES: Mapping[MapKind, str] = MappingProxyType(
    {"contribution": "Contribution", "gradient": "Gradient times input"}
)
"""What maps of an output are called in titles."""

Output = tuple[str, str]
"""An output of the network: (task, class)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heat:
    """One map of one slide: what every overlay and export is made from.

    ``values_N``, (N,) float32, is the raw attention of ``result``'s patches or, where ``output`` is set, what they
    contribute to it in logits, or gradient times input for it, as ``kind`` says. ``shown`` is the map's title in
    words, ``task`` the task whose classes are reported. ``other_attention`` maps titles to the slide's other
    maps of attention, (N,) float32 each.
    """

    result: SlideResult
    values_N: NDArray[np.float32]
    shown: str
    task: str | None = None
    output: Output | None = None
    kind: MapKind = "attention"
    other_attention: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def others(self) -> dict[str, NDArray[np.float32]]:
        """The slide's other maps by their titles, (N,) float32 each.

        There is one per query, and one per output whose contributions are known, or whose gradients are.
        """
        more = {
            output_in_words(kind, output): output_map(self.result, kind, output)
            for kind in OF_OUTPUTS
            for output in outputs_with(self.result, kind)
            if (kind, output) != (self.kind, self.output)
        }
        return {**self.other_attention, **more}

    @property
    def flat(self) -> bool:
        """Whether attention is flat.

        For contributions and gradients, this is the attention of the query that their task reads.
        """
        values_N = self.values_N
        if self.output is not None:
            query = task_queries(self.result).get(self.output[0])
            values_N = attention_map(self.result, query=query)
        return is_flat(values_N, self.even_share)

    @property
    def spread(self) -> str:
        """How far the values go, in words; it begins by saying so where attention is flat."""
        if self.output is None:
            return spread_in_words(self.values_N, self.result)
        describe = spread_of_contributions if self.kind == "contribution" else spread_of_gradients
        words = describe(self.values_N, len(self.result.kept_ids_M))
        return f"Flat attention: {words}" if self.flat else words

    @property
    def coords(self) -> PatchCoords:
        """The slide's patches."""
        return self.result.coords

    @property
    def even_share(self) -> float:
        """The attention that each patch would have if all had the same (:func:`even_share`)."""
        return even_share(self.result)

    def scale(self, options: HeatOptions) -> DisplayScale:
        """The colour scale of this map (:func:`wsi_ips.heatmaps.display_scale.scale_of`)."""
        return scale_of(options, self.values_N, self.kind, even_share=self.even_share)

    @property
    def likeliest(self) -> str | None:
        """The likeliest class of ``task``; None without a task, or where its output is a mere number."""
        classes = self.result.probabilities.get(self.task or "", {})
        if len(classes) < 2 or are_of_survival(list(classes)) or are_numbers(self.result, self.task or ""):
            return None
        return max(classes, key=lambda name: classes[name])


def choose_heat(result: SlideResult, options: HeatOptions = DEFAULT_HEAT, *, alone: bool = False) -> Heat:
    """Choose one map of a slide.

    ``options`` says which one. Without a kind (``options.map``), contributions are shown if the head gives them
    and neither a query nor a head is named, else attention. Attention is that of a task or a query, and of a
    head, and the mean over those that are not named. Contributions and gradients are of a class of a task, chosen
    by :func:`choose_output` where it is not named. With ``alone``, the slide's other maps of attention are neither
    checked nor part of the result.

    Raises :class:`ConfigError` for a task, class, query or head that the model does not have, for choices that do
    not go together, and for contributions or gradients that the result does not hold; :class:`ResultsError` for
    values that are not finite.
    """
    kind, task, class_name, query, head = (
        options.map, options.task, options.class_name, options.query, options.head,
    )  # fmt: skip
    if kind is None:
        by_default = tells(result) and query is None and head is None
        kind = "contribution" if class_name is not None or by_default else "attention"
    if kind != "attention":
        if query is not None or head is not None:
            raise ConfigError(f"a query or a head chooses attention; choose {plural(kind)} by task and class")
        return _of_output(result, kind, task=task, class_name=class_name, alone=alone)
    if class_name is not None:
        raise ConfigError("attention does not belong to a class; name a task, or use --map contribution")
    return _attention(result, task=task, query=query, head=head, alone=alone)


def _of_output(
    result: SlideResult, kind: MapKind, *, task: str | None, class_name: str | None, alone: bool
) -> Heat:
    output = choose_output(result, task=task, class_name=class_name)
    values_N = output_map(result, kind, output)
    check_finite(result, values_N, f"a {kind}")
    if not alone:
        _check_told(result)
    others = {}
    if not alone:
        query = task_queries(result).get(output[0])
        others[shown_in_words(result, query=query, head=None)] = attention_map(result, query=query)
    for map_N in others.values():
        check_finite(result, map_N)
    return Heat(
        result=result,
        values_N=values_N,
        shown=output_in_words(kind, output),
        task=output[0],
        output=output,
        kind=kind,
        other_attention=others,
    )


def _attention(
    result: SlideResult, *, task: str | None, query: int | None, head: int | None, alone: bool
) -> Heat:
    if task is not None:
        query = query_of_task(result, task)
    readers = [name for name, its_query in task_queries(result).items() if query in (None, its_query)]
    queries = result.attention_NHT.shape[2]
    others = {
        shown_in_words(result, query=each, head=head): attention_map(result, query=each, head=head)
        for each in range(queries if queries > 1 and not alone else 0)
        if each != query
    }
    values_N = attention_map(result, query=query, head=head)
    for map_N in (values_N, *others.values()):
        check_finite(result, map_N)
    if not alone:
        _check_told(result)
    return Heat(
        result=result,
        values_N=values_N,
        shown=shown_in_words(result, query=query, head=head),
        task=task or next(iter([*readers, *result.probabilities]), None),
        other_attention=others,
    )


def attention_map(
    result: SlideResult, *, query: int | None = None, head: int | None = None
) -> NDArray[np.float32]:
    """The attention of one query and head, (N,) float32, or the mean over those that are not named.

    Each map sums to 1 over the slide, and so does a mean of maps. Raises :class:`ConfigError` for an index that
    the model does not have.
    """
    heads, queries = result.attention_NHT.shape[1:]
    for name, index, count in (("head", head, heads), ("query", query, queries)):
        if index is not None and not 0 <= index < count:
            raise ConfigError(f"{name} {index} is not there: {result.coords.slide_id} has 0 to {count - 1}")
    of_heads = slice(None) if head is None else slice(head, head + 1)
    of_queries = slice(None) if query is None else slice(query, query + 1)
    mean_N = result.attention_NHT[:, of_heads, of_queries].mean(axis=(1, 2), dtype=np.float64)
    return np.asarray(mean_N, np.float32)


def even_share(result: SlideResult) -> float:
    """The attention of a patch if all had the same: 1 over the slide's patches, or over those of the whole case
    where the slide was read as a part of one. (Of a result that does not say how many patches its case has, the
    attention of the slide divided evenly.)
    """
    count, case = max(1, len(result.coords)), result.case
    if case is None:
        return 1 / count
    if case.patches:
        return 1 / case.patches
    return case.share / count if case.share > 0 else 1 / count


def query_of_task(result: SlideResult, task: str) -> int:
    """The query that ``task`` reads.

    Raises :class:`ConfigError` for a task that the model does not have, or whose query the result does not say.
    """
    queries = task_queries(result)
    if task not in result.probabilities:
        raise ConfigError(
            f"task {task!r} is not there: {result.coords.slide_id} has {', '.join(result.probabilities)}"
        )
    if task not in queries:
        raise ConfigError(f"{result.coords.slide_id} does not say which query task {task!r} reads; name it")
    return queries[task]


def task_queries(result: SlideResult) -> Mapping[str, int]:
    """The query that each task reads, as far as it is known.

    Files of earlier versions only have the order of tasks.
    """
    tasks, queries = result.probabilities, result.attention_NHT.shape[2]
    if result.task_queries:
        return result.task_queries
    if queries == 1:
        return dict.fromkeys(tasks, 0)
    return {task: place for place, task in enumerate(tasks)} if len(tasks) == queries else {}


def tells(result: SlideResult) -> bool:
    """Whether the result holds what each patch contributes."""
    return result.kept_contributions_MK is not None


def outputs(result: SlideResult) -> list[Output]:
    """Every output of the network: tasks and their classes in the model's order."""
    return [(task, name) for task, classes in result.probabilities.items() for name in classes]


def are_numbers(result: SlideResult, task: str) -> bool:
    """Whether the outputs of a task are numbers (regression), and not probabilities of classes.

    Results of earlier versions do not say so; there, outputs that cannot be probabilities are numbers.
    """
    outputs = result.probabilities.get(task, {})
    if are_of_survival(list(outputs)):
        return False
    return task in result.number_tasks or any(not 0 <= value <= 1 for value in outputs.values())


def choose_output(result: SlideResult, *, task: str | None = None, class_name: str | None = None) -> Output:
    """The output with this task and class; what is not named is chosen.

    The task is the first one that has the class. The class is the last one of a task with one or two classes,
    which is what a yes-or-no task looks for, and the likeliest one of a task with more; of a survival task it is
    the risk, and of numbers the first, as none of them is likelier than another.

    Raises :class:`ConfigError` for a task or class that the model does not have.
    """
    slide_id, tasks = result.coords.slide_id, result.probabilities
    if task is not None and task not in tasks:
        raise ConfigError(f"task {task!r} is not there: {slide_id} has {', '.join(tasks)}")
    having = [name for name in tasks if class_name is None or class_name in tasks[name]]
    if task is None:
        task = next(iter(having), None)
    if task not in having:
        known = ", ".join(dict.fromkeys(name for _, name in outputs(result)))
        raise ConfigError(f"class {class_name!r} is not there: {slide_id} has {known}")
    classes = tasks[task]
    if class_name is None and are_of_survival(list(classes)):
        return task, RISK
    if class_name is None and are_numbers(result, task):
        return task, next(iter(classes))
    if class_name is None:
        likeliest = max(classes, key=lambda name: classes[name])
        class_name = likeliest if len(classes) > 2 else list(classes)[-1]
    return task, class_name


OF_OUTPUTS: tuple[MapKind, ...] = ("contribution", "gradient")
"""Kinds of maps that belong to an output of the network. They have a sign, and 0 for patches that were not
kept."""


def outputs_with(result: SlideResult, kind: MapKind) -> list[Output]:
    """The outputs that have a map of this kind: all of them, or none."""
    told = result.kept_contributions_MK if kind == "contribution" else result.kept_gradients_MK
    return outputs(result) if told is not None else []


def output_map(result: SlideResult, kind: MapKind, output: Output) -> NDArray[np.float32]:
    """What each patch adds to this output, or gradient times input of each patch for it, (N,) float32 logits.

    Raises :class:`ConfigError` if the result does not hold this kind of map, or has no such output.
    """
    if not outputs_with(result, kind):
        why = f"{NOT_TOLD}; use --map attention" if kind == "contribution" else NOT_ASKED
        raise ConfigError(f"{result.coords.slide_id}: {why}")
    if output not in outputs(result):
        raise ConfigError(f"{result.coords.slide_id} has no output {output[1]!r} of task {output[0]!r}")
    return result.contribution(*output) if kind == "contribution" else result.gradient(*output)


def _check_told(result: SlideResult) -> None:
    """Raise :class:`ResultsError` if a contribution or a gradient of any output is not finite."""
    for values_MK, what in (
        (result.kept_contributions_MK, "a contribution"),
        (result.kept_gradients_MK, "a gradient"),
    ):
        if values_MK is not None:
            check_finite(result, values_MK, what)


def check_finite(result: SlideResult, values: NDArray[np.float32], what: str = "attention") -> None:
    """Raise :class:`ResultsError` if a value is not finite: it has neither a colour nor a rank."""
    if not np.isfinite(values).all():
        raise ResultsError(result.coords.slide_id, f"has {what} that is not finite", "predict it again")


def check_same_slide(slide: SlideReader, result: SlideResult, *, fingerprint: str = "") -> None:
    """Check that the slide is the one that the result was predicted from: by its size, and by its content where it
    lies where it was predicted. A slide that lies elsewhere may be a copy in another container.

    Args:
        slide: The slide.
        result: What was predicted.
        fingerprint: That of the slide, where it was taken just now; otherwise it is taken here.

    Raises:
        ResultsError: It is another slide. Its map would be drawn over pixels that it does not belong to.
    """
    coords, path = result.coords, slide.info.path
    (width, height), (l0_width, l0_height) = slide.info.l0_size, coords.l0_size
    if (width, height) != (l0_width, l0_height):
        raise ResultsError(
            path,
            f"is {width}x{height} pixels, but {coords.slide_id} was {l0_width}x{l0_height} when predicted",
            "name the folder of the slides that were predicted",
        )
    then = "" if result.made_from is None else result.made_from.slide
    if then and isinstance(path, Path) and str(path) == result.slide_path:
        now = fingerprint or files_fingerprint(files_of(path))
        if now and now != then:
            raise ResultsError(
                path,
                "is not the file that was predicted: it has changed since",
                "predict again, or name the folder of the slides that were predicted with --slides",
            )


def shown_in_words(result: SlideResult, *, query: int | None, head: int | None) -> str:
    """The title of a map of attention."""
    heads, queries = result.attention_NHT.shape[1:]
    of_query = "mean over queries"
    if query is not None or queries == 1:
        index = query or 0
        readers = [task for task, its_query in task_queries(result).items() if its_query == index]
        of_query = f"task {' and '.join(readers)}" if readers else f"query {index}"
        of_query = result.query_names[index] if result.query_names else of_query
    if heads == 1:
        return f"Attention, {of_query}"
    return f"Attention, {of_query}, " + (f"mean over {heads} heads" if head is None else f"head {head}")


def spread_in_words(values_N: NDArray[np.floating], result: SlideResult) -> str:
    """How far attention goes from the even share, in words, and whether it is flat."""
    if not len(values_N):
        return "no patch"
    count, even = len(values_N), even_share(result)
    least, most = (short(float(end) / even) for end in (values_N.min(), values_N.max()))
    patches = "1 patch" if count == 1 else f"{count} patches"
    if result.case is not None and result.case.patches:
        patches += f" of {result.case.patches} in case {result.case.case_id}"
    words = f"{patches}, {least} to {most} times the even share of {short(even)}"
    return f"Flat: {words}" if is_flat(values_N, even) else words


def output_in_words(kind: MapKind, output: Output) -> str:
    """The title of a map of contributions or gradients."""
    task, class_name = output
    return f"{TITLES[kind]} {'to' if kind == 'contribution' else 'for'} {class_name}, task {task}"


def plural(kind: MapKind) -> str:
    """What many values of a map are called."""
    return "attention" if kind == "attention" else f"{kind}s"


def speaking_for(kind: MapKind, class_name: str) -> str:
    """The title of a list of the patches with the largest values of a map of a class."""
    return f"Add most to {class_name}" if kind == "contribution" else f"Largest gradient for {class_name}"


def spread_of_contributions(values_N: NDArray[np.floating], kept: int) -> str:
    """How many of the ``kept`` patches add to the output and how many take from it, and how far, in words.

    ``values_N`` are the contributions of all patches, (N,) logits.
    """
    if not len(values_N):
        return "no patch"
    parts = [f"{_some(kept)} of {len(values_N)} kept"]
    for verb, side_n in (("add", values_N[values_N > 0]), ("take", -values_N[values_N < 0])):
        parts.append(
            f"{len(side_n)} {verb}" + (f" {short(float(side_n.max()))} at most" if len(side_n) else "")
        )
    total = signed(float(values_N.sum(dtype=np.float64)))
    return f"{', '.join(parts)}; together {total} logits" + (
        "; the others add nothing" if kept < len(values_N) else ""
    )


def spread_of_gradients(values_N: NDArray[np.floating], kept: int) -> str:
    """How many of the ``kept`` patches speak for the output and how many against it, and how far, in words.

    ``values_N`` is gradient times input of all patches, (N,) logits. There is no sum: it is not the logit.
    """
    if not len(values_N):
        return "no patch"
    parts = [f"{_some(kept)} of {len(values_N)} kept"]
    for side, side_n in (("for it", values_N[values_N > 0]), ("against it", -values_N[values_N < 0])):
        parts.append(
            f"{len(side_n)} {side}" + (f", {short(float(side_n.max()))} at most" if len(side_n) else "")
        )
    return ", ".join(parts) + ("; the others were not kept" if kept < len(values_N) else "")


def _some(count: int) -> str:
    return "1 patch" if count == 1 else f"{count} patches"


def predictions_in_words(result: SlideResult) -> Iterator[str]:
    """One line per task with its likeliest three classes, likeliest first; of survival, the risk first, and of
    numbers the first three in their order.
    """
    for task, probabilities in result.probabilities.items():
        likeliest = list(probabilities.items())
        if not are_of_survival(list(probabilities)) and not are_numbers(result, task):
            likeliest.sort(key=lambda item: -item[1])
        more = ", ..." if len(likeliest) > 3 else ""
        yield f"Predicted {task}: " + ", ".join(f"{name} {p:.3f}" for name, p in likeliest[:3]) + more
