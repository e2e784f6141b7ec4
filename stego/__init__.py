"""Sealing and hiding: pure functions over bytes and arrays. Keys and randomness are arguments.

seal       key derivation, committed AES-256-GCM, whitening, key wraps
recipients wraps to further recipients: HPKE (X25519, X-Wing), RSA-OAEP
capsule    what rides in the pixels of viewable stego objects: object id, wrap and record, whitened
record     the signed record (identity essentials, digests, provenance) that rides in the image
segmented  segmented message steganography: the record in the local plane, restorable without any key
positions  keyed permutations (HKDF, ChaCha20, Fisher-Yates with rejection)

Byte layouts: docs/payload-format.md.
"""
