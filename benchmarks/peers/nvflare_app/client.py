"""A site in NVFlare: adds one to every value. Runs in NVFlare's environment."""

import json
import sys
import time
from pathlib import Path

import nvflare.client as flare


def main(target):
    flare.init()
    times = []
    while flare.is_running():
        model = flare.receive()
        if model is None:
            break
        array = model.params["numpy_key"]
        same = bool((array == array[0]).all())
        seen = {"first": float(array[0]), "same": same, "values": array.size}
        times.append({"time": time.time(), **seen})
        metrics = {"accuracy": 0.0}
        meta = {"NUM_STEPS_CURRENT_ROUND": 100}
        flare.send(flare.FLModel(params={"numpy_key": array + 1}, metrics=metrics, meta=meta))
        told = Path(target, f"{flare.get_site_name()}.json")
        told.with_suffix(".partial").write_text(json.dumps(times))
        told.with_suffix(".partial").replace(told)


if __name__ == "__main__":
    main(sys.argv[sys.argv.index("--target") + 1])
