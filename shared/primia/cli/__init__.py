"""The ``primia`` command (typer and rich). Every command takes ``--format json``."""
