"""TLS: the certificate that this process shows, checked before anything is answered."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NoReturn

from perdure.config import ServingSettings
from perdure.errors import SettingError

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2, those with forward secrecy and authenticated encryption. TLS 1.3 has no others; older ones are off."""


def tls_context(settings: ServingSettings) -> ssl.SSLContext | None:
    """What connections are encrypted with; None where no certificate is set.

    Raises:
        SettingError: a file is missing, cannot be read, or does not fit the others.
    """
    if not settings.tls_certificate:
        for name in ("tls_key", "tls_key_password_file"):
            if getattr(settings, name):
                raise SettingError(f"serving.{name} is set, but no certificate: set serving.tls_certificate too")
        return None
    certificate = _read("tls_certificate", settings.tls_certificate)
    if settings.tls_key:
        _read("tls_key", settings.tls_key)
    password = None
    if settings.tls_key_password_file:
        password = _read("tls_key_password_file", settings.tls_key_password_file).rstrip(b"\r\n")
    if b"-----BEGIN CERTIFICATE-----" not in certificate:
        raise SettingError(
            f"serving.tls_certificate {settings.tls_certificate} holds no certificate: give a PEM file with the "
            "certificate first and those that vouch for it after"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    key = settings.tls_key or settings.tls_certificate
    # Given always: without it OpenSSL would ask the terminal, and wait.
    asked = password if password is not None else lambda: _no_password(key)
    try:
        context.load_cert_chain(settings.tls_certificate, key, asked)
    except ssl.SSLError as error:
        _refuse(settings, key, error)
    except ValueError as error:
        raise SettingError(
            f"the file {settings.tls_key_password_file} holds no password of a key ({error}): name the right one in "
            "serving.tls_key_password_file"
        ) from error
    return context


def _read(name: str, file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise SettingError(
            f"cannot read serving.{name} {file} ({error.strerror or error}): name a file that this process may read"
        ) from error


def _no_password(key: str) -> NoReturn:
    raise SettingError(
        f"the key {key} is encrypted: name the file with its password in serving.tls_key_password_file, or give a key "
        "that is not"
    )


def _refuse(settings: ServingSettings, key: str, error: ssl.SSLError) -> NoReturn:
    if error.reason == "KEY_VALUES_MISMATCH":
        raise SettingError(
            f"the key {key} does not belong to the certificate {settings.tls_certificate}: give the key that the "
            "certificate was made with in serving.tls_key"
        ) from error
    if settings.tls_key_password_file and error.reason != "NO_START_LINE":
        raise SettingError(
            f"the key {key} cannot be read with the password in {settings.tls_key_password_file}: check both"
        ) from error
    raise SettingError(
        f"the certificate {settings.tls_certificate} and the key {key} cannot be used ({error.reason or error}): give "
        "both as PEM in serving.tls_certificate and serving.tls_key"
    ) from error
