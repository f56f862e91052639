"""``python -m services.crypto_provider api|worker|beat|migrate``"""

from __future__ import annotations

import sys

from primia.chassis.process import main
from services.crypto_provider.main import create_service

if __name__ == "__main__":
    sys.exit(main(create_service(), sys.argv[1:]))
