"""Versions, promotions and rollbacks over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool

from perdure.errors import PerdureError, RegistryError, StalePromotion, VersionNotFound
from perdure.lineage import knows_forgotten
from perdure.registry import Card, Promotion, Registry
from perdure_services.serving.access import caller_of, needs
from perdure_services.serving.body import CheckedRoute
from perdure_services.serving.refusal import Refusal
from perdure_services.serving.schemas import (
    PromotedAnswer,
    PromotionAnswer,
    ReasonRequest,
    ServingAnswer,
    VersionAnswer,
    VersionsAnswer,
)
from perdure_services.serving.service import Service, parts_of

SHOWN = 100
"""Newest promotions and versions that are listed."""

BY = "api"
"""Who promotes, in the promotion log; the name of the API key follows, where keys are asked for."""

router = APIRouter(prefix="/v1", route_class=CheckedRoute, tags=["versions"])

Parts = Annotated[Service, Depends(parts_of)]


def promoter(request: Request) -> str:
    """Who asks, for the promotion log."""
    name = caller_of(request)
    return BY if name is None else f"{BY}:{name}"


Caller = Annotated[str, Depends(promoter)]


@router.get("/versions")
@needs("admin")
async def versions(service: Parts) -> VersionsAnswer:
    """What is served, what should be, and everything that could be."""
    return await run_in_threadpool(_overview, service)


@router.post("/versions/{version:path}/promote")
@needs("admin")
async def promote(version: str, service: Parts, by: Caller, asked: ReasonRequest | None = None) -> PromotedAnswer:
    """Serve this version from now on."""
    reason = (asked and asked.reason) or "promoted by hand"
    try:
        promotion = await run_in_threadpool(service.registry.promote, version, reason=reason, by=by)
    except VersionNotFound as error:
        raise Refusal(404, str(error), value=version, do="GET /v1/versions lists what there is") from error
    return await run_in_threadpool(_promoted, promotion, service)


@router.post("/rollback")
@needs("admin")
async def rollback(service: Parts, by: Caller, asked: ReasonRequest | None = None) -> PromotedAnswer:
    """Serve what was served before the champion."""
    reason = (asked and asked.reason) or "rolled back by hand"
    promotion = await run_in_threadpool(_roll_back, service.registry, reason, by)
    return await run_in_threadpool(_promoted, promotion, service)


def _roll_back(registry: Registry, reason: str, by: str) -> Promotion:
    try:
        return registry.rollback(by=by, reason=reason)
    except StalePromotion:
        raise
    except RegistryError as error:
        # A registry that can still be read has refused, not failed: there is nothing to roll back to.
        champion = registry.champion()
        value = champion.version if champion else None
        raise Refusal(409, str(error), value=value, do="promote a version by name; see GET /v1/versions") from error


def _promoted(promotion: Promotion, service: Service) -> PromotedAnswer:
    service.champions.wake()
    knows = knows_forgotten(promotion.version, service.registry)
    current = service.champions.current
    return PromotedAnswer(
        promotion=_shown(promotion), serving=current.version if current else None, knows_forgotten=knows
    )


def _overview(service: Service) -> VersionsAnswer:
    registry = service.registry
    champion = registry.champion()
    current = service.champions.current
    serving = None
    if current is not None:
        serving = ServingAnswer(
            version=current.version,
            promotion=current.promotion.number,
            since=current.since,
            labels=len(current.classifier.labels),
        )
    return VersionsAnswer(
        champion=_shown(champion) if champion else None,
        serving=serving,
        problem=service.champions.problem,
        promotions=tuple(_shown(promotion) for promotion in registry.promotions(limit=SHOWN)),
        versions=tuple(_version(registry, name) for name in registry.versions()[-SHOWN:]),
    )


def _version(registry: Registry, name: str) -> VersionAnswer:
    try:
        card = registry.card(name)
    except PerdureError as error:
        return VersionAnswer(name=name, problem=str(error))
    return VersionAnswer(
        name=card.name,
        parent=card.parent,
        kind=card.kind,
        created=card.created,
        labels=len(card.labels),
        metrics=dict(card.metrics),
        verdict=_sentence(card),
    )


def _sentence(card: Card) -> str | None:
    if card.verdict is None:
        return None
    return str(card.verdict.get("sentence") or card.verdict.get("outcome") or "")


def _shown(promotion: Promotion) -> PromotionAnswer:
    return PromotionAnswer(
        number=promotion.number,
        version=promotion.version,
        kind=promotion.kind,
        at=promotion.at,
        by=promotion.by,
        reason=promotion.reason,
    )
