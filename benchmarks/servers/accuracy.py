"""Whether what is served says what the model says in float32."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from contestants.contest import Unavailable
from perdure.dataset import DataRow
from servers.contest import Ring
from servers.entrants import PERDURE, SERVERS
from servers.swaps import exchange

TEXTS = 32
"""In one request."""


def accuracy(ring: Ring, rows: Sequence[DataRow]) -> dict[str, Any]:
    """Accuracy over HTTP beside that of the same version in float32.

    Args:
        ring: where Perdure is started.
        rows: labelled rows that the version was not fitted on.

    Raises:
        Unavailable: Perdure cannot be asked.
    """
    server = SERVERS[PERDURE]
    float32 = ring.models.answers("version", [row.text for row in rows])
    served: list[str] = []
    with ring.started(server) as one:
        for start in range(0, len(rows), TEXTS):
            texts = [row.text for row in rows[start : start + TEXTS]]
            status, answer = exchange(one.port, "POST", server.path, {"texts": texts})
            if status != 200:
                raise Unavailable(f"{len(texts)} texts were answered {status}: {answer[:200]!r}")
            served += [prediction["label"] for prediction in json.loads(answer)["predictions"]]
    truth = [row.label for row in rows]
    return compared(served, float32, truth)


def compared(served: Sequence[str], float32: Sequence[str], truth: Sequence[str]) -> dict[str, Any]:
    """Shares of right answers, and the loss in points."""
    count = len(truth)
    right = sum(mine == true for mine, true in zip(served, truth, strict=True)) / count
    wanted = sum(mine == true for mine, true in zip(float32, truth, strict=True)) / count
    return {
        "rows": count,
        "served": round(right, 5),
        "float32": round(wanted, 5),
        "loss_points": round(100 * (wanted - right), 3),
        "agreement": round(sum(one == two for one, two in zip(served, float32, strict=True)) / count, 5),
    }
