"""Immutable versions and the log of promotions, on any object store."""

from perdure.registry.card import Card, EncoderCard
from perdure.registry.lease import Fence, Lease
from perdure.registry.promotions import Promotion
from perdure.registry.registry import JUDGE, Registry
from perdure.registry.remembered import Remembered
from perdure.registry.shards import Shards, Snapshot

__all__ = [
    "JUDGE",
    "Card",
    "EncoderCard",
    "Fence",
    "Lease",
    "Promotion",
    "Registry",
    "Remembered",
    "Shards",
    "Snapshot",
]
