"""Files of many megabytes as answers."""

from __future__ import annotations

from fastapi.responses import FileResponse


class LargeFile(FileResponse):
    """In pieces of a MiB: each costs a change of threads and a pass through the server."""

    chunk_size = 1 << 20
