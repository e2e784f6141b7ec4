"""Training of the released weights. Nothing that decodes imports it; only the VAE's needs torch (extra `learned`)."""
