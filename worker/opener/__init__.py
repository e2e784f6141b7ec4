"""A plain opener of archive objects: Python's standard library and NumPy, nothing else, no speed. Part of the escrow.

Written from docs/archive-object.md, docs/payload-format.md and docs/bitstream.md; it shares only the plain reference
decoders with the fast programs. `palimpsest codec escrow` copies it out with all that it needs; it imports nothing of
this program but those decoders, so that the copy runs by itself.
"""
