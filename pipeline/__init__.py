"""The library of the two-stream pipeline: arrays and files, no Luigi.

Read the folders and modules in the order of the data: `specs`, `catalog`, `video`, `flow`, `quantize`, `store`,
`preprocess`, `stacks`, `transforms`, `dataset`, `networks`, `training`, `scores`, `inference`, `fusion`, `report`.
Each imports only from those before it; docs/design.md has the list of all, and `tests/test_layers.py` holds them to it.
"""

import os

# its warnings of videos that do not open name no file; our messages do. Read when cv2 is first loaded
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
