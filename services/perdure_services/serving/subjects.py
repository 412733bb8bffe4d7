"""Forgetting a person."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path

from perdure_services.serving.body import CheckedRoute
from perdure_services.serving.schemas import ErasureAnswer, Subject
from perdure_services.serving.service import Service, service_of

router = APIRouter(prefix="/v1", route_class=CheckedRoute, tags=["subjects"])

Parts = Annotated[Service, Depends(service_of)]


@router.delete("/subjects/{subject:path}", status_code=202)
async def forget(subject: Annotated[Subject, Path()], service: Parts) -> ErasureAnswer:
    """Forget everything recorded of a subject until now."""
    removed = await service.forget(subject)
    return ErasureAnswer(subject=subject, removed=removed, message=_message(removed))


def _message(removed: int) -> str:
    now = (
        f"Now: {removed} recorded entries are removed from the stream."
        if removed
        else "Now: nothing was removed from the stream; where it cannot remove entries, they go by its own retention."
    )
    return (
        f"{now} With the next turn: memory, labels that wait, quarantine and the head's statistics forget the subject. "
        "Not reached: weights already trained, until the next update, and old reports, until their retention ends."
    )
