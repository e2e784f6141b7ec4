"""What the codec raises on purpose."""


class CodecError(Exception):
    """Base of every error that this package raises on purpose."""


class UnsupportedFrame(CodecError):
    """The frame or its description is outside what the format can hold (a fault of the caller)."""


class CorruptBitstream(CodecError):
    """The bytes are not a frame of this format: truncated, changed, trailing, hostile or of another version."""


class MissingContext(CorruptBitstream):
    """The blob needs something that it does not hold and that was not given, or another one than was given.

    A previous frame, a shared adapter, the global part from a group's stack, or a weight file.
    """
