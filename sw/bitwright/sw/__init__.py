"""The training side: data, models, quantizers, training, search, lowering, report, commands. Needs PyTorch."""
