import math
import sys

import torch
from data import load_data
from model import load_parameters, save_parameters
from scaleoututil.helpers.helpers import load_metadata, save_metadata


def train(in_model_path, out_model_path, data_path=None, batch_size=32, epochs=1, lr=0.05):
    settings = load_metadata(in_model_path)
    settings = settings.get("client_settings", settings)
    epochs = settings.get("epochs", epochs)

    x_train, y_train = load_data(data_path)
    model = load_parameters(in_model_path)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    criterion = torch.nn.NLLLoss()
    n_batches = math.ceil(len(x_train) / batch_size)
    for e in range(epochs):
        for b in range(n_batches):
            batch_x = x_train[b * batch_size : (b + 1) * batch_size]
            batch_y = y_train[b * batch_size : (b + 1) * batch_size]
            optimizer.zero_grad()
            loss = criterion(model(batch_x), batch_y)
            loss.backward()
            optimizer.step()
        print(f"Epoch {e}/{epochs - 1} | Loss: {loss.item():.4f}")

    metadata = {"num_examples": len(x_train), "batch_size": batch_size, "epochs": epochs, "lr": lr}
    save_metadata(metadata, out_model_path)
    save_parameters(model, out_model_path)


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2])
