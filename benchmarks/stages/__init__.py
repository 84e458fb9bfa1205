# SPDX-License-Identifier: Apache-2.0
"""The time line of a task: marks at the borders of stages (marks.py), read into one table (timeline.py)."""
