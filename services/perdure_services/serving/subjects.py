"""Forgetting a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Path
from starlette.convertors import Convertor, register_url_convertor

from perdure_services.serving.access import needs
from perdure_services.serving.body import CheckedRoute
from perdure_services.serving.refusal import Refusal
from perdure_services.serving.schemas import ErasureAnswer, Subject
from perdure_services.serving.service import ERASURE_SECONDS, Removed, Service, parts_of
from perdure_services.serving.siblings import Siblings, Told, siblings_of

QUESTION = "forget"

SIBLING_SECONDS = 3 * ERASURE_SECONDS
"""How long another process may take to forget: to write what waits, and to rewrite its spool."""


class AnyConvertor(Convertor[str]):
    """What is left of the path, whatever it holds: Starlette's own `path` stops at a line's end, which a subject that
    was recorded may contain, and then could not be forgotten by."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any", AnyConvertor())

router = APIRouter(prefix="/v1", route_class=CheckedRoute, tags=["subjects"])

Parts = Annotated[Service, Depends(parts_of)]


@router.delete("/subjects/{subject:any}", status_code=202)
@needs("admin")
async def forget(
    subject: Annotated[Subject, Path()], service: Parts, siblings: Annotated[Siblings | None, Depends(siblings_of)]
) -> ErasureAnswer:
    """Forget everything recorded of a subject until now."""
    removed = await service.forget(subject)
    if siblings is not None:
        removed = _together(removed, await siblings.ask_all(QUESTION, [subject, removed.until], SIBLING_SECONDS))
    return ErasureAnswer(
        subject=subject, removed=removed.stream + (removed.spool or 0), message=" ".join(_sentences(removed))
    )


async def forgotten_here(service: Service, asked: tuple[str, float]) -> tuple[int, int | None]:
    """What a process answers when another one has been asked to forget: entries that it has removed."""
    subject, until = asked
    removed = await service.forget_until(subject, until)
    return removed.stream, removed.spool


def _together(removed: Removed, told: Sequence[Told]) -> Removed:
    """What all processes have removed.

    Raises:
        Refusal: 503 one of them has not.
    """
    for one in told:
        if one.problem is not None:
            raise Refusal(
                503,
                f"the request to forget is recorded, but process {one.place} of this server has not removed what it "
                f"has of the subject: {one.problem}",
                do="send the request again: what is forgotten already does not matter",
                headers={"Retry-After": "1"},
            )
        stream, spool = one.answer
        removed = replace(
            removed,
            stream=removed.stream + stream,
            spool=None if removed.spool is None else removed.spool + (spool or 0),
        )
    return removed


def _sentences(removed: Removed) -> Iterator[str]:
    if removed.spool is not None:
        yield f"Now: {removed.spool} records that waited in this server's spool are removed, and will not be sent."
    yield (
        f"Now: {removed.stream} recorded entries are removed from the stream."
        if removed.stream
        else "Now: nothing was removed from the stream; where it cannot remove entries, they go by its own retention."
    )
    yield (
        "With the next turn: memory, labels that wait, quarantine and the head's statistics forget the subject. "
        "Not reached: weights already trained, until the next update, and old reports, until their retention ends."
    )
    if removed.spool is not None:
        yield "Other servers have spools of their own: ask each of them, or wait until they have sent."
