# SPDX-License-Identifier: Apache-2.0
"""Metrics of a model on this node's samples: python validate.py <in> <out>"""

import json
import sys

import data
import model


def main(path_in, path_out):
    weights, bias, _ = model.load(path_in)
    samples = data.samples()
    loss, accuracy = model.loss_and_accuracy(weights, bias, samples)
    distance = data.distance_to_truth(weights, bias)
    print(f"{len(samples)} samples: loss {loss:.4f}, accuracy {accuracy:.3f}, distance to the truth {distance:.3f}")
    with open(path_out, "w", encoding="utf-8") as file:
        json.dump({"loss": loss, "accuracy": accuracy, "distance_to_truth": distance}, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
