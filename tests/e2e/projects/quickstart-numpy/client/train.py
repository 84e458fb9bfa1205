import sys

import numpy as np
from data import load_data
from model import load_parameters, predict, save_parameters
from scaleoututil.helpers.helpers import load_metadata, save_metadata


def train(in_path, out_path, lr=0.1):
    settings = load_metadata(in_path)
    epochs = settings.get("client_settings", settings).get("epochs", 1)
    x, y = load_data()
    weights, bias = load_parameters(in_path)
    hot = np.eye(10)[y]
    for _ in range(20 * epochs):
        error = predict(weights, bias, x) - hot
        weights = weights - lr * x.T @ error / len(x)
        bias = bias - lr * error.mean(axis=0)
    save_metadata({"num_examples": len(x), "epochs": epochs}, out_path)
    save_parameters([weights, bias], out_path)


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2])
