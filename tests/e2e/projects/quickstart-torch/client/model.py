"""The network, and its way to and from the federated model."""

import collections
import sys

import torch
from scaleoututil.helpers.helpers import get_helper
from scaleoututil.utils.model import ScaleoutModel

HELPER_MODULE = "numpyhelper"
helper = get_helper(HELPER_MODULE)


def compile_model():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = torch.nn.Linear(64, 32)
            self.fc2 = torch.nn.Linear(32, 10)

        def forward(self, x):
            x = torch.nn.functional.relu(self.fc1(x))
            return torch.nn.functional.log_softmax(self.fc2(x), dim=1)

    return Net()


def save_parameters(model, out_path):
    parameters_np = [val.cpu().numpy() for _, val in model.state_dict().items()]
    helper.save(parameters_np, out_path)


def load_parameters(model_path):
    model = compile_model()
    parameters_np = ScaleoutModel.from_file(model_path).get_training_model(helper)
    params_dict = zip(model.state_dict().keys(), parameters_np)
    state_dict = collections.OrderedDict({key: torch.tensor(x) for key, x in params_dict})
    model.load_state_dict(state_dict, strict=True)
    return model


def init_seed(out_path="seed.npz"):
    torch.manual_seed(42)
    save_parameters(compile_model(), out_path)


if __name__ == "__main__":
    init_seed(*sys.argv[1:2])
