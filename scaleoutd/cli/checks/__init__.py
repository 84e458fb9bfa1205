# SPDX-License-Identifier: Apache-2.0
"""What `scaleoutctl doctor` looks at: one module for each part of a host."""
