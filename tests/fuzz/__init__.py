"""Fuzzing of everything that reads bytes from outside: see `decoders.py`, and `make fuzz`."""
