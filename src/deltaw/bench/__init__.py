"""What everything costs, as ratios measured side by side: `deltaw bench`.

One module per question (step, memory, load, switch, mixed, merge, norm); each has `measure(setting, progress)` that
returns groups of times, which `record` turns into a JSON record and `report` into tables and pictures.
"""
