"""The two online parties: P0 is ``Owner`` on a ``PreparedModel``, P1 ``Client`` on a
``PreparedOpening``."""

from primia.mpc.client import Client, PreparedOpening
from primia.mpc.owner import Owner, PreparedModel

__all__ = ["Client", "Owner", "PreparedModel", "PreparedOpening"]
