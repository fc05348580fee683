"""The embedded sets, made by code: for detection, in LVIS's format, for pre-training."""
