"""What the servers are asked: single sentences, and texts of mixed length."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from servers.base import Answers

SHORTEST, LONGEST = 10, 400
"""Tokens of a text of mixed length, the two special ones included."""
SPECIAL_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Sentences:
    """n texts, and the labels that each model gives them in float32."""

    texts: tuple[str, ...]
    labels: Mapping[Answers, tuple[str, ...]]


def mixed(texts: Sequence[str], pieces: Callable[[str], int], count: int, *, seed: int = 0) -> tuple[str, ...]:
    """`count` texts made of the words of `texts`, their lengths drawn evenly from `SHORTEST` to `LONGEST` tokens.

    A text is as long as it was drawn, or shorter by less than its next word.

    Args:
        texts: sentences, put one after another in a drawn order.
        pieces: tokens of a word.
        seed: names the draw.
    """
    draw = random.Random(seed)
    lengths: dict[str, int] = {}
    made: list[str] = []
    words: list[str] = []
    while len(made) < count:
        left = draw.randint(SHORTEST, LONGEST) - SPECIAL_TOKENS
        taken: list[str] = []
        while True:
            if not words:
                words = [word for text in draw.sample(list(texts), len(texts)) for word in text.split()][::-1]
            word = words[-1]
            if word not in lengths:
                lengths[word] = pieces(word)
            if lengths[word] > left and taken:
                break
            taken.append(words.pop())
            left -= lengths[word]
        made.append(" ".join(taken))
    return tuple(made)
