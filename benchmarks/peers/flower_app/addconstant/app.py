"""Federated averaging in Flower: a node adds one to every value. Runs in Flower's environment."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

NODES = 3
client = ClientApp()
server = ServerApp()


@client.train()
def train(message, _context):
    values = [array + 1 for array in message.content["arrays"].to_numpy_ndarrays()]
    content = {
        "arrays": ArrayRecord(values),
        "metrics": MetricRecord({"num-examples": 100}),
    }
    return Message(content=RecordDict(content), reply_to=message)


@server.main()
def main(grid, context):
    config, times = context.run_config, []

    def after_round(number, arrays):
        times.append(time.time())
        first = float(arrays.to_numpy_ndarrays()[0][0])
        return MetricRecord({"first": first, "round": number})

    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=NODES,
        min_available_nodes=NODES,
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(int(config["values"]), dtype=np.float32)]),
        num_rounds=int(config["rounds"]),
        evaluate_fn=after_round,
    )
    Path(str(config["target"])).write_text(json.dumps(times))
