"""torchrun that ends with the process that started it, and its ranks with it: `python -m fundus_lib.torchrun ...`."""

import os
import threading
import time


def follow_parent() -> None:
    """End this process when the one that started it is gone: a killed notebook must not leave training behind."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    from torch.distributed.run import main

    follow_parent()
    main()
