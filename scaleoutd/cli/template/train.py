# SPDX-License-Identifier: Apache-2.0
"""One round of training: python train.py <in> <out>

Reads the model at <in>, writes the new one to <out> and what goes with it to <out>-metadata.
"""

import json
import sys

import data
import model


def train(weights, bias, samples, epochs, learning_rate):
    for epoch in range(epochs):
        slopes, slope = [0.0] * len(weights), 0.0
        for row, label in samples:
            error = model.probability(weights, bias, row) - label
            slope += error
            for index, value in enumerate(row):
                slopes[index] += error * value
        weights = [weight - learning_rate * found / len(samples) for weight, found in zip(weights, slopes)]
        bias -= learning_rate * slope / len(samples)
        loss, _ = model.loss_and_accuracy(weights, bias, samples)
        print(f"epoch {epoch + 1}/{epochs}: loss {loss:.4f}")
    return weights, bias, loss


def main(path_in, path_out):
    weights, bias, kind = model.load(path_in)
    settings = model.settings(path_in)
    samples = data.samples()
    print(f"training on {len(samples)} samples")
    epochs, rate = int(settings.get("epochs", 5)), float(settings.get("learning_rate", 0.5))
    weights, bias, loss = train(weights, bias, samples, max(1, epochs), rate)
    model.save(path_out, weights, bias, kind)
    with open(path_out + "-metadata", "w", encoding="utf-8") as file:
        json.dump({"num_examples": len(samples), "loss": loss}, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
