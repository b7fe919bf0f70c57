"""Closed forms of the axis 'update'; see deltaw.testing.closed."""
