"""What a long text keeps."""

from __future__ import annotations


def cut_middle(ids: list[int], limit: int) -> list[int]:
    """At most `limit` token ids: the first and the last ones."""
    if len(ids) <= limit:
        return ids
    head = limit // 2
    return ids[:head] + ids[len(ids) - (limit - head) :]
