"""``python -m services.data_node api|worker|beat|migrate``"""

from __future__ import annotations

import sys

from primia.chassis.process import main
from services.data_node.main import create_service

if __name__ == "__main__":
    sys.exit(main(create_service(), sys.argv[1:]))
