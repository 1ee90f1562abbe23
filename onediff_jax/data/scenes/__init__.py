"""One world of procedural scenes: drawn, rendered, told in captions, stored by TFDS."""
