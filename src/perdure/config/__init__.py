"""One tree of settings; each default stands once, in the files beside this one.

Settings come, later ones over earlier ones, from those defaults, a YAML file (`--config perdure.yaml`), the
environment (`PERDURE_SECTION__NAME`) and the command line (`--set section.name=value`). A setting that does not exist
is refused with the nearest one that does.
"""

from perdure.config.events import IngestSettings, SpoolSettings, StreamSettings
from perdure.config.keeping import MemorySettings, RegistrySettings
from perdure.config.learning import GateSettings, JudgeSettings, LoraSettings, ModelSettings, TrainerSettings
from perdure.config.loading import ENV_PREFIX, load_settings, names_setting
from perdure.config.section import Count, Device, Positive, Section, Share
from perdure.config.serving import ALLOW_ANONYMOUS, MAX_TEXTS, AllowAnonymous, LogSettings, ServingSettings
from perdure.config.settings import Settings, describe_settings, setting_names

__all__ = [
    "ALLOW_ANONYMOUS",
    "ENV_PREFIX",
    "MAX_TEXTS",
    "AllowAnonymous",
    "Count",
    "Device",
    "GateSettings",
    "IngestSettings",
    "JudgeSettings",
    "LogSettings",
    "LoraSettings",
    "MemorySettings",
    "ModelSettings",
    "Positive",
    "RegistrySettings",
    "Section",
    "ServingSettings",
    "Settings",
    "Share",
    "SpoolSettings",
    "StreamSettings",
    "TrainerSettings",
    "describe_settings",
    "load_settings",
    "names_setting",
    "setting_names",
]
