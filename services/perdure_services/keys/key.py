"""A key: `perdure_`, an id by which it is found, `_`, and a secret.

Kept is only the SHA-256 of the whole key. A slow hash (bcrypt, scrypt, Argon2) is for passwords, which people choose
and which can therefore be guessed; a secret here is 32 random bytes, and 2^256 guesses are out of reach at any speed.
So a fast hash is right, and a request pays a microsecond for it rather than a tenth of a second.

The prefix is there for scanners that look for secrets in repositories and logs: `perdure_[0-9a-f]{12}_[0-9a-f]{64}`.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

KeyScope = Literal["predict", "feedback", "explain", "admin", "metrics"]
"""What a key may do. None holds another: `admin` alone may not predict. `explain` shows texts that people have sent; a
request that asks for both, a prediction and its explanation, needs both."""

SCOPES: tuple[KeyScope, ...] = get_args(KeyScope)

ID_BYTES = 6
SECRET_BYTES = 32

KEY = re.compile(rb"perdure_[0-9a-f]{12}_[0-9a-f]{64}")

_SECRETS = re.compile(r"(perdure_[0-9a-fA-F]{12}_)[0-9a-zA-Z]+")


class Key(BaseModel):
    """What is kept of a key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Whose key it is; stands in the log of promotions and in refusals."""
    scopes: Annotated[tuple[KeyScope, ...], Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the whole key, as hexadecimal digits."""
    created: AwareDatetime
    expires: AwareDatetime | None = None
    """The key is refused from then on; None for never."""
    rate: Annotated[float, Field(gt=0)] | None = None
    """Requests per second that each server answers, all its processes together; None for as many as it can."""
    burst: Annotated[int, Field(ge=1)] | None = None
    """Requests that may come at once after a pause; None for one second's, and at least one."""

    @model_validator(mode="after")
    def _burst_needs_a_rate(self) -> Key:
        if self.burst is not None and self.rate is None:
            raise ValueError("a burst needs a rate")
        return self


@dataclass(frozen=True, slots=True)
class Issued:
    """A new key: what is kept, and what its owner gets."""

    key: Key
    text: str
    """The key itself. It is not kept, and cannot be had again."""

    def __repr__(self) -> str:
        return f"Issued(key={self.key!r}, text=…)"


def digest(text: bytes) -> bytes:
    """The 32 bytes of SHA-256 that are kept of the key `text`."""
    return hashlib.sha256(text).digest()


def issue(
    name: str,
    scopes: tuple[KeyScope, ...],
    *,
    created: datetime,
    expires: datetime | None = None,
    rate: float | None = None,
    burst: int | None = None,
) -> Issued:
    """A new key, from the system's source of randomness.

    Raises:
        pydantic.ValidationError: a name, scope, rate or burst that a key cannot have.
    """
    id = secrets.token_hex(ID_BYTES)
    text = f"perdure_{id}_{secrets.token_hex(SECRET_BYTES)}"
    key = Key(
        id=id,
        name=name,
        scopes=scopes,
        sha256=digest(text.encode("ascii")).hex(),
        created=created,
        expires=expires,
        rate=rate,
        burst=burst,
    )
    return Issued(key, text)


def redacted(text: str) -> str:
    """`text` without the secrets of keys that stand in it; their ids stay."""
    return _SECRETS.sub(r"\1…", text)
