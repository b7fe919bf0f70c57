"""Methods of what stands in front of the input: soft tokens, keys and values."""
