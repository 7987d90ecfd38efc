"""What is made of a trained model before it leaves: clipped, encoded, kept on the disk."""
