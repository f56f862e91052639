"""The embedded grid: every service of a small federation on one machine, for a first look.

Each service is its own processes with its own database, broker, identity and directory, as it would
be at its own institution; only the network is shared.
"""
