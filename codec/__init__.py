"""Lossless codec for 8-16 bit medical frames: the dual path and the standard codecs beside it.

Pure: bytes and arrays in, bytes and arrays out. No DICOM, no settings, no environment, no clock.
"""
