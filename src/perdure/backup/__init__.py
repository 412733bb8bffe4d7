"""Copies of memory, stream and registry that belong together, and the way back from one."""

from perdure.backup.backup import back_up
from perdure.backup.manifest import PARTS, Manifest, Part
from perdure.backup.restore import Restored, restore

__all__ = ["PARTS", "Manifest", "Part", "Restored", "back_up", "restore"]
