"""Closed forms of the axis 'rules'; see deltaw.testing.closed."""
