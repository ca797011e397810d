"""Signs that a model does not answer as it should, each told with a checklist."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from model.values import shorten
from utils.cli.checklist import Checklist

from .records import QuestionRecord

# Fewer questions than this prove nothing.
FEWEST_QUESTIONS = 5


def no_token_group(
    name: str, records: Sequence[QuestionRecord], *, version: str, results_file: str
) -> Checklist | None:
    """Questions about objects, and not a single mask in the answers.

    Args:
        name: of a set; records: of all its questions.
        version, results_file: of the command, for the advice.
    """
    asked = [record for record in records if record.num_true]
    if len(asked) < FEWEST_QUESTIONS or any(record.num_predicted for record in asked):
        return None
    torn = sum("[SEG" in record.answer for record in asked)
    return Checklist(
        f"{name}: none of {len(asked)} answers that should draw holds a complete token group ({torn} hold parts "
        "of one)",
        "the language model has not learned to ask for masks: too few updates from a LLaVA base, or another template "
        "than it was trained with",
        (
            f'the answers in {results_file}; the first is "{shorten(asked[0].answer)}"',
            "--conv_type of a published model, which does not record it",
            "log.jsonl of the training: masks per update above 0, ce well below its start, enough updates (the "
            "released recipe makes 5,000; --init_from a trained model needs few)",
            "answers that are cut: --max_new_tokens",
        ),
        f"python chat.py --version {shlex.quote(version)}",
    )
