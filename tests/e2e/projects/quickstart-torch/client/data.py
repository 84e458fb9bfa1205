"""The client's data: a file of tensors, in the folder of the project or where SCALEOUT_DATA_PATH says."""

import os
import sys

import torch

HERE = os.path.dirname(os.path.abspath(__file__))


def load_data(data_path=None, is_train=True):
    data_path = data_path or os.environ.get("SCALEOUT_DATA_PATH", os.path.join(HERE, "data", "clients", "1", "digits.pt"))
    data = torch.load(data_path)
    part = "train" if is_train else "test"
    return data["x_" + part], data["y_" + part]


if __name__ == "__main__":
    x, y = load_data()
    print("found", len(y), "examples")
    sys.exit(0)
