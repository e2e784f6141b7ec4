"""Training of the released weights. Needs torch (extra `learned`); nothing that decodes imports it."""
