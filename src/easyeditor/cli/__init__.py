"""The command ``easyedit``: parse first, import heavy things late; the only place that prints."""

from easyeditor.cli.app import app, main

__all__ = ["app", "main"]
