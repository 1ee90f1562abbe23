"""Examples to batches: slots, packing, mixture, rows, loader."""
