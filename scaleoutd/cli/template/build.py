# SPDX-License-Identifier: Apache-2.0
"""Makes the seed model, all zeros: scaleoutctl build, or python build.py [seed.npz]"""

import sys

import data
import model

path = sys.argv[1] if len(sys.argv) > 1 else "seed.npz"
model.save(path, [0.0] * len(data.TRUTH), 0.0)
print(f"wrote {path}")
