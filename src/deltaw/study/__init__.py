"""Studies: what can be asked of adapters once they are there. `checks`: measures, one file each, that papers propose."""
