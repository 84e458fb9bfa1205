# SPDX-License-Identifier: Apache-2.0
"""The model and its files, with nothing but Python: a logistic regression as two arrays in an npz file.

An npz file is a ZIP of .npy files. A combiner of Scaleout Edge wraps it in one more ZIP: `load` reads both.
"""

import ast
import io
import json
import math
import struct
import zipfile
from array import array

MAGIC = b"\x93NUMPY\x01\x00"
WEIGHTS, BIAS = "0", "1"  # the official client's NumPy helper names arrays by number
CODES = {"<f8": "d", "<f4": "f"}


def load(path):
    """Weights (a list), bias (a number), and the type of the numbers ("<f8" or "<f4")."""
    with open(path, "rb") as file:
        data = file.read()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if "training_model.bin" in archive.namelist():
            data = archive.read("training_model.bin")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        arrays = {name[:-4]: read_npy(archive.read(name)) for name in archive.namelist()}
    (weights, kind), (bias, _) = arrays[WEIGHTS], arrays[BIAS]
    return list(weights), bias[0], kind


def save(path, weights, bias, kind="<f8"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{WEIGHTS}.npy", write_npy(weights, kind))
        archive.writestr(f"{BIAS}.npy", write_npy([bias], kind))


def read_npy(data):
    if data[:8] != MAGIC:
        raise ValueError("not a .npy file of version 1.0")
    (length,) = struct.unpack_from("<H", data, 8)
    header = ast.literal_eval(data[10 : 10 + length].decode("latin-1"))
    values = array(CODES[header["descr"]])
    values.frombytes(data[10 + length :])
    return values, header["descr"]


def write_npy(values, kind):
    header = repr({"descr": kind, "fortran_order": False, "shape": (len(values),)})
    header += " " * (-(len(MAGIC) + 2 + len(header) + 1) % 64) + "\n"
    return MAGIC + struct.pack("<H", len(header)) + header.encode("latin-1") + array(CODES[kind], values).tobytes()


def probability(weights, bias, row):
    score = bias + sum(weight * value for weight, value in zip(weights, row))
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))


def loss_and_accuracy(weights, bias, samples):
    """Mean cross-entropy, and the share of samples that the model gets right."""
    loss = right = 0.0
    for row, label in samples:
        chance = probability(weights, bias, row)
        loss -= math.log(chance if label else 1 - chance)
        right += (chance >= 0.5) == bool(label)
    return loss / len(samples), right / len(samples)


def settings(path):
    """The client_settings that the combiner sent along with the model; {} when there are none."""
    try:
        with open(path + "-metadata", encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        return {}
    return found.get("client_settings", found)
