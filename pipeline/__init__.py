"""The way of a note, from the hook to the finished recording; knows the other three packages."""

__version__ = "0.1.0"
