"""Closed forms of the axis 'init'; see deltaw.testing.closed."""
