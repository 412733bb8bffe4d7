"""Predictions and what people say of them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from perdure_services.serving.access import also_needs, needs
from perdure_services.serving.direct import DirectRoute
from perdure_services.serving.explanations import explanations_of
from perdure_services.serving.remembered import Near
from perdure_services.serving.schemas import (
    Explanation,
    FeedbackAnswer,
    FeedbackRequest,
    NeighbourAnswer,
    PredictionAnswer,
    PredictionsAnswer,
    PredictRequest,
    Ranked,
)
from perdure_services.serving.service import Answered, service_of

router = APIRouter(prefix="/v1", route_class=DirectRoute, tags=["predictions"])


@router.post("/predict", response_model_exclude_none=True)
@needs("predict")
async def predict(
    asked: PredictRequest,
    request: Request,
    explain: Annotated[Explanation | None, Query(description="As the field of this name.")] = None,
) -> PredictionAnswer | PredictionsAnswer:
    """Classify one text, or several by the same version."""
    texts = (asked.text,) if asked.text is not None else asked.texts or ()
    near: tuple[tuple[Near, ...] | None, ...] = (None,) * len(texts)
    if explain or asked.explain:
        also_needs(request, "explain")
        # Before anything is recorded: a request is answered as a whole, or not at all.
        near = await explanations_of(request).near(texts, asked.neighbours)
    answered = await service_of(request).predict(
        texts, top=asked.top_k or 1, subject=asked.subject, labels=asked.labels, abstain=asked.abstain
    )
    predictions = tuple(
        _shown(one, around, ranked=asked.top_k is not None) for one, around in zip(answered, near, strict=True)
    )
    if asked.text is not None:
        return predictions[0]
    return PredictionsAnswer(predictions=predictions, version=answered[0].version)


@router.post("/feedback", status_code=202)
@needs("feedback")
async def feedback(said: FeedbackRequest, request: Request) -> FeedbackAnswer:
    """Say what the label of a prediction really is. Ids not known yet are kept until their prediction comes."""
    recorded = await service_of(request).learn([(item.id, item.label, item.source) for item in said.items()])
    return FeedbackAnswer(recorded=recorded)


def _shown(one: Answered, near: tuple[Near, ...] | None, *, ranked: bool) -> PredictionAnswer:
    top = tuple(Ranked(label=label, confidence=confidence) for label, confidence in one.prediction.top)
    return PredictionAnswer(
        id=one.id,
        label=one.prediction.label,
        confidence=one.prediction.confidence,
        abstained=one.abstained,
        version=one.version,
        recorded=one.recorded,
        top=top if ranked else None,
        neighbours=None
        if near is None
        else tuple(NeighbourAnswer(text=one.text, label=one.label, similarity=one.similarity) for one in near),
    )
