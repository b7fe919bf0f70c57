"""Studies: what can be asked of adapters and of training. `checks`: measures, one file each, that papers propose;
`coordinates`: the size of activations over widths; `advise`: rank, alpha and learning rate for a model, with the evidence."""
