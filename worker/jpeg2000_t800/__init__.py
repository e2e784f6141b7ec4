"""A JPEG 2000 decoder for the reversible path, written from ITU-T T.800 alone.

It exists to be *unrelated* to OpenJPEG, the library behind every other JPEG 2000 decoder at hand: a JPEG 2000 object
is only re-coded when both decoders give the same samples. So it never guesses: what is lossy, unusual or damaged is
refused, and a codestream that ends early is an error, not a partial image. Clause numbers: ITU-T T.800 (11/2015).
"""

from worker.jpeg2000_t800.decoder import Decoded, decode_reversible
from worker.jpeg2000_t800.errors import J2kCorrupt, J2kError, J2kUnsupported

__all__ = ["Decoded", "J2kCorrupt", "J2kError", "J2kUnsupported", "decode_reversible"]
