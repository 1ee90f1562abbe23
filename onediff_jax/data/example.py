"""What flows through the data room: records in, examples out.

A record is what a data set stores for one scene or picture.  An example is what a task makes of it:
views and a prompt.  Pictures are uint8 [h w 3] until a codec sees them.
"""

from typing import NamedTuple, TypedDict

import numpy as np
from jaxtyping import Float, UInt8

Picture = UInt8[np.ndarray, "_ _ 3"]  # height and width, not bound: pictures may differ


class Record(TypedDict, total=False):
    """One scene or picture; which fields there are depends on the source."""

    image: Picture
    depth: Float[
        np.ndarray, "h w"
    ]  # along the optical axis, any unit; infinite where there is nothing
    instances: UInt8[np.ndarray, "h w"]  # 0: background; i: the i-th of `names`
    names: tuple[str, ...]  # class of every instance
    colors: tuple[str, ...]  # of every instance
    places: tuple[str, ...]  # of every instance in the picture: left, middle or right
    caption: str


class Example(NamedTuple):
    """Views of one size in their task's order (target first), and the prompt with its token."""

    task: str
    views: tuple[Picture, ...]
    prompt: str
