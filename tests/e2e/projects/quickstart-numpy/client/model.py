"""Softmax regression, and its way to and from the federated model."""

import sys

import numpy as np
from scaleoututil.helpers.helpers import get_helper
from scaleoututil.utils.model import ScaleoutModel

helper = get_helper("numpyhelper")


def predict(weights, bias, x):
    scores = x @ weights + bias
    scores -= scores.max(axis=1, keepdims=True)
    return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)


def load_parameters(path):
    return ScaleoutModel.from_file(path).get_training_model(helper)


def save_parameters(parameters, path):
    helper.save(parameters, path)


if __name__ == "__main__":
    save_parameters([np.zeros((64, 10)), np.zeros(10)], *(sys.argv[1:2] or ["seed.npz"]))
