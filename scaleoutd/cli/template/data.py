# SPDX-License-Identifier: Apache-2.0
"""Samples: from the node's data set if it has one, else made up with a truth that is known.

python data.py 7 samples.csv        writes the samples of node 7; start the node with --data samples=samples.csv
"""

import csv
import math
import os
import random
import sys

TRUTH, TRUTH_BIAS = (1.5, -2.0, 0.7, 0.0), 0.5
ROWS = 400


def samples():
    """A list of (row, label)."""
    path = os.environ.get("SCALEOUTD_DATA_SAMPLES")
    if not path:
        return make(seed=1)
    with open(path, newline="", encoding="utf-8") as file:
        return [([float(value) for value in line[:-1]], int(line[-1])) for line in csv.reader(file)]


def make(seed, rows=ROWS):
    """Rows drawn from a normal distribution; the label is 1 with the probability that the truth gives."""
    source = random.Random(seed)
    found = []
    for _ in range(rows):
        row = [source.gauss(0, 1) for _ in TRUTH]
        score = TRUTH_BIAS + sum(weight * value for weight, value in zip(TRUTH, row))
        found.append((row, int(source.random() < 1 / (1 + math.exp(-score)))))
    return found


def distance_to_truth(weights, bias):
    return math.dist((*weights, bias), (*TRUTH, TRUTH_BIAS))


if __name__ == "__main__":
    with open(sys.argv[2], "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([*(f"{value:.6f}" for value in row), label] for row, label in make(int(sys.argv[1])))
