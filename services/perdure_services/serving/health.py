"""What probes and Prometheus ask."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from perdure_services.serving.access import GuardedRoute, needs, open_to_all
from perdure_services.serving.merged_metrics import exposed_by_all
from perdure_services.serving.service import Service, parts_of
from perdure_services.serving.siblings import Siblings, siblings_of

router = APIRouter(route_class=GuardedRoute, tags=["health"])

Parts = Annotated[Service, Depends(parts_of)]


@router.get("/healthz")
@open_to_all
async def healthz(service: Parts) -> Response:
    """200 while every thread of the process runs, and none is stuck; 503 when only a restart helps."""
    return JSONResponse({"live": service.live}, status_code=200 if service.live else 503)


@router.get("/startupz")
@open_to_all
async def startupz(service: Parts) -> Response:
    """200 once the first look at the registry is over; 503 while a version is being loaded for the first time."""
    return JSONResponse({"started": service.started}, status_code=200 if service.started else 503)


@router.get("/readyz")
@open_to_all
async def readyz(service: Parts) -> Response:
    """200 when a version is loaded and really answers; 503 before, while it does not, and while the process stops."""
    state = await service.ready()
    return JSONResponse({"ready": state.ready, "reason": state.reason}, status_code=200 if state.ready else 503)


@router.get("/metrics")
@needs("metrics")
async def metrics(
    request: Request, service: Parts, siblings: Annotated[Siblings | None, Depends(siblings_of)]
) -> Response:
    """All series, in Prometheus' text format or OpenMetrics; those of all processes, whoever is asked."""
    accept = request.headers.get("accept", "")
    if siblings is None:
        content, kind = service.metrics.exposed(accept)
    else:
        content, kind = await exposed_by_all(service.metrics.registry, siblings, accept)
    return Response(content, headers={"Content-Type": kind})
