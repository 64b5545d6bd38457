"""A checkpoint on disk or on the hub, read tensor by tensor."""
