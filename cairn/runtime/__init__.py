"""What every process needs: its clock, its log, its signals, its timeouts, its failpoints."""
