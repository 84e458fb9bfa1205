# SPDX-License-Identifier: Apache-2.0
"""PyTorch in the sandbox: DataLoader workers by every start method and sharing strategy, convolutions, save and load."""

from __future__ import annotations

import subprocess

import pytest

from tests.kernel.real_work import MODES, sandbox
from tests.step_client import PYTHON

HAS_TORCH = subprocess.run([PYTHON, "-c", "import torch"], capture_output=True).returncode == 0
pytestmark = [
    pytest.mark.skipif(not HAS_TORCH, reason="the system's python has no torch; root installs python3-torch"),
    pytest.mark.timeout(200),
]

LOADER = """\
import torch
from torch.utils.data import DataLoader, Dataset

class Squares(Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        return torch.full((3, 32, 32), float(index))

if __name__ == "__main__":
    torch.multiprocessing.set_sharing_strategy("{strategy}")
    loader = DataLoader(Squares(), batch_size=8, num_workers=2, multiprocessing_context="{method}")
    print("sum", int(sum(batch[:, 0, 0, 0].sum().item() for batch in loader)))
"""
TRAINING = """\
import torch
torch.manual_seed(1)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 30 * 30, 10))
optimizer = torch.optim.Adam(net.parameters())
x, y = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
losses = []
for _ in range(5):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(net(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
torch.save(net.state_dict(), "/scratch/net.pt")
net.load_state_dict(torch.load("/scratch/net.pt"))
traced = torch.jit.trace(net, x)
assert torch.allclose(traced(x), net(x), atol=1e-5)
print("falls", losses[-1] < losses[0], "threads", torch.get_num_threads())
"""


@pytest.mark.parametrize("mode", MODES)
def test_convolution_training_save_load_and_trace(mode: str) -> None:
    with sandbox(mode, TRAINING) as work:
        done = work.run()
        assert "falls True threads 2" in done.output, done


@pytest.mark.parametrize("strategy", ["file_descriptor", "file_system"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_data_loader_with_two_workers(method: str, strategy: str) -> None:
    with sandbox(MODES[0], LOADER.format(method=method, strategy=strategy)) as work:
        done = work.run()
        assert "sum 2016" in done.output, done
        assert done.result.exit_status == 0, done


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_of_an_ordinary_user(method: str) -> None:
    with sandbox("user", LOADER.format(method=method, strategy="file_descriptor")) as work:
        done = work.run()
        assert "sum 2016" in done.output, done
