"""Whether an address may be listened at, given who is asked for what."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from perdure.config import ALLOW_ANONYMOUS, ServingSettings
from perdure.errors import SettingError


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_exposure(host: str, settings: ServingSettings) -> None:
    """Refuses to let other machines in without asking who they are.

    Raises:
        SettingError: `host` is not loopback, there are no keys, and `serving.allow_anonymous` does not hold its words.
    """
    if is_loopback(host) or settings.keys or settings.allow_anonymous == ALLOW_ANONYMOUS:
        return
    raise SettingError(
        f"{host or 'every address'} can be reached from other machines, and serving.keys names no file of API keys: "
        "anyone who reached it could read predictions, give labels, promote versions and erase subjects. Either make "
        "a key (`perdure keys create NAME --scopes predict,feedback --file keys.json`) and set "
        "serving.keys=keys.json; or listen at 127.0.0.1; or, where something in front asks people who they are, set "
        f"serving.allow_anonymous to the words {ALLOW_ANONYMOUS!r}"
    )


def warnings(host: str, settings: ServingSettings) -> Iterator[str]:
    """What a person should know who lets other machines in."""
    if is_loopback(host):
        return
    if not settings.keys:
        yield (
            f"{host} can be reached from other machines, and this API asks nobody who they are, as "
            "serving.allow_anonymous says: keep it behind something that does."
        )
    if not settings.tls_certificate:
        yield (
            f"{host} is listened at without TLS: texts{' and API keys' if settings.keys else ''} travel in the clear. "
            "Set serving.tls_certificate and serving.tls_key, unless TLS ends at a proxy before this process."
        )
