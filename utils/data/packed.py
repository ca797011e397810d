"""Annotations in one block of memory that all loader workers share.

A list of a million dicts grows with every worker: merely reading a Python object writes its reference count, and the
page it lies on is copied for the process that did. Bytes behind a numpy array have no such counts.
"""

from __future__ import annotations

import io
import pickle
from array import array
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

import numpy as np

from model.errors import InputError

Record = TypeVar("Record")


class Packed(Generic[Record]):
    """A read-only list; each access unpickles a record.

    Records are pickled by this process for itself and its workers; no file is read.

    Args:
        where: the file of the records, for messages.
    Raises:
        InputError: if a record is nested too deeply.
        IndexError: on access to a record that does not exist.
    """

    def __init__(self, records: Iterable[Record], *, where: object = "the annotations") -> None:
        data, ends = io.BytesIO(), array("q", [0])
        for number, record in enumerate(records):
            try:
                data.write(pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL))
            except RecursionError as err:  # lists in lists in lists, just short of what the JSON reader refuses
                raise InputError(f"{where}: record {number} is nested too deeply; correct it") from err
            ends.append(data.tell())
        self._data = np.frombuffer(data.getvalue(), dtype=np.uint8)
        self._ends = np.frombuffer(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return pickle.loads(self._data[self._ends[index] : self._ends[index + 1]].data)

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))
