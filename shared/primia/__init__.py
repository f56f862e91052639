"""PriMIA Grid: what the services share. See docs/architecture.md for the order of the modules."""
