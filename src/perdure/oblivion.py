"""Erasures outlive the memory that carried them out: the registry keeps them too, and both are brought together."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import inf

from perdure.memory import Memory
from perdure.registry import Registry

logger = logging.getLogger(__name__)


def reconcile(memory: Memory, registry: Registry) -> int:
    """Tells the registry of the erasures that memory knows, and carries out in memory those that only the registry has.

    A memory put back from an old copy, by whatever means, thereby forgets again whom it had forgotten since. What lies
    before the memory's horizon is not looked at: `perdure restore` is for older copies.

    Returns:
        the number of erasures that were carried out.

    Raises:
        RegistryError: the registry cannot be read or written.
    """
    here, there = memory.erasures(), registry.erasures()
    registry.add_erasures({alias: until for alias, until in here.items() if there.get(alias, -inf) < until})
    horizon = memory.horizon
    return carry_out(memory, {alias: until for alias, until in there.items() if until >= horizon})


def carry_out(memory: Memory, erasures: Mapping[str, float]) -> int:
    """Carries out those of `erasures`, by alias and time (s), that memory does not know of; returns their number."""
    here = memory.erasures()
    late = {alias: until for alias, until in erasures.items() if here.get(alias, -inf) < until}
    for alias, until in late.items():
        memory.forget_alias(alias, until)
    if late:
        logger.info("%d erasures that this memory had not heard of were carried out", len(late))
    return len(late)
