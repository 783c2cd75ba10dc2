"""The library of the two-stream pipeline: arrays and files, no Luigi.

Read the modules in the order of the data: `specs`, `catalog`, `video`, `flow`, `quantize`, `store`, `jobs`, `cluster`,
`preprocess`, `stacks`, `transforms`, `dataset`, `networks`, `training`, `scores`, `inference`, `fusion`, `report`.
A module imports only from those before it; `tests/test_layers.py` has the list of all, and holds them to it.
"""
