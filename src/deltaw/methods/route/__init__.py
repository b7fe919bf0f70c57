"""Methods whose output is a mixture chosen by the input."""
