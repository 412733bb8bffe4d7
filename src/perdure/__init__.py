"""Perdure: models that keep learning, and keep what they learned."""

from importlib.metadata import version

__version__ = version("perdure")
