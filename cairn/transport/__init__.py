"""gRPC as the nodes use it: servers, channels, who may call what, and how a connection ends."""
