"""Immutable versions and the log of promotions, on any object store."""

from perdure.registry.card import Card
from perdure.registry.promotions import Promotion
from perdure.registry.registry import Registry

__all__ = ["Card", "Promotion", "Registry"]
