"""Prompt-lookup decoding: what followed the same words before is read ahead, in one pass with the next token.

Reading a few tokens costs about as much as reading one where the memory is the limit, so every guess that
comes true is a token for nothing. A guess is what came after the latest earlier place where the last
`LONGEST` tokens (else fewer, down to two) stood (Saxena, 2023; the check is that of Leviathan et al., 2023).
The loop draws each token from the logits after exactly the tokens before it, with the number of (seed,
position): the text is the one without guesses, greedy or sampled, up to the rounding of a pass over several
tokens. No second model. Where guesses rarely come true, no more are made."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stablelm.inference.cpu_runner import runner_for
from stablelm.model import StableLM

LONGEST, SHORTEST = 4, 2
"""Tokens that must be equal for a guess."""
FIRST, MOST = 4, 15
"""Tokens guessed at first and at most; with the one drawn, 16 rows stay in the kernels for few rows."""
GIVE_UP = 0.25
"""Guesses end when a pass is expected to save fewer tokens than this."""


class LookupRunner:
    """A `Runner` for one text that answers from logits it has read ahead, where the guess was right."""

    def __init__(self, model: StableLM, cache: str | None = None) -> None:
        self.under = runner_for(model, cache)
        """What reads."""
        self.text: list[int] = []
        self.passes = 0
        """Of the network, after the prompt."""
        self.saved = 1.0
        """Tokens that a guess saved, a moving mean."""
        self._size, self._capacity = FIRST, 0
        self._places: dict[tuple[int, ...], int] = {}
        self._guess: list[int] = []
        self._ahead: list[Tensor] = []
        self._right = 0

    def prefill(self, ids: Tensor, mask: Tensor | None, capacity: int) -> Tensor:
        """See `Runner`; one row, without padding."""
        assert ids.shape[0] == 1 and mask is None
        self._capacity = capacity
        for token in ids[0].tolist():
            self._append(token)
        return self.under.prefill(ids, mask, capacity)

    def step(self, ids: Tensor) -> Tensor:
        """See `Runner`."""
        self._append(int(ids))
        if self._right < len(self._guess) and self._guess[self._right] == self.text[-1]:
            self._right += 1
            return self._ahead[self._right]
        if self._guess:
            self._learn()
        self._guess = self._next_guess()
        self.passes += 1
        if not self._guess:
            return self.under.step(ids)
        guess = torch.tensor([self._guess], dtype=ids.dtype, device=ids.device)
        self._ahead = list(self.under.read(torch.cat((ids[:, None], guess), dim=1)).unbind(1))
        return self._ahead[0]

    def read(self, ids: Tensor) -> Tensor:
        """See `Runner`; what is read so is not guessed from."""
        return self.under.read(ids)

    def trim(self, length: int) -> None:
        """See `Runner`."""
        del self.text[length:]
        self._guess, self._ahead, self._right = [], [], 0
        self._places = {words: place for words, place in self._places.items() if place < length}
        self.under.trim(length)

    def reorder(self, rows: Sequence[int]) -> None:
        """See `Runner`; one row stays one row."""
        assert list(rows) == [0]

    def _append(self, token: int) -> None:
        """The words before `token` have a continuation now."""
        self.text.append(token)
        place = len(self.text) - 1
        for length in range(SHORTEST, min(LONGEST, place) + 1):
            self._places[tuple(self.text[place - length : place])] = place

    def _learn(self) -> None:
        """Ends a guess: forgets the wrong part of what was read, and adapts."""
        self.under.trim(len(self.text) - 1)
        whole = self._right == len(self._guess)
        self._size = min(MOST, 2 * self._size) if whole else max(SHORTEST, self._right + 1)
        self.saved += 0.1 * (self._right - self.saved)
        self._ahead, self._right = [], 0

    def _next_guess(self) -> list[int]:
        room = min(self._size, self._capacity - len(self.text))
        if self.saved < GIVE_UP or room < 1:
            return []
        for length in range(min(LONGEST, len(self.text)), SHORTEST - 1, -1):
            if place := self._places.get(tuple(self.text[-length:])):
                return self.text[place : place + room]
        return []
