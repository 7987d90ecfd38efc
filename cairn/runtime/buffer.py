"""What holds bytes and can be written from without a copy."""

Buffer = bytes | bytearray | memoryview
