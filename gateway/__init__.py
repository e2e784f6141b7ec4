"""The hall: what both sides of the gateway share. No web framework, no torch, no work at import."""
