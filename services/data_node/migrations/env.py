"""Alembic asks for this file; the chassis configures the environment (primia.chassis.migrate)."""
