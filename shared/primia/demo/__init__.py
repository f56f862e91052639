"""The demonstration: the whole mission, for real, at small scale, on one machine."""
