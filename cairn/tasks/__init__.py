"""The owner's own code: the contract, its loading and its running. PyTorch is imported here only."""
