"""The generator: the contract of the accelerator and its description in Amaranth."""
