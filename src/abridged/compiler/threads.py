"""The C source of the thread pool, which every native artifact carries."""

from importlib.resources import files


def source() -> bytes:
    return files(__package__).joinpath("threads.c").read_bytes()
