"""JPEG lossless by GDCM, the decoder that shares no code with imagecodecs' JPEG SOF3 decoder."""

from __future__ import annotations

import gdcm
import numpy as np
import numpy.typing as npt

from worker.codestream import Declared

#: Of fewer bits GDCM 3.2 throws what its Python binding does not catch: the process is gone.
LEAST_PRECISION = 8
_JPEG_LOSSLESS = gdcm.TransferSyntax.JPEGLosslessProcess14_1


def decode_jpeg_lossless(data: bytes, declared: Declared) -> npt.NDArray[np.generic]:
    """Samples, shape (rows, columns, samples). Raises ValueError when GDCM refuses the stream."""
    if declared.precision < LEAST_PRECISION:
        raise ValueError("GDCM does not decode so few bits")
    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()
    words = 1 if declared.precision <= 8 else 2
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((declared.columns, declared.rows, 1))
    image.SetDataElement(_pixel_element(data))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(_photometric(declared)))
    image.SetTransferSyntax(gdcm.TransferSyntax(_JPEG_LOSSLESS))
    image.SetPixelFormat(
        gdcm.PixelFormat(declared.samples, 8 * words, declared.precision, declared.precision - 1, 0)
    )
    image.SetPlanarConfiguration(0)
    buffer = image.GetBuffer()
    if not buffer:
        raise ValueError("GDCM cannot decode the frame")
    raw = buffer.encode("utf-8", "surrogateescape")
    if len(raw) != declared.rows * declared.columns * declared.samples * words:
        raise ValueError("GDCM gives another number of bytes")
    return np.frombuffer(raw, dtype=f"<u{words}").reshape(declared.rows, declared.columns, declared.samples)


def _photometric(declared: Declared) -> int:
    kinds = gdcm.PhotometricInterpretation
    return int(kinds.RGB if declared.samples == 3 else kinds.MONOCHROME2)


def _pixel_element(data: bytes) -> gdcm.DataElement:
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(data)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    return element
