"""What the aggregator keeps on its disk, and how it notices that it was changed."""
