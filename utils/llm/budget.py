"""A ceiling on what is spent, in tokens or in money, that holds while many requests are in flight."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Condition

_PRICED = 1_000_000  # tokens that a price is given for


@dataclass(frozen=True)
class Tokens:
    """Tokens that a model reads (prompt) and writes (completion)."""

    prompt: int = 0
    completion: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.completion

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt - other.prompt, self.completion - other.completion)


class OverCeiling(Exception):
    """The worst case of a request does not fit below the ceiling."""


class Budget:
    """What was spent, and what the requests in flight may still cost.

    Args:
        ceiling: in tokens, or in money with prices; 0 sets none.
        prices: of 1,000,000 tokens read and of as many written; None counts tokens.
    """

    def __init__(self, ceiling: float = 0, *, prices: tuple[float, float] | None = None) -> None:
        self.ceiling = ceiling
        self.used = Tokens()  # as the server counted them
        self.assumed = Tokens()  # the worst case of requests of which nobody knows what they cost
        self._prices = prices
        self._in_flight = Tokens()
        self._num_in_flight = 0
        self._changed = Condition()

    def reserve(self, worst: Tokens) -> None:
        """Set the worst case of a request aside, and wait for other requests to end while it does not fit.

        Raises:
            OverCeiling: if it does not fit although nothing is in flight.
        """
        with self._changed:
            while not self._fits(worst):
                if not self._num_in_flight:
                    raise OverCeiling(f"the ceiling of {self.show_ceiling()} leaves no room for the request")
                self._changed.wait()
            self._in_flight += worst
            self._num_in_flight += 1

    def settle(self, worst: Tokens, used: Tokens | None) -> None:
        """Put what a request has cost in the place of its worst case; None if nobody knows."""
        with self._changed:
            self._in_flight -= worst
            self._num_in_flight -= 1
            if used is None:
                self.assumed += worst
            else:
                self.used += used
            self._changed.notify_all()

    def show_spent(self) -> str:
        """For a message: tokens, those assumed among them, and money if there are prices."""
        text = f"{(self.used + self.assumed).total:,} tokens"
        if self.assumed.total:
            text += f" ({self.assumed.total:,} of them assumed for tries without an answer)"
        return f"{text}, cost {self._cost(self.used + self.assumed):.4f}" if self._prices else text

    def show_ceiling(self) -> str:
        """For a message."""
        return f"{self.ceiling:g} (money)" if self._prices else f"{self.ceiling:,.0f} tokens"

    def _fits(self, worst: Tokens) -> bool:
        return not self.ceiling or self._cost(self.used + self.assumed + self._in_flight + worst) <= self.ceiling

    def _cost(self, tokens: Tokens) -> float:
        if self._prices is None:
            return tokens.total
        read, written = self._prices
        return (tokens.prompt * read + tokens.completion * written) / _PRICED
