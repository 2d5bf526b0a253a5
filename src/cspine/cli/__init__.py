"""The command line: one thin command a verb. Nothing heavy is imported before a command needs it."""

from cspine.cli.app import main

__all__ = ["main"]
