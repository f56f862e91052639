"""NVFlare's own federated averaging (NumPy), in POC mode: server and sites are processes of their
own, as in a deployment. Runs in NVFlare's environment: FOLDER VALUES ROUNDS. Whoever starts it ends
those processes."""

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
    run = recipe.execute(PocEnv(num_clients=SITES))
    run.get_result()  # waits for it


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
