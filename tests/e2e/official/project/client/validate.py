# SPDX-License-Identifier: Apache-2.0
"""Validation with a known result: the mean of all weights."""

import json
import sys

import numpy as np
import weights

in_path, out_path = sys.argv[1:]
mean = float(np.mean(np.concatenate([w.ravel() for w in weights.read(in_path).values()])))
with open(out_path, "w") as file:
    json.dump({"mean": mean}, file)
