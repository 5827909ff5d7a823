"""Stop strings, matched on text: they may begin inside one token and end inside another, and are never shown.

Generation stops at the first character that completes a stop string, however the text was cut into pieces;
what is shown ends where that string begins (of several that end together, the longest). Text that may be the
beginning of one is held back until it is not. Rejected: matching token ids (a newline may come as the token
of two newlines)."""

from collections.abc import Sequence

from stablelm.config import InputError


class StopMatcher:
    """`push` text as it comes; `flush` when it ends without a stop."""

    def __init__(self, stops: str | Sequence[str] = ()) -> None:
        stops = [stops] if isinstance(stops, str) else list(stops)
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise InputError(f"stop must be strings of at least one character, not {stop!r}.")
        self._stops = stops
        self._held = ""

    def found_in(self, text: str) -> bool:
        """Whether a whole text holds a stop string."""
        return any(stop in text for stop in self._stops)

    def push(self, text: str) -> tuple[str, bool]:
        """(what may be shown now, whether a stop string is complete)."""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        keep = len(text) - self._beginning(text)
        self._held = text[keep:]
        return text[:keep], False

    def flush(self) -> str:
        """What was held back for nothing."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        longest = min(len(text), max(map(len, self._stops), default=1) - 1)
        return next(
            (n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self._stops)), 0
        )
