"""Keyed hashes: they name what memory keeps, and decide what it keeps."""

from __future__ import annotations

import hashlib
import math

from perdure.records import normalise

DIGEST_BYTES = 16
SECONDS_PER_DAY = 86_400.0
UNIT_BITS = 52  # (h + ½) / 2**52 is exact in float64, and neither 0 nor 1


def key_from_seed(seed: int) -> bytes:
    """The key of a memory made with `seed`; the same seed gives the same memory."""
    return hashlib.blake2b(f"perdure memory {seed}".encode(), digest_size=32).digest()


def unit(place: bytes) -> float:
    """The place's uniform number u in (0, 1)."""
    return ((int.from_bytes(place[:8], "big") >> (64 - UNIT_BITS)) + 0.5) / 2.0**UNIT_BITS


class Priorities:
    """Names and priorities under one key.

    Forgotten texts and subjects are known by these hashes only; the key stays in the memory's database.
    """

    def __init__(self, key: bytes, half_life_days: float) -> None:
        self._key = key
        self.rate = math.log(2) / (half_life_days * SECONDS_PER_DAY) if half_life_days > 0 else 0.0
        """Decay λ, per second; 0 when age does not matter."""

    def text(self, text: str) -> bytes:
        return self._hash(b"text", normalise(text))

    def place(self, label: str, digest: bytes) -> bytes:
        """Names the pair of `label` and the text with that `digest`; its first bytes are the pair's random number."""
        message = label.encode("utf-8", "surrogatepass") + digest
        return hashlib.blake2b(message, digest_size=DIGEST_BYTES, key=self._key, person=b"place").digest()

    def interaction(self, identifier: str) -> bytes:
        return self._hash(b"interaction", identifier)

    def subject(self, subject: str) -> bytes:
        return self._hash(b"subject", subject)

    def score(self, place: bytes, time: float) -> float:
        """log(−log u) − λt; the smallest scores of a label are kept.

        It orders pairs as −log u · e^(−λt) does, the exponential form of weighted sampling without replacement with
        weight e^(λt) (Efraimidis and Spirakis, 2006), and does not overflow. With λ = 0 the largest u come first.
        `time` (s) is the latest assertion of the pair: as assertions arrive a score can only fall, so a pair that
        belongs to the best k of all has its place for good once its latest assertion is in, whatever the order. The
        earliest one would not do: a late, older assertion would weaken a pair that has already displaced a better one.
        """
        return math.log(-math.log(unit(place))) - self.rate * time

    def _hash(self, kind: bytes, text: str) -> bytes:
        message = text.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(message, digest_size=DIGEST_BYTES, key=self._key, person=kind).digest()
