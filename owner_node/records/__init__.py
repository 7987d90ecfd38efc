"""What the owner's ledger holds and what is read from it."""
