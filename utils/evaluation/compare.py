"""Two results question by question: what changed, and whether by more than other images would change it. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model.errors import InputError

from .intervals import Terms, difference_interval
from .records import QuestionRecord
from .scores import ScoredQuestion, ScoredRow, ciou_terms, giou_terms, question_name

_MOST_NAMED = 5  # questions of the table


@dataclass(frozen=True)
class Difference:
    """A metric of both results, over the questions that both have.

    Attributes:
        one, other: its values; None where there is nothing to divide by.
        change: the other less the one.
        interval: [low, high] of 95 % of the change, clustered by image; None with fewer than 2 images.
    """

    metric: str
    one: float | None
    other: float | None
    change: float | None
    interval: list[float] | None


@dataclass(frozen=True)
class RowComparison:
    """A benchmark that both results have, in one protocol.

    Attributes:
        num_questions, num_images: that both have.
        better, worse, equal: questions whose own gIoU the other result raised, lowered, kept. To draw nothing where
            nothing was asked for counts as 1.
        only_one, only_other: names of the questions that only one of them has.
    """

    name: str
    protocol: str
    num_questions: int
    num_images: int
    differences: tuple[Difference, ...]
    better: int
    worse: int
    equal: int
    only_one: tuple[str, ...]
    only_other: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """All rows that both results have, and the names of those that only one has."""

    rows: tuple[RowComparison, ...]
    only_one: tuple[str, ...]
    only_other: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def table(self, *, one: str, other: str) -> str:
        """As plain text, shares in percent.

        Args:
            one, other: what the two results are called.
        """
        lines = [f"A: {one}", f"B: {other}"]
        for row in self.rows:
            lines += ["", f"{row.name}, {row.protocol}: {row.num_questions} questions about {row.num_images} images"]
            lines.append(f"{'':8}{'A':>8}{'B':>8}{'B - A':>9}   95 % interval of B - A")
            lines += [_line(difference) for difference in row.differences]
            lines.append(f"B is better in {row.better} questions, worse in {row.worse}, equal in {row.equal}")
            lines += _only("A", row.only_one) + _only("B", row.only_other)
        missing = _only("A", self.only_one) + _only("B", self.only_other)
        return "\n".join([*lines, *([""] if missing else []), *missing])


def compare(one: Sequence[ScoredRow], other: Sequence[ScoredRow]) -> Comparison:
    """Pair the questions of two results by their keys.

    Rows in which nothing was asked are left out.

    Raises:
        InputError: if no row is in both; if a row was judged or matched in different ways; or if a question that both
            have has not the same truth.
    """
    rows, others = _by_name(one), _by_name(other)
    common = [key for key in rows if key in others]
    if not common:
        found = " and ".join(", ".join(_row_names(keys)) or "nothing" for keys in (rows, others))
        raise InputError(
            f"the two results have no benchmark in common that was asked in the same protocol: {found}. Evaluate both "
            "with the same --benchmark and protocol"
        )
    return Comparison(
        rows=tuple(_compare_rows(rows[key], others[key]) for key in common),
        only_one=_row_names(key for key in rows if key not in others),
        only_other=_row_names(key for key in others if key not in rows),
    )


def _by_name(rows: Sequence[ScoredRow]) -> dict[tuple[str, str], ScoredRow]:
    return {(row.benchmark.name, row.protocol): row for row in rows if not row.missing}


def _row_names(keys: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(f"{name} ({protocol})" for name, protocol in keys)


def _compare_rows(one: ScoredRow, other: ScoredRow) -> RowComparison:
    _check_alike(one, other)
    of_one, of_other = ({question.record.key: question for question in row.questions} for row in (one, other))
    pairs = [(of_one[key], of_other[key]) for key in of_one if key in of_other]
    for mine, theirs in pairs:
        _check_truth(mine.record, theirs.record)
    images, rule = [mine.record.image for mine, _ in pairs], one.benchmark.rule
    mine, theirs = [mine for mine, _ in pairs], [theirs for _, theirs in pairs]
    changes = [_own_score(after) - _own_score(before) for before, after in pairs]
    return RowComparison(
        name=one.benchmark.name,
        protocol=one.protocol,
        num_questions=len(pairs),
        num_images=len(set(images)),
        differences=(
            _difference("giou", giou_terms(mine, rule), giou_terms(theirs, rule), images),
            _difference("ciou", ciou_terms(mine), ciou_terms(theirs), images),
        ),
        better=sum(change > 0 for change in changes),
        worse=sum(change < 0 for change in changes),
        equal=sum(change == 0 for change in changes),
        only_one=tuple(question_name(of_one[key].record) for key in of_one if key not in of_other),
        only_other=tuple(question_name(of_other[key].record) for key in of_other if key not in of_one),
    )


def _check_alike(one: ScoredRow, other: ScoredRow) -> None:
    """Numbers of different rules have no difference."""
    name = f"{one.benchmark.name} ({one.protocol})"
    if one.judge != other.judge:
        raise InputError(
            f"{name} was judged by {one.judge} in the first result and by {other.judge} in the second; score both with "
            "the same judge: --rescore with --judge none leaves it out"
        )
    ways = [_scored_how(row) for row in (one, other)]
    if ways[0] != ways[1]:
        raise InputError(
            f"{name} was scored in two ways: {ways[0]} and {ways[1]}. Score both with --rescore and the same flags"
        )


def _scored_how(row: ScoredRow) -> str:
    """What the numbers depend on, as far as it was used."""
    options = row.options
    how = f"rule {row.benchmark.rule}, {options.matching} matching"
    how += f", seed {options.seed}" if options.matching == "released" else ""
    return how + (f", judge's threshold {options.judge_threshold}" if row.judge != "none" else "")


def _check_truth(one: QuestionRecord, other: QuestionRecord) -> None:
    for what in ("size", "has_target", "names", "true_masks", "ignored"):
        if getattr(one, what) != getattr(other, what):
            raise InputError(
                f"the two results were asked of different data: {question_name(one)} has not the same {what} in both. "
                "Evaluate both with the same files"
            )


def _own_score(question: ScoredQuestion) -> float:
    return 1.0 if question.score is None else question.score


def _difference(metric: str, one: Terms, other: Terms, images: Sequence[str]) -> Difference:
    before, after = one.ratio, other.ratio
    change = None if before is None or after is None else after - before
    return Difference(metric, before, after, change, difference_interval(other, one, images))


def _line(difference: Difference) -> str:
    low_high = "-"
    if difference.interval is not None:
        low_high = " to ".join(f"{bound:+.1%}" for bound in difference.interval)
    cells = f"{_percent(difference.one):>8}{_percent(difference.other):>8}"
    return f"{difference.metric:8}{cells}{_percent(difference.change, sign='+'):>9}   {low_high}"


def _percent(value: float | None, *, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.1%}"


def _only(which: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return [f"only {which} has {len(names)}: {', '.join(names[:_MOST_NAMED])}{more}"]
