"""The NIM container's stand-in: the inference server, the tools that the operator's pods call, the image's files."""
