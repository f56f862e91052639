"""NVFlare's own federated averaging (NumPy), in POC mode: server and sites as processes of their own
with certificates, as a deployment has them. Runs in NVFlare's environment: FOLDER VALUES ROUNDS."""

import json
import sys
from pathlib import Path

import numpy as np
from nvflare.app_common.np.recipes import NumpyFedAvgRecipe
from nvflare.recipe import PocEnv

SITES = 3


def main(folder, values, rounds):
    first, target = folder / "first.npy", folder / "times"
    target.mkdir()
    np.save(first, np.zeros(values, dtype=np.float32))
    recipe = NumpyFedAvgRecipe(
        name="addconstant",
        initial_ckpt=str(first),
        min_clients=SITES,
        num_rounds=rounds,
        train_script=str(Path(__file__).with_name("client.py")),
        train_args=f"--target {target}",
    )
    env = PocEnv(num_clients=SITES)
    try:
        run = recipe.execute(env)
        result = run.get_result()
        print(run.get_status(), result)
        found = sorted(Path(result).rglob("server.npy"))[-1]
        last = np.load(found)
        told = {"least": float(last.min()), "most": float(last.max()), "values": last.size}
        (folder / "result.json").write_text(json.dumps(told))
    finally:
        env.stop(clean_up=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
