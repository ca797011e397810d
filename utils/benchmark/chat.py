"""What answers cost, and what their time goes into: random weights, photos of noise, answers that are known beforehand.

Everything goes through the predictor, from a photo in memory to masks of its size. Beside it stands the floor: the
arithmetic of the same parts, in the same run.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from model.files import write_text
from model.outputs import check_output_file
from model.values import Attention

from .chat_bench import KINDS, PARTS, Bench, Case, measure
from .chat_floor import copy_bandwidth, weight_bytes
from .machine import describe_machine

_FLOOR_BATCH = 8  # larger ones have no floor: its attention takes a call for each row
_LEGEND = """\
Medians over {repeats} repetition(s), which take turns. Seconds are {clock}. A photo is
read, then a question is asked about it. `tokens` are those of the answer, six of a target and the end mark among them.
`tokens/s` leaves out the time to the first piece of text; what decodes the masks is in it. `s per mask` is against no
target. `passes` are those of the language model: one for photo and question, one for each word and one for each
target. `floor` is the arithmetic of the same parts alone: the tower once, one prefill, a pass through the weights
for each word and each group with a cache that is there beforehand, lm_head, the decoder, and masks resized to the
photo. `rest` is what is in no part, such as the resizing of the photo. `peak` is what is taken beyond the weights.
Several questions have answers of three to five quarters of the words, with none to three targets; each is about a photo
of its own unless the row says so. `of one by one` is in answers per second, against the first row."""


def cases_of_targets(bench: Bench, targets: Sequence[int]) -> list[Case]:
    """A photo and one question, whose answers have so many targets."""
    photo = bench.photo()
    requests = [bench.request(photo, words=bench.words, targets=count) for count in targets]
    return [
        Case(str(count), [one], functools.partial(bench.ask, one), at_once=1)
        for count, one in zip(targets, requests, strict=True)
    ]


def cases_of_batches(bench: Bench, batches: Sequence[int]) -> list[Case]:
    """Questions one by one and together, each about a photo of its own; then four about one photo."""
    photos = [bench.photo() for _ in range(max(KINDS, *batches))]
    cases = []
    for size in dict.fromkeys((1, *batches)):
        count = max(size, KINDS)
        requests = bench.mixed(photos[:count], count)
        name = "one by one" if size == 1 else f"{size} together"
        run = functools.partial(bench.batch, requests, size)
        cases.append(Case(name, requests, run, at_once=size if size <= _FLOOR_BATCH else 0))
    several = bench.mixed(photos[:1], KINDS)

    def keep_photo() -> None:
        bench.predictor.set_image(photos[0])
        for one in several:
            bench.predictor.ask(one.question)

    return [
        *cases,
        Case(f"{KINDS} about one photo, one by one", several, keep_photo),
        Case(f"{KINDS} about one photo, together", several, lambda: bench.batch(several, KINDS), at_once=KINDS),
    ]


def cases_of_ways(bench: Bench, targets: int) -> list[Case]:
    """One answer in all ways, the first of which is the usual one; the last ones read no photo."""
    one = bench.request(bench.photo(), words=bench.words, targets=targets)
    return [
        Case("asked", [one], lambda: bench.ask(one)),
        Case("streamed", [one], lambda: bench.stream(one)),
        Case("asked, a pass for each token (codebook_fast_path=False)", [one],
             lambda: bench.ask(one, codebook_fast_path=False)),
        Case("generate, transformers' own loop", [one], lambda: bench.generate(one)),
        Case("asked again about the same photo", [one], lambda: bench.predictor.ask(one.question)),
    ]  # fmt: skip


def answers_table(cases: Sequence[Case], bench: Bench, firsts: Sequence[tuple[float, float]]) -> list[str]:
    """Two rows for each number of targets, on a GPU three.

    Args:
        firsts: of ``Bench.first_piece``, of each repetition.
    """
    first, further = (statistics.median(of_kind) for of_kind in zip(*firsts, strict=True))
    titles = ["targets", "s", "of the floor", "tokens", "tokens/s", "s per mask", "passes", "peak MiB", *PARTS]
    lines = [
        f"First piece of text: {first:.3f} s after the photo is given, {further:.3f} s at a further question about it.",
        "", *table_head(titles),
    ]  # fmt: skip
    bare = next((case.median for case in cases if case.fits and case.name == "0"), None)
    bandwidth = copy_bandwidth(bench.device, bench.clock) if bench.device.type == "cuda" else None
    for case in cases:
        if not case.fits:
            lines.append(table_row([case.name, "out of memory"], titles))
            continue
        parts = case.requests[0].parts
        tokens, groups = sum(map(len, parts)) + 1, sum(len(part) > 1 for part in parts)
        per_mask = f"{(case.median - bare) / groups:.3f}" if groups and bare is not None else "-"
        cells = [
            case.name, f"{case.median:.3f}", f"{case.median / case.floor:.2f}", str(tokens),
            f"{tokens / (case.median - first):.1f}", per_mask, str(case.passes), f"{case.peak / 2**20:,.0f}",
        ]  # fmt: skip
        lines.append(table_row([*cells, *_shares(case.parts)], titles))
        lines.append(table_row(["- floor", f"{case.floor:.3f}", *"-" * 6, *_shares(case.floor_parts)], titles))
        if bandwidth:
            blocks, head = (size / bandwidth for size in weight_bytes(bench.network))
            read = {"words": blocks * (len(parts) - groups), "groups": blocks * groups, "lm_head": head * len(parts)}
            times = [f"{read[part]:.3f}" if part in read else "-" for part in PARTS]
            lines.append(table_row(["- weights read", f"{sum(read.values()):.3f}", *"-" * 6, *times], titles))
    if bandwidth:
        lines += [
            "", "`weights read` is what reading the language model's weights for each word and each target would take "
            f"at {bandwidth / 1e9:,.0f} GB/s, which a copy of a GB reaches in this run, reading and writing.",
        ]  # fmt: skip
    return lines


def batches_table(cases: Sequence[Case]) -> list[str]:
    """A row for each way of asking several questions."""
    titles = [
        "several questions",
        "questions",
        "s",
        "answers/s",
        "of one by one",
        "floor s",
        "of the floor",
        "peak MiB",
        *PARTS,
    ]
    lines = table_head(titles)
    for case in cases:
        count = len(case.requests)
        if not case.fits:
            lines.append(table_row([case.name, str(count), "out of memory"], titles))
            continue
        of_first = f"{count / case.median * cases[0].median / len(cases[0].requests):.2f}" if cases[0].fits else "-"
        floor = [f"{case.floor:.3f}", f"{case.median / case.floor:.2f}"] if case.floor_parts else ["-", "-"]
        cells = [case.name, str(count), f"{case.median:.3f}", f"{count / case.median:.3f}", of_first, *floor]
        lines.append(table_row([*cells, f"{case.peak / 2**20:,.0f}", *_shares(case.parts)], titles))
    return lines


def ways_table(cases: Sequence[Case]) -> list[str]:
    """A row for each way of getting one answer."""
    titles = ["", "s", "of the first", "passes", "peak MiB"]
    lines = table_head(titles)
    for case in cases:
        cells = [case.name, "out of memory"]
        if case.fits:
            ratio = f"{case.median / cases[0].median:.2f}" if cases[0].fits else "-"
            cells = [case.name, f"{case.median:.3f}", ratio, str(case.passes) if case.passes else "-"]
            cells += [f"{case.peak / 2**20:,.0f}"]
        lines.append(table_row(cells, titles))
    return lines


def _shares(repetitions: Sequence[dict[str, float]]) -> list[str]:
    """The median of each part, and its share of them all."""
    parts = {part: statistics.median(one.get(part, 0.0) for one in repetitions) for part in PARTS}
    whole = sum(parts.values())
    return [f"{seconds:.3f} ({seconds / whole:.0%})" if seconds else "-" for seconds in parts.values()]


def table_head(titles: Sequence[str]) -> list[str]:
    """The two lines that begin a table in Markdown."""
    return [table_row(titles, titles), "|---|" + "---:|" * (len(titles) - 1)]


def table_row(cells: Sequence[str], titles: Sequence[str]) -> str:
    """Another one; columns that have no cell get a dash."""
    return f"| {' | '.join([*cells, *'-' * (len(titles) - len(cells))])} |"


def benchmark(
    *, size: str, precision: str, photo: str, words: int, targets: str, batches: str, repeats: int, compare: bool,
    attn_implementation: Attention, output_md: str,
) -> None:  # fmt: skip
    """Measure, and print tables.

    Args:
        photo: WIDTHxHEIGHT.
        words: of an answer; where there are several, at most.
        targets, batches: numbers with commas between them.
        compare: also the slow ways.
        output_md: a file for the tables.
    Raises:
        InputError: if the file cannot be written, or attention cannot be computed so here.
    """
    if output_md:
        check_output_file(output_md, flag="--output_md")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    width, height = map(int, photo.split("x"))
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(
                size, words=words, photo=(height, width), precision=precision, device=device, folder=Path(folder),
                attention=attn_implementation,
            )  # fmt: skip
        tables = _measure(bench, numbers_of(targets), numbers_of(batches), repeats=repeats, compare=compare)
        machine = describe_machine(("torch", "transformers"))
    finally:
        torch.set_num_threads(threads)
    work = f"{size}, {precision}, {attn_implementation}: answers of {words} words, photos of {photo}"
    clock = "of the wall" if bench.clock.wall else "of the processor, with one thread"
    report = "\n".join([work, "", *tables, _LEGEND.format(repeats=repeats, clock=clock)])
    print(report)
    if output_md:
        write_text(Path(output_md), f"# Answers\n\n{machine}\n\n{report}\n")


def numbers_of(text: str) -> list[int]:
    """Those of a flag, with commas between them, each once."""
    return sorted({int(number) for number in text.split(",")})


def _measure(bench: Bench, targets: Sequence[int], batches: Sequence[int], *, repeats: int, compare: bool) -> list[str]:
    """All tables, a blank line behind each."""
    answers = cases_of_targets(bench, targets)
    firsts = [bench.first_piece(answers[0].requests[0]) for _ in range(1 + repeats)][1:]
    measure(bench, answers, repeats=repeats)
    lines = [*answers_table(answers, bench, firsts), ""]
    together = cases_of_batches(bench, batches)
    measure(bench, together, repeats=repeats)
    lines += [*batches_table(together), ""]
    if compare:
        ways = cases_of_ways(bench, 3 if 3 in targets else targets[-1])
        measure(bench, ways, repeats=repeats)
        lines += [*ways_table(ways), ""]
    return lines
