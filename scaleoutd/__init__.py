# SPDX-License-Identifier: Apache-2.0
"""scaleoutd: a federated-learning node for places where nobody may push code."""

__version__ = "0.1.0"
