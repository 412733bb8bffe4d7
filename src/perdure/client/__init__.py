"""A typed client of the API, blocking (`Client`) and for asyncio (`AsyncClient`).

    with Client("http://127.0.0.1:8000") as api:
        prediction = api.predict("wheres my stuff")
        api.feedback(prediction.id, "track_order")

Requests are sent again where that is safe, within one deadline for the whole call; each method says when and why.
"""

from perdure.client.answers import (
    Embeddings,
    Erasure,
    Neighbour,
    Prediction,
    Promoted,
    Promotion,
    Ranked,
    Readiness,
    Receipt,
    Serving,
    Version,
    Versions,
)
from perdure.client.async_client import AsyncClient
from perdure.client.client import Client
from perdure.client.operation import Said

__all__ = [
    "AsyncClient",
    "Client",
    "Embeddings",
    "Erasure",
    "Neighbour",
    "Prediction",
    "Promoted",
    "Promotion",
    "Ranked",
    "Readiness",
    "Receipt",
    "Said",
    "Serving",
    "Version",
    "Versions",
]
