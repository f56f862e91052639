"""``python -m services.model_owner api|worker|beat|migrate``"""

from __future__ import annotations

import sys

from primia.chassis.process import main
from services.model_owner.main import create_service

if __name__ == "__main__":
    sys.exit(main(create_service(), sys.argv[1:]))
