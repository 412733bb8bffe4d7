"""The online API: predictions, feedback, hot swap. It runs without training's dependencies."""

from perdure_services.serving.api import create_app

__all__ = ["create_app"]
