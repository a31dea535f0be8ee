"""The end of one process of several, under torchrun; prints what runs at its end."""

import atexit

from nblib.distributed import leave, start


class Last:
    """A global of this module: deleted only as the interpreter is torn down."""

    def __del__(self) -> None:
        print("torn down")


if __name__ == "__main__":
    last = Last()
    atexit.register(print, "exit handler ran")
    start()
    leave()
