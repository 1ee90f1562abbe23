"""Pure functions of arrays: the mathematics that everything above stands on."""
