"""Deltas to a weight: one file per method."""
