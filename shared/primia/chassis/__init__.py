"""What every service stands on: settings, identity, database, jobs, peers, telemetry, the app.

Factories with arguments, nothing created at import. ``process.run`` is the entry of each role;
``context.build`` makes the one value that routes and tasks receive.
"""
