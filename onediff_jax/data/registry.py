"""Where records come from.  A source knows its records by number, and what every one of them holds.

`SOURCES` maps a kind to its settings; settings open one split as a sequence of records.  What all
kinds have in common is in `records.py`.
"""

from onediff_jax.data.records import SourceSettings
from onediff_jax.data.scenes.source import Scenes
from onediff_jax.data.sources.cache import Cache
from onediff_jax.data.sources.coco import Coco
from onediff_jax.data.sources.folder import Folder
from onediff_jax.data.sources.identities import Identities
from onediff_jax.data.sources.posed import Posed
from onediff_jax.data.sources.shards import Shards
from onediff_jax.data.sources.tfds import Tfds

KINDS = (Scenes, Folder, Shards, Tfds, Posed, Coco, Identities, Cache)
SOURCES: dict[str, type[SourceSettings]] = {kind.__name__.lower(): kind for kind in KINDS}
