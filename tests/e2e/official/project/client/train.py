# SPDX-License-Identifier: Apache-2.0
"""Training with a known result: every weight grows by DELTA * settings["scale"]; EXAMPLES are claimed."""

import json
import os
import sys

import numpy as np
import weights

in_path, out_path = sys.argv[1:]
with open(f"{in_path}-metadata") as file:
    scale = json.load(file)["scale"]
step = float(os.environ["DELTA"]) * scale
np.savez(out_path, **{name: (w + step).astype(w.dtype) for name, w in weights.read(in_path).items()})
with open(f"{out_path}-metadata", "w") as file:
    json.dump({"num_examples": int(os.environ["EXAMPLES"])}, file)
