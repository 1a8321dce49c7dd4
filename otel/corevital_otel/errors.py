"""Errors that reach the user, in a module that costs nothing to import."""


class SettingsError(ValueError):
    """A setting is wrong. Its text is one line: the setting, the value given, and what is allowed."""
