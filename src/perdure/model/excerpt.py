"""The beginning and the end of a long text, which are all that the encoder sees of it.

To make tokens of a megabyte takes most of a second, and nearly all of them are thrown away. What stands at both ends
can be tokenised alone where the tokens on one side of a blank do not depend on what is on the other. With BERT's
normalizer, its pre-tokenizer and WordPiece that is so: the normalizer changes characters one by one, or with the
marks that follow them, and a blank neither joins with its neighbours nor goes away; the pre-tokenizer splits at every
blank; WordPiece sees one word at a time; and no added token is searched for across a blank if none has one within. So
for a text u + v, where v begins with a blank, the tokens are those of u and then those of v, and the first and last
ones are known once either part has enough. Others (byte-level BPE, SentencePiece) take blanks into their tokens: with
those, texts are tokenised whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from perdure.model.tokens import cut_middle

BLANKS = " \t\n\r"
"""Where a text may be split; BERT's normalizer makes a space of each."""

CHARS = 8
"""Characters that are looked at in either part for each token that a text keeps: twice what a long word has."""

Encode = Callable[[list[str]], Sequence[list[int]]]


class Excerpts:
    """Token ids of texts, special tokens included; a long text keeps its beginning and its end.

    Args:
        encode: makes all token ids of whole texts.
        tokenizer: what it makes them with; None where that is not known.
        limit: most tokens that a text keeps.
    """

    def __init__(self, encode: Encode, tokenizer: Tokenizer | None, limit: int) -> None:
        self._encode = encode
        self._limit = limit
        self._special = 0
        self._chars: int | None = None
        if tokenizer is not None and splits_at_blanks(tokenizer):
            self._special = tokenizer.num_special_tokens_to_add(False)
            self._chars = CHARS * limit

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text: exactly those that `cut_middle` leaves of the whole text's."""
        parts = [self._parts(text) for text in texts]
        encoded = iter(self._encode([part for own in parts for part in own]))
        return [self._kept(text, [next(encoded) for _ in own]) for text, own in zip(texts, parts, strict=True)]

    def _parts(self, text: str) -> tuple[str, ...]:
        if self._chars is None or len(text) <= 2 * self._chars:
            return (text,)
        end = max(text.rfind(blank, 0, self._chars) for blank in BLANKS)
        found = (text.find(blank, len(text) - self._chars) for blank in BLANKS)
        start = min((place for place in found if place >= 0), default=-1)
        return (text,) if end < 0 or start < 0 else (text[:end], text[start:])

    def _kept(self, text: str, ids: list[list[int]]) -> list[int]:
        if len(ids) == 1:
            return cut_middle(ids[0], self._limit)
        first, last = ids
        head = self._limit // 2
        tail = self._limit - head
        # Special tokens count for nothing: those behind the first part, and before the last, are not the whole text's.
        if len(first) - self._special < head or len(last) - self._special < tail:
            return cut_middle(self._encode([text])[0], self._limit)
        return first[:head] + last[len(last) - tail :]


def splits_at_blanks(tokenizer: Tokenizer) -> bool:
    """Whether what `tokenizer` makes of the text on one side of a blank never depends on the other side."""
    return (
        isinstance(tokenizer.normalizer, normalizers.BertNormalizer)
        and isinstance(tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and isinstance(tokenizer.model, models.WordPiece)
        and isinstance(
            tokenizer.post_processor,
            processors.BertProcessing | processors.RobertaProcessing | processors.TemplateProcessing,
        )
        and not any(
            token.normalized or any(character.isspace() for character in token.content)
            for token in tokenizer.get_added_tokens_decoder().values()
        )
    )
