"""What will be asked: validation sets that were opened and looked through before the first question."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from model.errors import InputError
from utils import dist
from utils.data.encode import check_photo
from utils.data.records import RawSample, Turn
from utils.data.sources import Source


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a validation set.

    Attributes:
        counts: questions about each photo, of those that are asked about.
        sha256: of all photos' names, questions, true answers and masks.
    """

    name: str
    source: Source
    counts: tuple[int, ...]
    sha256: str

    def batches(self, size: int) -> Iterator[list[int]]:
        """Photos whose questions are asked together: at most so many questions, unless one photo has more.

        They depend neither on the number of processes nor on what is answered already, so the same numbers come out.
        """
        batch: list[int] = []
        num_questions = 0
        for index, count in enumerate(self.counts):
            if batch and num_questions + count > size:
                yield batch
                batch, num_questions = [], 0
            batch.append(index)
            num_questions += count
        if batch:
            yield batch


def look_through(source: Source, name: str, *, limit: int = 0) -> QuestionSet:
    """Read every sample, but for the pixels of its photo; the samples are divided over all processes.

    Args:
        limit: photos, from the start of the set; 0 takes all.
    Raises:
        InputError: from a sample that cannot be used, before hours are spent on others.
    """
    num_photos = min(len(source), limit or len(source))
    own: dict[int, tuple[int, bytes]] = {}
    with dist.stop_together():
        for index in range(dist.rank(), num_photos, dist.world_size()):
            own[index] = _look_at(source, index)
    found = {index: seen for of_process in dist.gather_objects(own) for index, seen in of_process.items()}
    ordered = [found[index] for index in range(num_photos)]
    digest = hashlib.sha256(b"".join(of_sample for _, of_sample in ordered)).hexdigest()
    return QuestionSet(name, source, tuple(count for count, _ in ordered), digest)


def get_sample(source: Source, index: int) -> RawSample:
    """The same sample in every run and in any process."""
    return source.get(index, np.random.default_rng(index))


def question_of(turns: Sequence[Turn]) -> Turn:
    """The one turn of a conversation: a question stands alone, else the source has a bug."""
    (turn,) = turns
    return turn


def _look_at(source: Source, index: int) -> tuple[int, bytes]:
    """Questions of a sample, and a digest of it."""
    name = f"sample {index} of {source.name}"
    try:
        sample = get_sample(source, index)
        name = sample.sample_id
        if sample.image_path is None:
            raise InputError("it has no photo; expected one for every question")
        check_photo(sample)
    except InputError as err:
        raise InputError(f"{name}: {err}", reason=err.reason) from err
    turns = [question_of(turns) for turns in sample.conversations]
    said = [(turn.question, turn.answer, turn.targets, turn.names, turn.kind, turn.has_target) for turn in turns]
    digest = hashlib.sha256(
        repr((sample.image_path.name, sample.masks.shape, said)).encode("utf-8", "backslashreplace")
    )
    for pixels in (sample.masks, sample.ignore):
        digest.update(b"" if pixels is None else np.packbits(pixels).tobytes())
    return len(turns), digest.digest()
