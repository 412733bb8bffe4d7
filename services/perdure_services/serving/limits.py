"""How much one request may hold."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.config import ServingSettings
from perdure_services.serving.refusal import Refusal


def check_texts(texts: Sequence[str], settings: ServingSettings) -> None:
    """Refuses more, or longer, than what is allowed.

    Raises:
        Refusal: 413 a text is too long, 422 too many texts.
    """
    if len(texts) > settings.max_texts:
        raise too_many(settings.max_texts, len(texts))
    most = settings.max_text_bytes
    for place, text in enumerate(texts):
        # A character has one to four bytes: few texts need to be encoded to know.
        if 4 * len(text) > most and (len(text) > most or len(text.encode("utf-8", "surrogatepass")) > most):
            raise Refusal(
                413,
                f"text {place + 1} of {len(texts)} has more than the {most} bytes allowed",
                value=text,
                do="send the part that matters",
            )


def too_many(most: int, texts: int) -> Refusal:
    """The answer to a request with so many texts, or more."""
    return Refusal(422, f"{texts} texts in one request", value=texts, do=f"send at most {most}")
