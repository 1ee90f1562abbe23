"""The letters of every shape in this project, and the arrays that have names.

b  rows of a batch                    n  tokens of a row                p  features of a patch
v  view ranges of a row               e  examples a row can hold        m  keys of an attention
l  tokens of a prompt                 c  width of text states           d  width of the network
k  query heads    g  key heads        r  query heads per key head       h  width of a head
"""

from jaxtyping import Array, Bool, Float, Int

Patches = Float[Array, "b n p"]
Positions = Int[Array, "b n 3"]  # view within its example, row, column
Sigmas = Float[Array, "b v"]  # noise level of every view: 0 is clean, 1 is noise
ExampleOfView = Int[Array, "b v"]  # -1: the range is empty
TokenMask = Bool[Array, "b n"]  # false: padding
TextStates = Float[Array, "b e l c"]
TextMask = Bool[Array, "b e l"]
