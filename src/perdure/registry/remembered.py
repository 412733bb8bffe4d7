"""What was served last, remembered beside the local copies: who starts while the store is away goes on with it."""

from __future__ import annotations

import json
import logging
import os
import uuid
from pathlib import Path

from pydantic import ValidationError

from perdure.errors import RegistryError
from perdure.registry.cache import INCOMING
from perdure.registry.promotions import Promotion

FILE = "champion.json"

log = logging.getLogger(__name__)


class Remembered:
    """The promotion that was served last, in a folder of local copies.

    Args:
        folder: of the copies, as given to `Registry.fetch`.
        registry: name of the registry; what was remembered of another one is none.
    """

    def __init__(self, folder: Path, registry: str) -> None:
        self._file = folder / FILE
        self._registry = registry

    def write(self, promotion: Promotion) -> None:
        """Remembers `promotion` in place of the one before.

        Raises:
            RegistryError: the folder cannot be written.
        """
        content = {"registry": self._registry, "promotion": promotion.model_dump(mode="json", by_alias=True)}
        part = self._file.with_name(f"{INCOMING}{uuid.uuid4().hex}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.write_text(json.dumps(content), encoding="utf-8")
                # In one step: several processes of a server share the folder.
                os.replace(part, self._file)  # noqa: PTH105
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise RegistryError(
                f"{self._file} cannot be written: {error.strerror or error}. A start without the registry would not "
                "know what to serve: free some space there, and make it writable for this user"
            ) from error

    def read(self) -> Promotion | None:
        """The promotion that was remembered; None when there is none that can be read, or it is of another registry."""
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or found.get("registry") != self._registry:
                return None
            return Promotion.model_validate(found.get("promotion"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ValidationError) as error:
            log.warning("%s cannot be read, so nothing is remembered: %s", self._file, error)
            return None
