"""The page of an evaluation: scores beside published ones, plots, pictures of answers, and a table of all questions.

The page is one file that asks no network for anything. What strangers wrote (questions, answers, names of files) is
escaped by the template or, in the data that the script reads, shown as text; the page's own policy lets no other script
run. No torch.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from model.drawing import PALETTE, Color, ink_on
from model.files import write_text

from .records import QuestionRecord
from .report_plots import ORDER, plots
from .report_samples import BADGE, Album, Entry, choose
from .report_scores import score_tables
from .scores import ScoredRow, ScoringOptions, num_targets

PICTURES = 8  # questions of a kind and row that are shown in pictures, where nobody says otherwise
_LONGEST_TEXT = 300  # letters of a question or an answer in the table of all questions
_TEMPLATES = Path(__file__).with_name("templates")


def write_report(
    file: Path,
    rows: Sequence[ScoredRow],
    *,
    settings: Mapping[str, Any],
    other: tuple[str, Sequence[ScoredRow]] | None = None,
) -> None:
    """Write the page.

    Args:
        rows: of the result, those without data among them.
        settings: what the run was begun with, as in settings.json. ``pictures`` of its ``config`` says how many
            questions of a kind (worst, best, ...) and row are shown with their photo, at most.
        other: name and rows of a second run, which stands beside the first; rows and questions that it lacks stand
            alone.
    Raises:
        InputError: if a mask is damaged, or the file cannot be written. A photo that cannot be read is told in its
            place.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (Markup((_TEMPLATES / f"report.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js"))
    style += _colors()
    other_name, other_rows = other or ("", ())
    asked = [row for row in rows if not row.missing]
    wanted = _config(settings).get("pictures")
    num_pictures = wanted if isinstance(wanted, int) and wanted >= 0 else PICTURES
    page = environment.get_template("report.html").render(
        title=_title(settings),
        facts=_facts(settings, rows),
        settings=list(_flat(settings)),
        tables=score_tables(rows, other_rows),
        other_name=other_name,
        asked=[_label(row) for row in asked],
        num_pictures=num_pictures,
        data=_data(asked, other_name, other_rows, num_pictures),
        style=style,
        script=script,
        policy={"style": _hash(style), "script": _hash(script)},
    )
    write_text(file, page)


def _title(settings: Mapping[str, Any]) -> str:
    """What was evaluated: the last two parts of the model's name, as many models lie in a folder hf_model."""
    version = Path(str(_config(settings).get("version") or "Evaluation"))
    return "/".join(part for part in version.parts[-2:] if part != version.anchor)


def _config(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    config = settings.get("config")
    return config if isinstance(config, Mapping) else settings


def _facts(settings: Mapping[str, Any], rows: Sequence[ScoredRow]) -> list[tuple[str, str]]:
    """The lines at the top; what the settings do not know is left out."""
    config, versions = _config(settings), settings.get("versions")
    keys = {one.record.key for row in rows for one in row.questions}  # rows may share questions
    photos = {(benchmark, index) for benchmark, _, index, _ in keys}
    missing = sum(bool(row.missing) for row in rows)
    asked = f"{len(keys):,} questions about {len(photos):,} photos, in {len(rows) - missing} rows"
    facts = {
        "model": config.get("version"),
        "asked": asked + (f"; {missing} more without data" if missing else ""),
        "protocol": ", ".join(dict.fromkeys(row.protocol for row in rows)),
        "judge": ", ".join(dict.fromkeys(row.judge for row in rows if not row.missing)),
        "matching": ", ".join(dict.fromkeys(_matching(row.options) for row in rows if not row.missing)),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items())
        if isinstance(versions, Mapping)
        else versions,
        "command": settings.get("command"),
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def _matching(options: ScoringOptions) -> str:
    return "exact" if options.matching == "exact" else f"{options.matching}, seed {options.seed}"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Settings in settings as lines of dotted names."""
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            yield from _flat(below, f"{name}.{key}" if name else str(key))
    else:
        yield name, str(value)


def _label(row: ScoredRow) -> str:
    return f"{row.benchmark.name}, {row.protocol}"


def _data(asked: Sequence[ScoredRow], other_name: str, other_rows: Sequence[ScoredRow], most: int) -> dict[str, Any]:
    """What the script of the page reads.

    Lists and plots are those of each row and, of several, of all together, where questions that rows share count once.
    """
    beside = {(row.benchmark.name, row.protocol): row.questions for row in other_rows}
    compared = [beside.get((row.benchmark.name, row.protocol), ()) for row in asked]
    entries: list[Entry] = []
    places: list[Sequence[int]] = []
    for number, (row, others) in enumerate(zip(asked, compared, strict=True)):
        by_key = {one.record.key: one for one in others}
        entries += [Entry(number, one, by_key.get(one.record.key)) for one in row.questions]
        places.append(range(len(entries) - len(row.questions), len(entries)))
    first = {entry.scored.record.key: place for place, entry in reversed(list(enumerate(entries)))}
    once = sorted(first.values())
    if len(asked) > 1:
        places.append(once)
        compared.append(tuple({one.record.key: one for others in compared for one in others}.values()))
    lists = []
    for of_row in places:
        chosen = choose([entries[place] for place in of_row], most=most)
        lists.append({kind: [of_row[place] for place in found] for kind, found in chosen.items()})
    shown = sorted({place for of_row in lists for found in of_row.values() for place in found})
    album = Album()
    return {
        "rows": [_label(row) for row in asked],
        "other": other_name,
        "badge": BADGE,
        "numColors": len(PALETTE),
        "order": ORDER,
        "lists": lists,
        "plots": [
            [plots([entries[place].scored for place in of_row]), plots(others) if others else None]
            for of_row, others in zip(places, compared, strict=True)
        ],
        "questions": [_line(entry) for entry in entries],
        "repeated": sorted(set(range(len(entries))) - set(once)),
        "pictures": {place: album.picture(entries[place]) for place in shown},
        "photos": album.photos,
    }


def _line(entry: Entry) -> list[Any]:
    """A question in the table of all; the script names the columns."""
    record, pairs = entry.scored.record, entry.scored.pairs
    other = entry.other.score if entry.other else None
    return [
        entry.row,
        _rounded(entry.scored.score),
        _rounded(other),
        _cut(record.question),
        _cut(record.numbered),
        record.num_predicted,
        num_targets(record),
        entry.num_extra,
        entry.num_missed,
        _rounded(float(pairs.iou.min()) if len(pairs.iou) else None),
        _group(record),
        record.kind,
        record.sample_id,
    ]


def _group(record: QuestionRecord) -> str:
    return ("no-target", "single-target", "multi-target")[min(num_targets(record), 2)]


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 2] + " \N{HORIZONTAL ELLIPSIS}"


def _colors() -> str:
    """A class for each color of the palette, with that of letters on it."""
    return "".join(
        f".c{slot} {{ --fill: {_hex(color)}; --ink-on: {_hex(ink_on(color))}; }}\n"
        for slot, color in enumerate(PALETTE)
    )


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _hash(text: str) -> str:
    """Of a style or script, as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
