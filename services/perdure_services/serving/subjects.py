"""Forgetting a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Path
from starlette.convertors import Convertor, register_url_convertor

from perdure_services.serving.access import needs
from perdure_services.serving.body import CheckedRoute
from perdure_services.serving.schemas import ErasureAnswer, Subject
from perdure_services.serving.service import Removed, Service, parts_of


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
async def forget(subject: Annotated[Subject, Path()], service: Parts) -> ErasureAnswer:
    """Forget everything recorded of a subject until now."""
    removed = await service.forget(subject)
    return ErasureAnswer(
        subject=subject, removed=removed.stream + (removed.spool or 0), message=" ".join(_sentences(removed))
    )


def _sentences(removed: Removed) -> Iterator[str]:
    if removed.spool is not None:
        yield f"Now: {removed.spool} records that waited in this process's spool are removed, and will not be sent."
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
        yield "Other serving processes have spools of their own: ask each of them, or wait until they have sent."
