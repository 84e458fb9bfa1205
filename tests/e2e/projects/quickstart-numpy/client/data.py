"""The client's data: a file of arrays, in the folder of the project or where SCALEOUT_DATA_PATH says."""

import os

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))


def load_data(data_path=None, is_train=True):
    data_path = data_path or os.environ.get("SCALEOUT_DATA_PATH", os.path.join(HERE, "data", "clients", "1", "digits.npz"))
    part = "train" if is_train else "test"
    with np.load(data_path) as data:
        return data["x_" + part], data["y_" + part]


if __name__ == "__main__":
    print("found", len(load_data()[1]), "examples")
