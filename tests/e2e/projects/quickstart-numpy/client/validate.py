import sys

import numpy as np
from data import load_data
from model import load_parameters, predict
from scaleoututil.helpers.helpers import save_metrics

x, y = load_data(is_train=False)
guess = predict(*load_parameters(sys.argv[1]), x)
loss = -np.mean(np.log(guess[np.arange(len(y)), y] + 1e-12))
save_metrics({"test_loss": float(loss), "test_accuracy": float(np.mean(guess.argmax(axis=1) == y))}, sys.argv[2])
