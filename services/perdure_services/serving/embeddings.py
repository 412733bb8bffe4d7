"""Embeddings on demand."""

from __future__ import annotations

import base64
from typing import Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel

from perdure.records import Float
from perdure_services.serving.access import needs
from perdure_services.serving.direct import DirectRoute
from perdure_services.serving.explanations import explanations_of
from perdure_services.serving.schemas import StrictRequest, Texts

router = APIRouter(prefix="/v1", route_class=DirectRoute, tags=["predictions"])

Encoding = Literal["float", "base64"]


class EmbeddingsRequest(StrictRequest):
    """Texts to embed."""

    texts: Texts
    encoding: Encoding = "float"
    """`float`: lists of numbers. `base64`: of the same as float32, little-endian, which is a third as long."""


class EmbeddingsAnswer(BaseModel):
    """One vector of length 1 for each text, in their order; the dot product of two is their cosine similarity."""

    version: str
    """The version that computed them."""
    space: str
    """Vectors of the same space can be compared, whichever version computed them."""
    dimensions: int
    encoding: Encoding
    embeddings: tuple[tuple[float, ...], ...] | tuple[str, ...]


@router.post("/embeddings")
@needs("predict")
async def embeddings(asked: EmbeddingsRequest, request: Request) -> EmbeddingsAnswer:
    """Where texts lie in the space that the version that serves compares texts in. Nothing is recorded."""
    embedded = await explanations_of(request).embedded(asked.texts)
    return EmbeddingsAnswer(
        version=embedded.version,
        space=embedded.space,
        dimensions=embedded.vectors.shape[1],
        encoding=asked.encoding,
        embeddings=_encoded(embedded.vectors, asked.encoding),
    )


def _encoded(vectors: Float, encoding: Encoding) -> tuple[tuple[float, ...], ...] | tuple[str, ...]:
    if encoding == "base64":
        return tuple(base64.b64encode(row.astype("<f4").tobytes()).decode("ascii") for row in np.asarray(vectors))
    return tuple(tuple(row) for row in vectors.tolist())
