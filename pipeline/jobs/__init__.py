"""What a worker does with one shard: `frames.py` decodes videos, `flow.py` computes motion. One outcome a clip.

A job holds paths and settings, never arrays; it travels to the worker, and a number of clips comes back.
"""

import cv2

BAD_CLIP = (ValueError, cv2.error)  # the clip's own fault, which becomes its reason; all else fails the shard


def printable(error: BaseException) -> str:
    """The message of an error as one line; what a damaged file puts into it may be anything."""
    return "".join(letter if letter.isprintable() else " " for letter in str(error)).strip()
