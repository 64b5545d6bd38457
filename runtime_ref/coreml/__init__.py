"""The interpreter of Core ML packages, which runs the shipped protobuf and weights anywhere."""
