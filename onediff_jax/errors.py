"""The one exception that means: what was given cannot be used."""


class InputError(ValueError):
    """Its message is one line that names the setting, the value and the way out."""
