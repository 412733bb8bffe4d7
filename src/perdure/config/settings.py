"""The tree of settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args

from pydantic import Field, ValidationError

from perdure.config.events import IngestSettings, SpoolSettings, StreamSettings
from perdure.config.keeping import MemorySettings, RegistrySettings
from perdure.config.learning import GateSettings, JudgeSettings, LoraSettings, ModelSettings, TrainerSettings
from perdure.config.section import Device, Section
from perdure.config.serving import LogSettings, ServingSettings
from perdure.config.tree import leaves, put
from perdure.errors import SettingError


class Settings(Section):
    """All settings of Perdure."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Everything random follows from it."""
    device: Device = "auto"
    """Where LoRA trains and memory is searched; `auto` takes a GPU where PyTorch, or FAISS, finds one. What was made on
    one is served anywhere."""
    stream: StreamSettings = StreamSettings()
    spool: SpoolSettings = SpoolSettings()
    ingest: IngestSettings = IngestSettings()
    registry: RegistrySettings = RegistrySettings()
    memory: MemorySettings = MemorySettings()
    model: ModelSettings = ModelSettings()
    gate: GateSettings = GateSettings()
    lora: LoraSettings = LoraSettings()
    judge: JudgeSettings = JudgeSettings()
    serving: ServingSettings = ServingSettings()
    trainer: TrainerSettings = TrainerSettings()
    log: LogSettings = LogSettings()

    def with_values(self, values: Mapping[str, Any]) -> Settings:
        """These settings with dotted names (`section.name`) replaced.

        Raises:
            SettingError: a setting is unknown or out of range.
        """
        tree = self.model_dump()
        for name, value in values.items():
            put(tree, name, value)
        return validated(tree)


def validated(tree: Mapping[str, Any]) -> Settings:
    """The settings that `tree` says.

    Raises:
        SettingError: a value is out of range; the message has the setting and the value.
    """
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SettingError(f"setting {name} cannot be {first['input']!r}: {first['msg']}") from error


def setting_names() -> tuple[str, ...]:
    """Every setting's dotted name."""
    return tuple(name for name, _ in leaves(Settings().model_dump()))


def describe_settings() -> Iterator[tuple[str, Any, str]]:
    """Name, default and meaning of every setting, for the documentation and `--help`."""
    for section, field in Settings.model_fields.items():
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            yield section, field.default, field.description or ""
            continue
        for name, leaf in field.annotation.model_fields.items():
            choices = get_args(leaf.annotation) if leaf.annotation and get_args(leaf.annotation) else ()
            meaning = leaf.description or ""
            if choices and all(isinstance(choice, str) for choice in choices):
                meaning = f"{meaning} One of {', '.join(choices)}.".strip()
            yield f"{section}.{name}", leaf.default, meaning
