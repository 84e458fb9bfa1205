import sys

import torch
from data import load_data
from model import load_parameters
from scaleoututil.helpers.helpers import save_metrics


def validate(in_model_path, out_json_path, data_path=None):
    x_test, y_test = load_data(data_path, is_train=False)
    model = load_parameters(in_model_path)
    model.eval()
    with torch.no_grad():
        out = model(x_test)
        loss = torch.nn.NLLLoss()(out, y_test)
        accuracy = torch.sum(torch.argmax(out, dim=1) == y_test) / len(y_test)
    save_metrics({"test_loss": loss.item(), "test_accuracy": accuracy.item()}, out_json_path)


if __name__ == "__main__":
    validate(sys.argv[1], sys.argv[2])
