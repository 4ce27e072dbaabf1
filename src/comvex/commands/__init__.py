"""The commands, a file each: a dataclass of arguments that calls one function elsewhere, imported only then."""
